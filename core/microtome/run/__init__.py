"""A run: one slide through the pipeline, many slides through a run."""
