"""Outputs on disk: their identity, their place, and how they appear there whole."""
