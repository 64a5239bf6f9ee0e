"""Options of the tasks. Cheap to import."""
