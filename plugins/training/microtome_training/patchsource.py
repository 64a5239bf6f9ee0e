"""Finds the tiles of a training in a patch store, whichever writer made it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from microtome.errors import StoreError, TaskError
from microtome.plugin.specs import Transform, WriterSpec
from microtome.slide.batch import prepare_tiles
from microtome.store.exchange import read_geometry
from microtome.store.identity import IDENTITY
from microtome.store.patches import LABELLED
from microtome.store.survey import written
from microtome_training.reading import rows_by_slide
from microtome_training.tiles import tell_some

if TYPE_CHECKING:
    from microtome.plugin.protocols import StoredPatches
    from microtome.plugin.registry import Registry
    from microtome.slide.types import TileGeometry
    from microtome_training.tiles import TiledSlide, Tiles

_MPP_SHARE = 1e-3
"""By which µm per pixel may differ that were written down with few digits."""


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
class _Places:
    """Where the tiles of a slide are.

    Attributes:
        codes: (m,) int64, each tile's place on the slide as one number, rising.
        store: (m,) index of its store.
        row: (m,) its row there.
    """

    codes: NDArray[np.int64]
    store: NDArray[np.int64]
    row: NDArray[np.int64]

    def find(self, coords: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Give the stores and rows of tiles, -1 for those that are not there."""
        codes = _codes(coords)
        if not len(self.codes):
            return np.full(len(codes), -1), np.full(len(codes), -1)
        at = np.minimum(np.searchsorted(self.codes, codes), len(self.codes) - 1)
        has = self.codes[at] == codes
        return np.where(has, self.store[at], -1), np.where(has, self.row[at], -1)


@dataclass(frozen=True, eq=False, kw_only=True)
class FoundPatches:
    """Where a patch store has the tiles of a training.

    Attributes:
        writer: The plugin that wrote it.
        folder: It.
        stores: Of the slides.
        slide: (n,) index into ``stores`` of each tile; -1 for one that it has not.
        place: (n,) the tiles' rows there.
        places: Of all its tiles, by slide id.
    """

    writer: str
    folder: Path
    stores: tuple[StoredPatches, ...]
    slide: NDArray[np.int64]
    place: NDArray[np.int64]
    places: Mapping[str, _Places]

    @property
    def has(self) -> NDArray[np.bool_]:
        """(n,) bool, which of the tiles it has."""
        return self.slide >= 0

    def take(self, rows: NDArray[np.bool_]) -> FoundPatches:
        """Give some of the tiles, by a mask."""
        return replace(self, slide=self.slide[rows], place=self.place[rows])

    def identities(self) -> dict[str, str]:
        """Say what made the stored pixels, by slide id: in which format, for one."""
        used = [self.stores[number] for number in np.unique(self.slide[self.slide >= 0])]
        return {store.slide_id: str(store.attributes.get(IDENTITY, "")) for store in used}

    def source(self, transform: Transform, size: int) -> PatchSource:
        """Give the pixels of the tiles, all of which are there."""
        return PatchSource(self.stores, self.slide, self.place, transform=transform, size=size)

    def picture(self, slide_id: str, place: NDArray[np.int32]) -> NDArray[np.uint8]:
        """Give a tile as it is stored, (h, w, 3).

        Raises:
            TaskError: If it is not there.
            StoreError: If it cannot be read.
        """
        there = self.places.get(slide_id)
        (store,), (row,) = ([-1], [-1]) if there is None else there.find(place[np.newaxis])
        if store < 0:
            raise TaskError(f"{self.folder} has no such tile of {slide_id}")
        pixels: NDArray[np.uint8] = self.stores[store].read([row])[0]
        return pixels


