"""Cohorts, slides, patches, style sets and layouts."""
