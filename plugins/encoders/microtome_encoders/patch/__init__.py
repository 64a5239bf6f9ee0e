"""Patch encoders: one vector a tile."""
