"""Samples of labelled tiles, and the tiler that places them."""
