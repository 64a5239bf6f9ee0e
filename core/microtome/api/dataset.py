"""Tiles of slides as a dataset, their pixels read while a network trains."""

from __future__ import annotations

import math
import operator
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from microtome.api.results import find_results, open_result
from microtome.api.slide import Slide
from microtome.errors import ConfigError, InputError, SlideError, SlideOpenError
from microtome.plugin.options import configure
from microtome.plugin.registry import get_registry
from microtome.plugin.specs import EncoderSpec, Transform
from microtome.run.inputs.companions import Companions
from microtome.run.settings import Choice
from microtome.slide.batch import TileBatch
from microtome.slide.imaging import read_tiles
from microtome.slide.opening import AUTO, OpenedSlide, open_slide
from microtome.slide.resampling import resample_tiles
from microtome.slide.types import SlideRef, TileGeometry, TileGrid
from microtome.store.attributes import parse_fields
from microtome.store.exchange import read_geometry, read_info
from microtome.store.identity import fingerprint

if TYPE_CHECKING:
    from PIL.Image import Image

    from microtome.plugin.protocols import StoredSlide

Source = str | Path | tuple[Slide | str | Path, TileGrid]
"""A finished slide's file, a folder of them, or a slide and its grid."""

Columns = Mapping[str, NDArray[Any]]

_UNKNOWN = "unknown"  # how other tools' tiles were resampled
_RECIPE = "pil-bilinear"
_SAME_DOWNSAMPLE = 0.01


@dataclass(frozen=True, kw_only=True)
class _Origin:
    """A slide that tiles are of, and how it is opened again in another process.

    Attributes:
        ref: The slide.
        reader: That its tiles were placed with, or that was asked for.
        geometry: Of the tiles.
        extent: (width, height) of level 0; 0 where not known.
        print: Of its content; empty where not known.
        config: Of a reader that was asked for.
    """

    ref: SlideRef
    reader: str
    geometry: TileGeometry
    extent: tuple[int, int] = (0, 0)
    print: str = ""
    config: object | None = None

    def open(self) -> OpenedSlide:
        """Open it and see that it is the slide that the tiles were placed on.

        Raises:
            SlideOpenError: If it is not, or cannot be opened.
        """
        path = self.ref.path
        if not path.is_file():
            raise SlideOpenError(
                f"{path} is not there. Say where the slide is: on the command line name the "
                "slides, or a manifest of them; in Python give TileDataset(…, slides="
                f"{{{self.ref.slide_id!r}: PATH}})."
            )
        if self.print and fingerprint(path, Companions().of(path).companions) != self.print:
            raise SlideOpenError(f"{path} is another file than its tiles were placed on.")
        slide = open_slide(self.ref, reader=self.reader, config=self.config)
        if fault := self._fault(slide):
            slide.close()
            raise SlideOpenError(f"{path} {fault}, unlike the slide that its tiles are of.")
        return slide

    def _fault(self, slide: OpenedSlide) -> str:
        info, geometry = slide.info, self.geometry
        if all(self.extent) and self.extent != (info.width, info.height):
            return f"has {info.width} × {info.height} px"
        if geometry.level >= len(info.levels):
            return f"has no level {geometry.level}"
        found = info.levels[geometry.level].downsample
        if not math.isclose(found, geometry.level_downsample, rel_tol=_SAME_DOWNSAMPLE):
            return f"has a level {geometry.level} of downsample {found:g}"
        return ""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Tiles:
    """The tiles of one slide that a dataset has."""

    origin: _Origin
    coords: NDArray[np.int32]
    columns: Columns
    rows: NDArray[np.int64]


