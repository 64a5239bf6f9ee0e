"""Annotations: what people drew in ASAP, QuPath and other viewers. Cheap to import."""
