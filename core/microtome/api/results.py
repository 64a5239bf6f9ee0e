"""Finished slides, whatever store they are in."""

from __future__ import annotations

from pathlib import Path

from microtome.errors import StoreError
from microtome.plugin.protocols import StoredSlide
from microtome.plugin.registry import get_registry
from microtome.plugin.specs import WriterSpec


def open_result(path: str | Path) -> StoredSlide:
    """Open a finished slide for reading.

    Args:
        path: What a writer of features left: ``out/patches/a.h5``, ``out/patches/a.zarr``.

    Returns:
        Its coordinates, attributes, columns and features. A context manager.

    Raises:
        StoreError: If no installed writer reads such a file, or it is not a finished slide.
    """
    path = Path(path)
    registry = get_registry()
    specs = [entry.spec for entry in registry.entries("writer")]
    stores = [s for s in specs if isinstance(s, WriterSpec) and s.consumes == "features"]
    for spec in stores:
        if path.suffix == spec.suffix:
            stored: StoredSlide = registry.create("writer", spec.name).open_stored(path)
            return stored
    suffixes = ", ".join(f"{spec.suffix} ({spec.name})" for spec in stores)
    raise StoreError(f"No writer reads {path.name!r}. Finished slides end in {suffixes}.")
