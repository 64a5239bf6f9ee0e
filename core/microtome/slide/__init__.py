"""Slides, masks and tiles: values and pure functions on them."""
