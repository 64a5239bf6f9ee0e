"""Finished slides into other tools' files, and back."""
