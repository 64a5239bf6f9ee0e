"""Patients, after their slides."""
