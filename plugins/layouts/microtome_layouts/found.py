"""Tiles in other tools' files: whose a folder is, and what it says of a slide's tiles."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from microtome.errors import ConfigError, GeometryError, StoreError
from microtome.plugin.options import configure
from microtome.plugin.registry import Registered, get_registry
from microtome.plugin.specs import LayoutSpec, WriterSpec
from microtome.plugin.wording import unknown
from microtome.run.exchange.foreign import check_extent, digest, hashes, in_order
from microtome.slide.types import SlideInfo, SlideRef, TileGeometry, TileGrid
from microtome.store.exchange import FoundSlide, SlideFacts
from microtome.store.identity import IDENTITY
from microtome.store.quality import REASON

if TYPE_CHECKING:
    from microtome.plugin.protocols import Layout

AUTO, OWN = "auto", "microtome"

_LOOKED_AT = 8
"""Files of a folder, to tell whose it is."""

_MAX_UPSAMPLE = 1.05
"""By which a level may be coarser than the tiles, as of the grid."""

_ON_PIXELS = 0.5
"""Level-0 pixels that a tile's corner may be off a pixel of its level, as coordinates are whole."""


class ForeignTiles:
    """The tiles that another tool's files have, read where they lie.

    Args:
        folder: What the tool left.
        name: Of the layout.
        layout: That reads it.
    """

    def __init__(self, folder: Path, name: str, layout: Layout) -> None:
        self._folder, self._name, self._layout = folder, name, layout

    def plan(self, slide: SlideRef, info: SlideInfo) -> tuple[TileGrid, Path]:
        """Read a slide's tiles.

        Raises:
            GeometryError: If there are none.
            LayoutError: If they cannot be read, or are another slide's.
        """
        found = self._of(slide)
        with get_registry().blame("layout", self._name, "used to read tiles"):
            tiled = self._layout.read(found, SlideFacts(info=info))
        check_extent(tiled)
        keep, _ = in_order(slide.slide_id, tiled)
        coords, geometry = tiled.coords[keep], tiled.geometry
        if getattr(self._layout, "any_level", False) and geometry.edge == "unknown":
            geometry = _at_level(geometry, info, coords)
            coords[:, 2:] = (*geometry.read_size, geometry.level)
        columns = {n: column[keep] for n, column in tiled.columns.items() if n != REASON}
        grid = TileGrid(
            coords=coords, geometry=geometry, columns=columns, attributes=tiled.attributes
        )
        return grid, found.coords[0]

    def upstream(self, slide: SlideRef) -> Mapping[str, str]:
        """Hash what a slide's tiles are read from.

        Raises:
            GeometryError: If there is nothing.
            LayoutError: If it cannot be read.
        """
        parts = [_content(path) for path in self._of(slide).coords]
        whole = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        return {"layout": self._name, "coords": whole}

    def slides(self) -> Mapping[str, str]:
        """Name the slides that there are tiles of, and their files as far as that is told.

        Raises:
            LayoutError: If the files of one cannot be read.
        """
        bare = {name: replace(found, features={}) for name, found in self._found.items()}
        return {name: self._layout.read(f, SlideFacts()).source for name, f in bare.items()}

    @cached_property
    def _found(self) -> Mapping[str, FoundSlide]:
        with get_registry().blame("layout", self._name, "used to look for slides"):
            return self._layout.find(self._folder)

    def _of(self, slide: SlideRef) -> FoundSlide:
        """Find a slide by its id, without what encoders gave.

        Raises:
            GeometryError: If there is none.
        """
        found = self._found.get(slide.slide_id)
        if found is not None:
            return replace(found, features={})
        other = next(iter(self._found.values()), None)
        if other is None:
            raise GeometryError(f"{self._folder} holds no slide in the layout {self._name}.")
        head, _, tail = str(other.coords[0]).rpartition(f"/{other.slide_id}")
        raise GeometryError(
            f"{self._folder} holds no tiles of {slide.slide_id}: there is no "
            f"{head}/{slide.slide_id}{tail}."
        )


