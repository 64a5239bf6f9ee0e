"""The task `predict`, and its pictures and tables."""
