"""The studio: a local page to draw, look through, compare and segment with a finished run."""
