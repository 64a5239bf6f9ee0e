"""Whole-slide images to analysis-ready data."""

__version__ = "0.1.0"
