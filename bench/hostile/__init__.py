"""Damaged, lying and absurd slides: ``python -m bench.hostile --variants 300 --seed 0``.

Each must end in its pixels or in one clear sentence, within bounded time and memory. `fuzz` damages
good files, `claims` writes TIFFs and images that claim what they do not hold, `absurd` writes
metadata that makes no sense. `examine` tries one file with one reader, in a process that
`supervise` starts and watches.
"""