def find_patches(
    tiles: Tiles,
    folders: Sequence[Path],
    registry: Registry,
    *,
    wanted: NDArray[np.bool_] | None = None,
) -> FoundPatches:
    """Find tiles by their slide and place in the only patch store of some folders.

    Args:
        tiles: What is looked for; all are labelled.
        folders: Each one in which a writer left its stores, or the root of a tiling.
        registry: The plugins.
        wanted: (n,) bool, the tiles of which it must have some of each slide and class; all if
            None.

    Raises:
        TaskError: If there is no patch store or there are several, it lacks a whole slide or class,
            or a tile has another size, resolution or label there, or is there twice.
        StoreError: If a store cannot be read.
    """
    spec, folder, paths = _find_stores(folders, registry)
    writer = registry.create("writer", spec.name)
    stores = tuple(writer.open_patches(path) for path in paths)
    places = _index(stores, paths)
    slide, place = np.full(len(tiles), -1), np.full(len(tiles), -1)
    for one, mine in zip(tiles.slides, rows_by_slide(tiles), strict=True):
        if len(mine) and one.slide_id in places:
            slide[mine], place[mine] = places[one.slide_id].find(tiles.coords[mine])
            for number in np.unique(slide[mine][slide[mine] >= 0]).tolist():
                there = mine[slide[mine] == number]
                _compare(one, tiles.take(there), stores[number], place[there], paths[number])
    found = FoundPatches(
        writer=spec.name, folder=folder, stores=stores, slide=slide, place=place, places=places
    )
    _refuse_missing(tiles, found, np.ones(len(tiles), bool) if wanted is None else wanted)
    return found


def _codes(coords: NDArray[np.int32]) -> NDArray[np.int64]:
    """Give each tile's place as one number."""
    x, y = coords[:, 0].astype(np.int64), coords[:, 1].astype(np.int64)
    return (y << 32) + x


def _index(stores: Sequence[StoredPatches], paths: Sequence[Path]) -> dict[str, _Places]:
    """Say in which store and row the tiles of each slide are.

    Raises:
        TaskError: If a tile is in two stores.
    """
    of_slide: dict[str, list[int]] = {}
    for number, store in enumerate(stores):
        of_slide.setdefault(store.slide_id, []).append(number)
    places = {}
    for slide_id, numbers in of_slide.items():
        codes = np.concatenate([_codes(stores[number].coords) for number in numbers])
        counts = [len(stores[number]) for number in numbers]
        row = np.concatenate([np.arange(count) for count in counts])
        order = np.argsort(codes, kind="stable")
        found = _Places(codes=codes[order], store=np.repeat(numbers, counts)[order], row=row[order])
        twice = np.nonzero(np.diff(found.codes) == 0)[0]
        if len(twice):
            first, second = (int(found.store[at]) for at in (twice[0], twice[0] + 1))
            raise TaskError(
                f"{stores[first].keys[int(found.row[twice[0]])]} is in two patch stores, "
                f"{paths[first]} and {paths[second]}, and nobody can tell which one is meant. Move "
                "one of them away."
            )
        places[slide_id] = found
    return places


def _find_stores(
    folders: Sequence[Path], registry: Registry
) -> tuple[WriterSpec, Path, list[Path]]:
    found = [each for folder in folders for each in _all_stores(folder, registry)]
    where = " and ".join(map(str, folders))
    if not found:
        known = [spec.name for spec in _specs(registry)]
        raise TaskError(
            f"{where} holds no patch store. Write one first, writer={' or '.join(known)}, and "
            "give its folder: train.patches_folder=."
        )
    if len(found) > 1:
        told = ", ".join(f"{top} ({spec.name})" for spec, top, _ in found)
        raise TaskError(
            f"{where} holds {len(found)} patch stores: choose one with train.patches_folder=, of "
            f"{told}."
        )
    return found[0]


def _all_stores(folder: Path, registry: Registry) -> Iterator[tuple[WriterSpec, Path, list[Path]]]:
    is_tiling = (folder / "status").is_dir()
    for spec in _specs(registry):
        last = spec.folder.rpartition("/")[2]
        tops = (folder / spec.folder, folder / last, *(() if is_tiling else (folder,)))
        for top in dict.fromkeys(tops):
            paths = [path for path, _, _ in written(top, spec)] if top.is_dir() else []
            if paths and (top != folder or _reads(spec, paths[0], registry)):
                yield spec, top, paths
                break


