"""Slide encoders: one vector a slide."""
