"""What tests of slides that are copied before they are worked on share."""

from __future__ import annotations

from contextlib import contextmanager

import h5py

from microtome.run.inputs.sources import LocalSource
from microtome.slide.types import SlideRef

SIZE = 1000
"""Of each of the slides that are far away, in bytes."""


def ref(path, *companions, **fields):
    """Name a slide by its file."""
    return SlideRef(path=path, slide_id=path.stem, companions=companions, **fields)


def units(folder):
    """Give the folders of a cache, one a slide."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def fetch(cache, path, *companions, tick=lambda count: None):
    """Have a local slide copied, and hold it."""
    return cache.fetch(LocalSource(ref(path, *companions)), tick, lambda total: None)


@contextmanager
def closing_held(held):
    """Let go of a copy at the end."""
    try:
        yield held
    finally:
        held.release()


def features(output, name="one"):
    """Give what a run stored of a slide: coordinates, features, attributes."""
    with h5py.File(output / f"patches/{name}.h5") as file:
        return file["coords"][:], file["features/mean"][:], dict(file.attrs)