def _reads(spec: WriterSpec, path: Path, registry: Registry) -> bool:
    """Tell whether a file is a patch store of a writer's, and not another's of the same suffix."""
    try:
        registry.create("writer", spec.name).open_patches(path).close()
    except StoreError:
        return False
    return True


def _specs(registry: Registry) -> list[WriterSpec]:
    specs = [entry.spec for entry in registry.entries("writer") if not entry.missing]
    return [s for s in specs if isinstance(s, WriterSpec) and s.consumes == LABELLED]


def _compare(
    slide: TiledSlide,
    tiles: Tiles,
    store: StoredPatches,
    place: NDArray[np.int64],
    path: Path,
) -> None:
    """See that a slide's tiles show the same and have the same labels in both places.

    Raises:
        TaskError: If they do not.
        LayoutError: If the store does not say what its tiles are.
    """
    there, here = read_geometry(store.attributes, str(path)), slide.geometry
    if told := _difference(here, there):
        raise TaskError(
            f"{slide.slide_id}: {told} in the patch store {path}. Give the store of this tiling "
            "(train.patches_folder=), or choose the tiling of that store (tiler.name=)."
        )
    other = np.nonzero((store.coords[place] != tiles.coords).any(1))[0]
    if len(other):
        row = int(other[0])
        ours, theirs = (_tell_place(each[row]) for each in (tiles.coords, store.coords[place]))
        raise TaskError(
            f"{tiles.take(other[:1]).keys()[0]} is read from {ours} in the output, and from "
            f"{theirs} in the patch store {path}: it is of another magnification. Give the store "
            "of this tiling, train.patches_folder=."
        )
    classes = np.array([*store.classes], object)[store.labels[place]]
    named = np.array([*tiles.classes], object)[tiles.label]
    other = np.nonzero(classes != named)[0]
    if len(other):
        row = int(other[0])
        raise TaskError(
            f"{tiles.take(other[:1]).keys()[0]} is labelled {named[row]} in the output and "
            f"{classes[row]} in the patch store {path}: write that again."
        )


def _difference(here: TileGeometry, there: TileGeometry) -> str:
    """Say in what tiles differ; empty if they are alike as far as both are known."""
    if here.size != there.size:
        return f"tiles are of {here.size} px in the output, and of {there.size} px"
    one, other = here.effective_mpp, there.effective_mpp
    if one is None or other is None or np.allclose(one, other, rtol=_MPP_SHARE, atol=0):
        return ""
    return f"tiles have {one[0]:.4g} µm per pixel in the output, and {other[0]:.4g}"


def _tell_place(place: NDArray[np.int32]) -> str:
    return f"{place[2]} × {place[3]} px of level {place[4]}"


def _refuse_missing(tiles: Tiles, found: FoundPatches, wanted: NDArray[np.bool_]) -> None:
    """See that some tiles of each slide and class are there.

    Raises:
        TaskError: If of one there is none.
    """
    where, there = f"The patch store {found.folder} ({found.writer})", wanted & found.has
    if not there.any():
        raise TaskError(
            f"{where} holds none of the {int(wanted.sum())} labelled tiles: it is of other slides "
            "or of another tiling (tiler.name=)."
        )
    absent = np.setdiff1d(tiles.slide[wanted], tiles.slide[there])
    if len(absent):
        names = [tiles.slides[number].slide_id for number in absent.tolist()]
        raise TaskError(
            f"{where} has no tile of {tell_some(names)}. Write those too (writer={found.writer}), "
            "leave the slides out, or name the sample that it holds (train.sample=)."
        )
    lost = np.setdiff1d(tiles.label[wanted], tiles.label[there]).tolist()
    if lost:
        raise TaskError(
            f"{where} has no tile of the class {tiles.classes[lost[0]]}: write it again."
        )
