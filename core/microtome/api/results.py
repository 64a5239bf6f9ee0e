"""Finished slides, whatever store they are in."""

from __future__ import annotations

from pathlib import Path

from microtome.errors import InputError, StoreError
from microtome.plugin.protocols import StoredSlide
from microtome.plugin.registry import get_registry
from microtome.plugin.specs import WriterSpec
from microtome.run.exchange.exporting import find_stores
from microtome.store.layout import OutputLayout


def open_result(path: str | Path) -> StoredSlide:
    """Open a finished slide for reading.

    Args:
        path: What a writer of features left: ``out/patches/a.h5``, ``out/patches/a.zarr``.

    Returns:
        Its coordinates, attributes, columns and features. A context manager.

    Raises:
        StoreError: If there is no such file, no installed writer reads it, or it is not a finished
            slide.
    """
    path = Path(path)
    if not path.exists():
        raise StoreError(f"There is no file {path}.")
    registry = get_registry()
    specs = [entry.spec for entry in registry.entries("writer")]
    stores = [s for s in specs if isinstance(s, WriterSpec) and s.consumes == "features"]
    for spec in stores:
        if path.suffix == spec.suffix:
            stored: StoredSlide = registry.create("writer", spec.name).open_stored(path)
            return stored
    suffixes = ", ".join(f"{spec.suffix} ({spec.name})" for spec in stores)
    raise StoreError(f"No writer reads {path.name!r}. Finished slides end in {suffixes}.")


def find_results(path: Path) -> list[Path]:
    """Give the files of the finished slides that a path stands for, by id.

    Args:
        path: One such file, the folder of an output with one tiling, or that of a tiling.

    Raises:
        InputError: If there are none, or those of several tilings.
    """
    registry = get_registry()
    suffixes = {getattr(entry.spec, "suffix", "") for entry in registry.entries("writer")}
    if path.suffix in suffixes - {""} or path.is_file():
        return [path]
    if not path.exists():
        raise InputError(f"There is no folder {path}.")
    tilings = {"": find_stores(OutputLayout(path), registry)}
    if not tilings[""]:
        names = sorted(each.name for each in path.iterdir() if each.is_dir())
        tilings = {name: find_stores(OutputLayout(path, name), registry) for name in names}
    found = {name: stores for name, stores in tilings.items() if stores}
    if not found:
        raise InputError(
            f"{path} holds no finished slides. Give the folder of an output, or of one of its "
            "tilings, or the files themselves."
        )
    if len(found) > 1:
        raise InputError(
            f"{path} has finished slides of {len(found)} tilings, {', '.join(found)}: give the "
            f"folder of one, {path / next(iter(found))} say."
        )
    stores = next(iter(found.values()))
    return [stores[slide_id][0] for slide_id in sorted(stores)]
