"""Encoders of all slides of a patient."""