def make_layout(name: str, step_size: int | None) -> Layout:
    """Make a layout that is to read coordinates alone.

    Raises:
        ConfigError: If there is none of that name.
        MissingDependencyError: If its library is not installed.
    """
    registry = get_registry()
    if name not in (names := sorted(registry.names("layout"))):
        raise ConfigError(unknown("tiler.layout", name, [AUTO, OWN, *names]))
    spec = registry.find("layout", name).spec
    known = {field.name for field in fields(spec.config)}
    # CLAM asks what to call features, of which nothing is read here.
    options = {"step_size": step_size, "encoder": "unread"}
    config = configure(spec, **{n: value for n, value in options.items() if n in known})
    layout: Layout = registry.create("layout", name, config)
    return layout


def recognise(folder: Path) -> str:
    """Tell whose tiles a folder holds: the name of a layout, or `OWN`.

    Raises:
        ConfigError: If nobody's that is known, or several's.
    """
    layouts = [e for e in get_registry().entries("layout") if isinstance(e.spec, LayoutSpec)]
    names = [e.spec.name for e in layouts if not e.missing and _recognises(e, folder)]
    if _holds_finished(folder):
        names.append(OWN)
    if len(names) == 1:
        return names[0]
    if names:
        choices = " or ".join(f"tiler.layout={name}" for name in names)
        raise ConfigError(f"tiler.folder={folder} holds tiles of several kinds: say {choices}.")
    known = ", ".join(sorted(e.spec.name for e in layouts if not e.missing))
    missing = [f"{e.spec.name} ({e.spec.install})" for e in layouts if e.missing]
    aside = f" Not looked for: {', '.join(missing)}." if missing else ""
    raise ConfigError(
        f"tiler.folder={folder} holds neither finished slides nor another tool's files in one of "
        f"the layouts {known}. docs/layouts.md names the folders.{aside}"
    )


def _recognises(entry: Registered, folder: Path) -> bool:
    layout = get_registry().create("layout", entry.spec.name)
    return hasattr(layout, "recognises") and bool(layout.recognises(folder))


def _holds_finished(folder: Path) -> bool:
    """Tell whether stores of microtome's lie in a folder."""
    registry = get_registry()
    for entry in registry.entries("writer"):
        spec = entry.spec
        if not isinstance(spec, WriterSpec) or spec.consumes != "features" or entry.missing:
            continue
        writer = registry.create("writer", spec.name)
        for path in islice(_visible(folder, spec.suffix), _LOOKED_AT):
            with suppress(StoreError), writer.open_stored(path) as stored:
                if IDENTITY in stored.attributes:
                    return True
    return False


def _visible(folder: Path, suffix: str) -> Iterator[Path]:
    return (path for path in folder.rglob(f"*{suffix}") if not path.name.startswith("."))


def _at_level(geometry: TileGeometry, info: SlideInfo, coords: NDArray[np.int32]) -> TileGeometry:
    """Choose the level for tiles of which only the place at level 0 is told.

    The coarsest that is fine enough and on whose pixels all of them begin: between pixels a reader
    would interpolate.
    """
    most = geometry.size_level0[0] / geometry.size * _MAX_UPSAMPLE
    fits = [
        (index, level.downsample)
        for index, level in enumerate(info.levels)
        if level.downsample <= max(1.0, most) and _are_on_pixels(coords, level.downsample)
    ]
    level, downsample = fits[-1]
    width, height = (max(1, round(side / downsample)) for side in geometry.size_level0)
    pitch_x, pitch_y = (max(1, round(step / downsample)) for step in geometry.pitch_level0)
    return replace(
        geometry,
        level=level,
        level_downsample=downsample,
        read_size=(width, height),
        pitch=(pitch_x, pitch_y),
    )


def _are_on_pixels(coords: NDArray[np.int32], downsample: float) -> bool:
    points = coords[:, :2].astype(np.float64)
    off = np.abs(points - np.rint(points / downsample) * downsample)
    return bool(off.max(initial=0.0) <= _ON_PIXELS)


def _content(path: Path) -> str:
    """Hash coordinates and what stands beside them; not features, which may come into a file."""
    if path.suffix != ".h5":
        return next(iter(hashes((path,)).values()))
    from microtome_layouts.hdf5 import points_of

    points, attributes, of_file = points_of(path)
    told = json.dumps([attributes, of_file], sort_keys=True, default=str)
    return hashlib.sha256(f"{digest(points)}{told}".encode()).hexdigest()
