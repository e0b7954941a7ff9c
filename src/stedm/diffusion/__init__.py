"""Flow matching, solvers, guidance, and the pipeline that draws images."""
