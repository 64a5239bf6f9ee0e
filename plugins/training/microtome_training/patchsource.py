"""Finds the tiles of a training in a patch store, whichever writer made it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from microtome.errors import StoreError, TaskError
from microtome.plugin.specs import Transform, WriterSpec
from microtome.slide.batch import prepare_tiles
from microtome.store.patches import LABELLED
from microtome.store.survey import written

if TYPE_CHECKING:
    from microtome.plugin.protocols import StoredPatches
    from microtome.plugin.registry import Registry
    from microtome_training.tiles import Tiles


class PatchSource:
    """Pixels out of a patch store, one store a slide.

    Args:
        stores: Of the slides.
        slide: (n,) index into ``stores`` of each tile.
        place: (n,) its row there.
        transform: Only its geometry counts.
        size: Side of the stored tiles in pixels.
    """

    def __init__(
        self,
        stores: Sequence[StoredPatches],
        slide: NDArray[np.int64],
        place: NDArray[np.int64],
        *,
        transform: Transform,
        size: int,
    ) -> None:
        self._stores, self._slide, self._place = list(stores), slide, place
        self._transform = transform
        self.row_bytes = (transform.resize or size) ** 2 * 3

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Read and prepare tiles, those of a store at once."""
        slide, place = self._slide[rows], self._place[rows]
        out: NDArray[np.uint8] | None = None
        for number in np.unique(slide).tolist():
            mine = np.nonzero(slide == number)[0]
            pixels = prepare_tiles(self._stores[number].read(place[mine]), self._transform)
            if out is None:
                out = np.empty((len(rows), *pixels.shape[1:]), np.uint8)
            out[mine] = pixels
        return np.empty((0, 0, 0, 3), np.uint8) if out is None else out


@dataclass(frozen=True, eq=False, kw_only=True)
class FoundPatches:
    """Where a patch store has the tiles of a training.

    Attributes:
        writer: The plugin that wrote it.
        stores: Of the slides.
        has: (n,) bool, which of the tiles it has.
        slide: (m,) index into ``stores`` of those.
        place: (m,) their rows there.
    """

    writer: str
    stores: tuple[StoredPatches, ...]
    has: NDArray[np.bool_]
    slide: NDArray[np.int64]
    place: NDArray[np.int64]

    def source(self, transform: Transform, size: int) -> PatchSource:
        """Give the pixels of the tiles that are there."""
        return PatchSource(self.stores, self.slide, self.place, transform=transform, size=size)


def find_patches(tiles: Tiles, folder: Path, registry: Registry) -> FoundPatches:
    """Find tiles by their keys in the patch store of a folder.

    Args:
        tiles: What is looked for; all are labelled.
        folder: In which a writer left its stores, or the root of a tiling with one such folder.
        registry: The plugins.

    Raises:
        TaskError: If there is no patch store, there are several, it holds none of the tiles, or a
            tile has another label there.
        StoreError: If a store cannot be read.
    """
    spec, paths = _find_stores(folder, registry)
    writer = registry.create("writer", spec.name)
    stores = tuple(writer.open_patches(path) for path in paths)
    where = {key: (n, row) for n, store in enumerate(stores) for row, key in enumerate(store.keys)}
    keys = tiles.keys()
    found = [where.get(key) for key in keys]
    has = np.array([each is not None for each in found], bool)
    if not has.any():
        raise TaskError(
            f"The patch store in {folder} ({spec.name}) holds none of the {len(found)} labelled "
            "tiles: it is of other slides or of another tiling (tiler.name=)."
        )
    places = np.array([each for each in found if each is not None], np.int64)
    patches = FoundPatches(
        writer=spec.name, stores=stores, has=has, slide=places[:, 0], place=places[:, 1]
    )
    _check_labels(tiles.take(has), patches, folder)
    return patches


def _find_stores(folder: Path, registry: Registry) -> tuple[WriterSpec, list[Path]]:
    found = {spec.name: (spec, paths) for spec, paths in _all_stores(folder, registry)}
    if not found:
        known = [spec.name for spec in _specs(registry)]
        raise TaskError(
            f"{folder} holds no patch store. Write one first, writer={' or '.join(known)}, and "
            "give its folder: train.patches_folder=."
        )
    if len(found) > 1:
        raise TaskError(
            f"{folder} holds patch stores of {', '.join(found)}: give the folder of one, "
            "train.patches_folder=."
        )
    return next(iter(found.values()))


def _all_stores(folder: Path, registry: Registry) -> Iterator[tuple[WriterSpec, list[Path]]]:
    for spec in _specs(registry):
        last = spec.folder.rpartition("/")[2]
        for top in dict.fromkeys((folder / spec.folder, folder / last, folder)):
            paths = [path for path, _, _ in written(top, spec)] if top.is_dir() else []
            if paths and (top != folder or _reads(spec, paths[0], registry)):
                yield spec, paths
                break


def _reads(spec: WriterSpec, path: Path, registry: Registry) -> bool:
    """Tell whether a file is a writer's, and not another's of the same suffix."""
    try:
        registry.create("writer", spec.name).read_record(path)
    except StoreError:
        return False
    return True


def _specs(registry: Registry) -> list[WriterSpec]:
    specs = [entry.spec for entry in registry.entries("writer") if not entry.missing]
    return [s for s in specs if isinstance(s, WriterSpec) and s.consumes == LABELLED]


def _check_labels(tiles: Tiles, patches: FoundPatches, folder: Path) -> None:
    """See that every tile has one label in both places.

    Raises:
        TaskError: If one has another.
    """
    names = [np.array(store.classes, object)[store.labels] for store in patches.stores]
    pairs = zip(patches.slide.tolist(), patches.place.tolist(), strict=True)
    there = [names[slide][place] for slide, place in pairs]
    here = [tiles.classes[label] for label in tiles.label.tolist()]
    for key, one, other in zip(tiles.keys(), here, there, strict=True):
        if one != other:
            raise TaskError(
                f"{key} is labelled {one} in the output and {other} in the patch store {folder}: "
                "write that again."
            )
