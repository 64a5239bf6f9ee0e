"""Other tools on the same work: the same slide, tiles of 256 px at 20x, the same near-free network.

Each ``run_*.py`` is run by an interpreter of an environment of its own, which knows nothing of
microtome: they share `networks` alone. `compare` runs them and puts the figures side by side.

What is timed is each tool's own feature stage, from the call that begins it to its return, its
data loader's start and what it writes included; and the whole process where only coordinates are
asked for, each with its own default segmenter and tiler.
"""
