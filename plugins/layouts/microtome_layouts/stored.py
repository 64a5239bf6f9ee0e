"""Tiles that there are: of finished slides, or in other tools' files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from microtome.errors import ConfigError, GeometryError
from microtome.plugin.registry import get_registry
from microtome.plugin.specs import WriterSpec
from microtome.slide.labels import CLASSES, FRACTION, LABEL
from microtome.slide.types import SlideRef, TileGeometry, TileGrid
from microtome.store.attributes import parse_fields
from microtome.store.exchange import read_geometry, read_info
from microtome.store.identity import IDENTITY, fingerprint
from microtome.store.labels import LABELS_IDENTITY, parse_classes
from microtome.store.quality import REASON, parse_quality
from microtome.store.regions import REGION_TILES
from microtome_layouts.common import effective_mpp
from microtome_layouts.found import AUTO, OWN, ForeignTiles, make_layout, recognise

if TYPE_CHECKING:
    from microtome.plugin.protocols import StoredSlide
    from microtome.slide.types import SlideInfo, TissueMask
    from microtome_layouts import StoredConfig

_SAME = 0.01
"""By which a level's downsample may differ between readers, as a share."""

_OF_PIXELS = "has_background"  # found anew when tiles are read, as inspectors' columns are


class _Tiles(Protocol):
    """Where tiles are taken from."""

    def plan(self, slide: SlideRef, info: SlideInfo) -> tuple[TileGrid, Path]:
        """Give a slide's tiles, and the file that they are from."""

    def upstream(self, slide: SlideRef) -> Mapping[str, str]:
        """Say whose they are."""

    def slides(self) -> Mapping[str, str]:
        """Name the slides, and their files as far as that is told."""


class StoredTiler:
    """Places tiles where files that are there have them."""

    def __init__(
        self, config: StoredConfig, slide: SlideRef | None = None, tiles: _Tiles | None = None
    ) -> None:
        self._config, self._slide = config, slide
        self._tiles = tiles or _find_tiles(config)

    def for_slide(self, slide: SlideRef) -> StoredTiler:
        """Give the tiler that knows the slide's id."""
        return StoredTiler(self._config, slide, self._tiles)

    def plan(self, info: SlideInfo, mask: TissueMask) -> TileGrid:
        """Take over the tiles of a slide, whatever its tissue.

        Raises:
            GeometryError: If there is none, or the slide cannot give such tiles.
            LayoutError: If another tool's files cannot be read, or are another slide's.
        """
        slide = self._slide or SlideRef(path=info.path, slide_id=info.path.stem)
        grid, path = self._tiles.plan(slide, info)
        return replace(grid, geometry=_fitted(grid.geometry, info, path))

    def upstream(self, slide: SlideRef) -> Mapping[str, str]:
        """Say whose tiles a slide gets, for its identity.

        Raises:
            GeometryError: If there are none for it.
            LayoutError: If another tool's files cannot be read.
        """
        return self._tiles.upstream(slide)

    def slides(self) -> Mapping[str, str]:
        """Name the slides that there are tiles of, and their files as far as that is told.

        Raises:
            LayoutError: If the files of one cannot be read.
        """
        return self._tiles.slides()


