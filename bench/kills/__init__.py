"""Kills runs at named points and at random moments, and looks at what they leave.

``python -m bench.kills --kills 1000 --seed 0``
"""
