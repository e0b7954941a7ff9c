"""The stages of a run; only these modules and `run` know the run folder."""