class _FinishedSlides:
    """The tiles of finished slides in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def plan(self, slide: SlideRef, info: SlideInfo) -> tuple[TileGrid, Path]:
        """Read a slide's tiles.

        Raises:
            GeometryError: If there are none, or they are another slide's.
        """
        path, stored = self._open(slide.slide_id)
        with stored:
            _refuse_other(path, stored.attributes, slide)
            geometry = read_geometry(stored.attributes, str(path))
            theirs = read_info(stored.attributes)
            coords = np.asarray(stored.coords, np.int32)
            scores = parse_quality(stored.attributes).values()
            left = {_OF_PIXELS, REASON, *(name for each in scores for name in each.columns)}
            classes = parse_classes(stored.attributes)
            if LABELS_IDENTITY in stored.attributes:  # these may change, and the tiles do not
                left, classes = {*left, LABEL, FRACTION}, ()
            columns = {n: c for n, c in stored.columns.items() if n not in left}
            region_tiles = int(stored.attributes.get(REGION_TILES, 0)) or None
        extent = (info.width, info.height)
        if theirs.width and (theirs.width, theirs.height) != extent:
            raise GeometryError(
                f"{path} is of a slide of {theirs.width} × {theirs.height} px; {info.path} has "
                f"{extent[0]} × {extent[1]}."
            )
        points = coords[:, :2]
        # Of a region that overhangs, whole tiles may lie beyond the slide.
        more = np.multiply(geometry.size_level0, (region_tiles or 1) - 1)
        if ((points < 0) | (points >= extent + more)).any():
            raise GeometryError(f"{path}: not all of its tiles begin on {info.path}.")
        grid = TileGrid(
            coords=coords,
            geometry=geometry,
            columns=columns,
            region_tiles=region_tiles,
            attributes={CLASSES: list(classes)} if classes else {},
        )
        return grid, path

    def upstream(self, slide: SlideRef) -> Mapping[str, str]:
        """Give the identity of a slide's coordinates.

        Raises:
            GeometryError: If there are none.
        """
        _, stored = self._open(slide.slide_id)
        with stored:
            return {"coords": str(stored.attributes.get(IDENTITY))}

    def slides(self) -> Mapping[str, str]:
        """Name the finished slides, and the files that they were made of."""
        registry, found = get_registry(), {}
        for entry in registry.entries("writer"):
            spec = entry.spec
            if not isinstance(spec, WriterSpec) or spec.consumes != "features" or entry.missing:
                continue
            writer = registry.create("writer", spec.name)
            for path in sorted(self._folder.rglob(f"*{spec.suffix}")):
                name = path.relative_to(self._folder).as_posix().removesuffix(spec.suffix)
                if not path.name.startswith("."):
                    with writer.open_stored(path) as stored:
                        found[name] = str(stored.attributes.get("wsi_path", ""))
        return found

    def _open(self, slide_id: str) -> tuple[Path, StoredSlide]:
        registry = get_registry()
        for entry in registry.entries("writer"):
            spec = entry.spec
            if isinstance(spec, WriterSpec) and spec.consumes == "features":
                path = self._folder / f"{slide_id}{spec.suffix}"
                if path.exists():
                    return path, registry.create("writer", spec.name).open_stored(path)
        raise GeometryError(f"{self._folder} holds no finished slide named {slide_id}.")


def _find_tiles(config: StoredConfig) -> _Tiles:
    """See what a folder holds.

    Raises:
        ConfigError: If there is no folder, or nothing in it, or it is not clear what.
    """
    folder = Path(config.folder)
    if not config.folder or not folder.is_dir():
        wrong = "tiler=stored is given no tiler.folder"
        wrong = f"tiler.folder={config.folder} is no folder" if config.folder else wrong
        raise ConfigError(
            f"{wrong}: name the folder with its finished slides, tiler.folder=OUTPUT/patches, or "
            "with another tool's files."
        )
    name = recognise(folder) if config.layout == AUTO else config.layout
    if name == OWN and (folder / "patches").is_dir():
        raise ConfigError(
            f"tiler.folder={config.folder} is a whole output: name the folder with its finished "
            "slides, tiler.folder=OUTPUT/patches."
        )
    if config.step_size is not None and name != "clam":
        raise ConfigError(
            f"tiler.step_size={config.step_size} is for CLAM's files; {name} says the stride."
        )
    if name == OWN:
        return _FinishedSlides(folder)
    return ForeignTiles(folder, name, make_layout(name, config.step_size))


def _refuse_other(path: Path, attributes: Mapping[str, Any], slide: SlideRef) -> None:
    """See that a finished slide was made of this very slide, where it says of which.

    Raises:
        GeometryError: If it was made of another.
    """
    fields = parse_fields(attributes)
    known = fields.get("slide") or fields.get("tissue", {}).get("slide")
    if known and known != fingerprint(slide.path, slide.companions):
        raise GeometryError(
            f"{path} holds the tiles of another slide, {attributes.get('wsi_path')}, whose content "
            f"is not that of {slide.path}. Give the folder with this slide's, or tell slides apart "
            "with slide_id=relpath in both runs."
        )


def _fitted(geometry: TileGeometry, info: SlideInfo, path: Path) -> TileGeometry:
    """Give the geometry on this very slide.

    Raises:
        GeometryError: If the slide lacks the level.
    """
    levels = [level.downsample for level in info.levels]
    known = geometry.level < len(levels)
    if not known or abs(levels[geometry.level] / geometry.level_downsample - 1) > _SAME:
        listed = ", ".join(f"{downsample:g}" for downsample in levels)
        raise GeometryError(
            f"{path} has tiles of level {geometry.level}, a downsample of "
            f"{geometry.level_downsample:g}; {info.path} has the downsamples {listed}."
        )
    return replace(
        geometry,
        level_downsample=levels[geometry.level],
        edge="pad",
        resample="pil-bilinear" if geometry.resample == "unknown" else geometry.resample,
        effective_mpp=effective_mpp(info, geometry),
    )