class TileDataset:
    """The tiles of some slides, read one by one when they are asked for.

    A map-style dataset as `torch.utils.data.DataLoader` takes it, and of use without torch. Pixels
    are those of `Slide.read`, and so of a run, bit for bit.

    ::

        tiles = microtome.TileDataset(
            "out", keep=lambda columns: columns["tissue_fraction"] > 0.5, transform=augment
        )
        loader = DataLoader(tiles, batch_size=64, shuffle=True, num_workers=8)

    It pickles as paths and coordinates: every worker opens slides by itself, when it first reads
    one, and holds at most ``max_open`` of them. Within a process it is for one thread at a time.

    An item is a mapping that torch's default collate function takes: ``image``, ``coords`` ((5,)
    int32 ``x, y, read_w, read_h, level``), ``slide_id``, ``row`` (of the slide's file or grid), and
    by their names the columns that all slides have, such as ``tissue_fraction``.

    Attributes:
        coords: (N, 5) int32 of all tiles.
        slide_ids: Names of the slides, in the order given.
        slide_index: (N,) int64, the place in ``slide_ids`` of each tile's slide.
        rows: (N,) int64, each tile's row in the file or grid of its slide.
        columns: (N,) each, those that all slides have.
        size: Side of a tile in pixels.
    """

    def __init__(
        self,
        sources: Source | Sequence[Source],
        *,
        transform: str | Callable[[Image], Any] | None = None,
        keep: Callable[[Columns], NDArray[np.bool_]] | None = None,
        slides: Mapping[str, str | Path] = MappingProxyType({}),
        max_open: int = 16,
        reader: str | Choice = AUTO,
    ) -> None:
        """Find the tiles; no slide is opened.

        Args:
            sources: Files of finished slides (``out/patches/a.h5``, ``a.zarr``), the folder of an
                output or of one of its tilings, or pairs of a slide and a grid; one or several.
            transform: Given each tile as a Pillow image, gives what ``image`` is to be; for workers
                that are spawned it has to pickle. Or an encoder's name, for the preprocessing on
                its card: ``image`` then is (3, height, width) float32. By default (3, size, size)
                uint8.
            keep: Given a slide's columns, gives (n,) bool: which of its tiles to take.
            slides: Where slides are by id, if not where their files say.
            max_open: Slides that a process holds open.
            reader: Of all slides, by name or as a run chose it; ``auto`` takes the one that a
                slide's tiles were placed with.

        Raises:
            InputError: If there are no finished slides.
            StoreError: If one cannot be read.
            ConfigError: If tiles differ in size, or an argument makes no sense.
            UnknownPluginError: If there is no such reader.
        """
        if max_open < 1:
            raise ConfigError(f"max_open={max_open} leaves no slide to read from.")
        found = [_kept(tiles, keep) for tiles in _find(sources, slides)]
        self.size = _one_size(found)
        self.slide_ids = tuple(tiles.origin.ref.slide_id for tiles in found)
        self.coords = np.concatenate([tiles.coords for tiles in found])
        self.rows = np.concatenate([tiles.rows for tiles in found])
        counts = [len(tiles.rows) for tiles in found]
        self.slide_index = np.repeat(np.arange(len(found)), counts)
        shared = set.intersection(*(set(tiles.columns) for tiles in found))
        self.columns: dict[str, NDArray[Any]] = {
            name: np.concatenate([tiles.columns[name] for tiles in found])
            for name in found[0].columns
            if name in shared
        }
        self._slides = _OpenSlides([_read_by(tiles.origin, reader) for tiles in found], max_open)
        self._transform = _find_transform(transform) if isinstance(transform, str) else transform

    def __len__(self) -> int:
        """Count the tiles."""
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read a tile.

        Raises:
            IndexError: If there is no such tile.
            SlideOpenError: If its slide cannot be opened or has changed; names it.
            SlideReadError: If its pixels cannot be decoded; names the slide.
        """
        row = operator.index(index)
        if not -len(self) <= row < len(self):
            raise IndexError(f"there is no tile {row}: the dataset has {len(self)}")
        row %= len(self)
        slide = int(self.slide_index[row])
        columns = {name: column[row].item() for name, column in self.columns.items()}
        return {
            **columns,
            "image": self._finish(self._slides.read(slide, self.coords[row]), row),
            "coords": self.coords[row].copy(),
            "slide_id": self.slide_ids[slide],
            "row": int(self.rows[row]),
        }

    def close(self) -> None:
        """Release the slides that this process holds open; they are opened again by need."""
        self._slides.close()

    def __repr__(self) -> str:
        """Say how many tiles there are, of how many slides."""
        count = len(self.slide_ids)
        of = f"{count} slides" if count != 1 else f"slide {self.slide_ids[0]}"
        return f"TileDataset({len(self)} tiles of {self.size} px, {of})"

    def _finish(self, tile: NDArray[np.uint8], row: int) -> Any:
        """Make an item's image of (size, size, 3) pixels."""
        if self._transform is None:
            return np.ascontiguousarray(tile.transpose(2, 0, 1))
        if isinstance(self._transform, Transform):
            batch = TileBatch(tile[np.newaxis], self.coords[row : row + 1])
            return batch.array(self._transform)[0]
        from PIL import Image

        return self._transform(Image.fromarray(tile))


