"""Tasks from labelled tiles to a classifier, its evaluation and its heatmaps. Cheap to import."""
