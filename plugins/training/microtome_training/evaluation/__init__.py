"""The task `evaluate`: measures, plots and the page."""
