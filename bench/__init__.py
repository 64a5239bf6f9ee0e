"""Measures microtome on this machine: ``python -m bench``, or ``make bench``.

Absolute figures belong to one machine and one day; the ratios are what to compare. So every rate
is given as a share of what the same cores did a moment ago with the same part of the same file:
decode its JPEG tiles and nothing else.

Every measurement is a process of its own (`bench.steps`), so that no import, thread pool or cache
of one helps or hurts the next. `bench.groups` says what is measured and how much is expected,
`bench.peers` runs other tools beside it, `bench.gpu` measures models on a GPU.
"""
