"""Measures microtome on this machine: ``python -m bench``, or ``make bench``.

Absolute figures belong to one machine and one day; the ratios are what to compare.
"""
