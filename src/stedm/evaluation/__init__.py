"""Measuring: segmentation over patients, statistics, generated images, memorisation."""