class _OpenSlides:
    """Slides that this process holds open, those read last."""

    def __init__(self, origins: Sequence[_Origin], most: int) -> None:
        self._origins, self._most = origins, most
        self._held: OrderedDict[int, OpenedSlide] = OrderedDict()
        self._process = os.getpid()

    def read(self, number: int, coords: NDArray[np.int32]) -> NDArray[np.uint8]:
        """Read a tile of a slide: (size, size, 3) uint8."""
        origin = self._origins[number]
        geometry, boxes = origin.geometry, coords[np.newaxis, :4].astype(np.int64)
        recipe = _RECIPE if geometry.resample == _UNKNOWN else geometry.resample
        try:
            pixels, _ = read_tiles(self._open(number).reader, int(coords[4]), boxes)
        except SlideError as error:
            error.args = (f"Slide {origin.ref.slide_id}: {error}",)
            raise
        tile: NDArray[np.uint8] = resample_tiles(pixels, geometry.size, recipe)[0]
        return tile

    def close(self) -> None:
        """Release them."""
        while self._held:
            self._held.popitem()[1].close()

    def _open(self, number: int) -> OpenedSlide:
        if self._process != os.getpid():
            # A fork: what was open shares its place in the file with the parent's.
            self._held, self._process = OrderedDict(), os.getpid()
        if number not in self._held:
            while len(self._held) >= self._most:
                self._held.popitem(last=False)[1].close()
            self._held[number] = self._origins[number].open()
        self._held.move_to_end(number)
        return self._held[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": OrderedDict()}


def _find(sources: Source | Sequence[Source], slides: Mapping[str, str | Path]) -> Iterator[_Tiles]:
    given = [sources] if isinstance(sources, str | Path) or _is_pair(sources) else list(sources)
    if not given:
        raise InputError("A dataset needs at least one finished slide, or a slide and its grid.")
    for source in given:
        if isinstance(source, str | Path):
            for path in find_results(Path(source)):
                with open_result(path) as stored:
                    yield _of_stored(stored, path, slides)
        elif _is_pair(source):
            yield _of_grid(*source)
        else:
            raise ConfigError(
                f"A dataset is made of finished slides' files, or of pairs (slide, grid), not of "
                f"{type(source).__name__}."
            )


def _is_pair(source: object) -> TypeGuard[tuple[Slide | str | Path, TileGrid]]:
    return isinstance(source, tuple) and len(source) == 2 and isinstance(source[1], TileGrid)


def _of_stored(stored: StoredSlide, path: Path, slides: Mapping[str, str | Path]) -> _Tiles:
    attributes, info = stored.attributes, read_info(stored.attributes)
    slide_id = str(attributes.get("slide_id", path.stem))
    fields = parse_fields(attributes)
    tissue = fields.get("tissue")
    known = tissue.get("slide") if isinstance(tissue, Mapping) else fields.get("slide")
    reader = str(attributes.get("reader"))
    origin = _Origin(
        ref=SlideRef(
            path=Path(slides.get(slide_id, info.path)),
            slide_id=slide_id,
            mpp=info.resolution.mpp,
        ),
        reader=reader if reader in get_registry().names("reader") else AUTO,
        geometry=read_geometry(attributes, str(path)),
        extent=(info.width, info.height),
        print=str(known or ""),
    )
    columns = {name: np.asarray(column) for name, column in stored.columns.items()}
    return _all(origin, np.asarray(stored.coords), columns)


def _of_grid(slide: Slide | str | Path, grid: TileGrid) -> _Tiles:
    if isinstance(slide, Slide):
        info = slide.info
        ref = SlideRef(path=info.path, slide_id=info.path.stem, mpp=info.resolution.mpp)
        origin = _Origin(
            ref=ref, reader=info.reader, geometry=grid.geometry, extent=(info.width, info.height)
        )
    else:
        ref = SlideRef(path=Path(slide), slide_id=Path(slide).stem)
        origin = _Origin(ref=ref, reader=AUTO, geometry=grid.geometry)
    return _all(origin, grid.coords, dict(grid.columns))


def _all(origin: _Origin, coords: NDArray[np.int32], columns: Columns) -> _Tiles:
    rows = np.arange(len(coords), dtype=np.int64)
    return _Tiles(origin=origin, coords=coords, columns=columns, rows=rows)


def _read_by(origin: _Origin, reader: str | Choice) -> _Origin:
    """Let a slide be opened by the reader that was asked for, if one was.

    Raises:
        UnknownPluginError: If there is no such reader.
    """
    choice = Choice(plugin=reader) if isinstance(reader, str) else reader
    if choice.plugin == AUTO:
        return origin
    name = get_registry().find("reader", choice.plugin).spec.name
    return replace(origin, reader=name, config=choice.config)


def _kept(tiles: _Tiles, keep: Callable[[Columns], NDArray[np.bool_]] | None) -> _Tiles:
    if keep is None:
        return tiles
    try:
        chosen = np.asarray(keep(tiles.columns))
    except KeyError as error:
        raise ConfigError(
            f"keep asks for a column {error} of {tiles.origin.ref.slide_id}, which has "
            f"{', '.join(tiles.columns) or 'none'}."
        ) from error
    if chosen.shape != tiles.rows.shape or chosen.dtype != np.bool_:
        raise ConfigError(
            f"keep is to give {len(tiles.rows)} booleans for {tiles.origin.ref.slide_id}, a tile "
            f"each, and gave {chosen.dtype} of shape {chosen.shape}."
        )
    return _Tiles(
        origin=tiles.origin,
        coords=tiles.coords[chosen],
        columns={name: column[chosen] for name, column in tiles.columns.items()},
        rows=tiles.rows[chosen],
    )


def _one_size(found: Sequence[_Tiles]) -> int:
    sizes = {tiles.origin.geometry.size: tiles.origin.ref.slide_id for tiles in found}
    if len(sizes) > 1:
        told = ", ".join(f"{size} px ({slide_id})" for size, slide_id in sizes.items())
        raise ConfigError(f"Tiles of {told} fit into no batch. Make a dataset of each tiling.")
    return next(iter(sizes))


def _find_transform(name: str) -> Transform:
    """Find the preprocessing of an encoder.

    Raises:
        UnknownPluginError: If there is no such encoder.
        ConfigError: If it takes pixels as they are.
    """
    registry = get_registry()
    spec = registry.find("encoder", name).spec
    card = spec.card if isinstance(spec, EncoderSpec) else None
    card = card or registry.create("encoder", spec.name, configure(spec)).card
    if card.transform is None:
        raise ConfigError(f"{spec.name} takes pixels as they are: leave transform out.")
    transform: Transform = card.transform
    return transform
