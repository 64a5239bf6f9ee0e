"""What a model is given of stored tiles: pixels of their slides, or features beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import SlideOpenError, StoreError, TaskError
from microtome.run.inputs.companions import Companions
from microtome.run.planning.budget import cpu_budget
from microtome.run.slides.pixels import iterate_tiles
from microtome.slide.opening import AUTO, OpenedSlide, open_slide
from microtome.slide.types import TileGrid
from microtome.store.attributes import parse_fields
from microtome.store.identity import IDENTITY, difference, fingerprint

if TYPE_CHECKING:
    from microtome.plugin.registry import Registry
    from microtome.run.job import TaskJob
    from microtome_training.tiles import TiledSlide, Tiles

Batch = tuple[NDArray[np.int64], NDArray[Any]]
"""Indices into what was asked for, and (n, h, w, 3) uint8 or (n, d) floating point."""

IMPORTED = "imported"
"""What is said of features that another tool made."""

_RECIPE = "pil-bilinear"
_UNKNOWN = "unknown"  # how other tools' tiles were resampled


def open_tiled(slide: TiledSlide, job: TaskJob) -> OpenedSlide:
    """Open a slide and see that it is the one that its tiles were placed on.

    Raises:
        SlideOpenError: If it is not, or cannot be opened.
    """
    ref, reader = slide.ref, job.config.reader
    if not ref.path.is_file():
        raise SlideOpenError(
            f"{slide.source or ref.path} is not there: name the slides, by a manifest if their "
            "ids are not their files' names."
        )
    companions = ref.companions or Companions().of(ref.path).companions
    if slide.fingerprint and fingerprint(ref.path, companions) != slide.fingerprint:
        raise SlideOpenError(f"{ref.path} is another file than its tiles were placed on.")
    name, config = reader.plugin, reader.config
    if name == AUTO and slide.info.reader in job.registry.names("reader"):
        name = slide.info.reader
    opened = open_slide(ref, reader=name, config=config, registry=job.registry)
    if slide.info.width and (opened.info.width, opened.info.height) != _extent(slide):
        opened.close()
        raise SlideOpenError(f"{ref.path} has another extent than the slide of its tiles.")
    return opened


def read_pixels(
    slide: TiledSlide, coords: NDArray[np.int32], job: TaskJob, *, batch_size: int
) -> Iterator[Batch]:
    """Read tiles of a slide on threads, a few batches ahead.

    Args:
        slide: The slide.
        coords: (n, 5) of the tiles.
        job: Says by which reader, and on how many threads.
        batch_size: Tiles a batch.

    Raises:
        SlideOpenError: As of `open_tiled`.
        SlideReadError: If pixels cannot be decoded.
    """
    geometry = slide.geometry
    if geometry.resample == _UNKNOWN:
        geometry = replace(geometry, resample=_RECIPE)
    grid = TileGrid(coords=coords, geometry=geometry)
    with open_tiled(slide, job) as opened:
        workers = cpu_budget(job.config.threads)
        for batch in iterate_tiles(opened.reader, grid, batch_size=batch_size, workers=workers):
            yield batch.rows, batch.pixels


def read_features(
    slide: TiledSlide, rows: NDArray[np.int64], name: str, job: TaskJob, *, batch_size: int
) -> Iterator[Batch]:
    """Read features of tiles, a part of the store in memory at a time.

    Args:
        slide: The slide.
        rows: (n,) of its store, rising.
        name: Of the feature set.
        job: Knows the stores.
        batch_size: Tiles a batch.

    Raises:
        TaskError: If the slide has no such features.
        StoreError: If they cannot be read.
    """
    require_features(slide, name)
    with slide.open(job.registry) as stored:
        for start in range(0, len(rows), batch_size):
            index = np.arange(start, min(start + batch_size, len(rows)), dtype=np.int64)
            wanted = rows[index]
            first, last = int(wanted.min()), int(wanted.max())
            block = np.asarray(stored.features(name, slice(first, last + 1)))
            if len(block) != last + 1 - first:
                raise StoreError(f"{slide.store}: features/{name} lacks rows up to {last}.")
            yield index, block[wanted - first]


def rows_by_slide(tiles: Tiles) -> Iterator[NDArray[np.int64]]:
    """Give the tiles of each of the slides by index, in the order in which they are.

    Sorted once: a cohort has thousands of slides, and millions of tiles.
    """
    order = np.argsort(tiles.slide, kind="stable")
    ends = np.searchsorted(tiles.slide[order], np.arange(len(tiles.slides) + 1))
    for start, end in pairwise(ends.tolist()):
        yield order[start:end]


def require_features(slide: TiledSlide, name: str) -> None:
    """Refuse a slide without some features.

    Raises:
        TaskError: If it has none of that name.
    """
    if name not in slide.features:
        there, near = ", ".join(slide.features), get_close_matches(name, slide.features, 1)
        none = f"features of {there}, and none of {name!r}" if there else f"no features of {name!r}"
        hint = f"Did you mean {near[0]!r}? Else make" if near else "Make"
        raise TaskError(
            f"{slide.slide_id} holds {none}. {hint} them first: microtome SLIDES output=OUTPUT "
            f"encoder={name}."
        )


@dataclass(frozen=True, kw_only=True)
class MadeFeatures:
    """What stored features of some slides are.

    Attributes:
        encoder: What made them on all slides, as `made_by` says it.
        identities: Digest of each slide's, by slide id.
    """

    encoder: Mapping[str, Any] = field(default_factory=dict)
    identities: Mapping[str, str] = field(default_factory=dict)


def find_features(tiles: Tiles, name: str, registry: Registry) -> MadeFeatures:
    """Say what stored features are, and see that the same made them on all slides.

    Raises:
        TaskError: If a slide has none, or not the same made them.
    """
    first: tuple[str, dict[str, Any]] | None = None
    identities = {}
    for slide in tiles.slides:
        require_features(slide, name)
        with slide.open(registry) as stored:
            attributes = stored.feature_attributes(name)
        found = made_by(attributes)
        if first is not None and first[1] != found:
            raise TaskError(
                f"The features {name!r} of {first[0]} and {slide.slide_id} were made by encoders "
                f"with other options or weights: {difference(first[1], found)}. Make them alike."
            )
        first = (slide.slide_id, found)
        identities[slide.slide_id] = str(attributes.get(IDENTITY, ""))
    return MadeFeatures(encoder=first[1] if first else {}, identities=identities)


def made_by(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Say what made features, by their attributes: the encoder's part of their identity.

    Of imported ones that is the layout alone that they were read from, ``imported``: no other
    tool's files say all of an encoder. Empty where nothing says.
    """
    fields = parse_fields(attributes)
    encoder, imported = fields.get("encoder"), fields.get("imported")
    if isinstance(encoder, Mapping):
        return dict(encoder)
    layout = imported.get("layout") if isinstance(imported, Mapping) else None
    return {IMPORTED: layout.get("plugin")} if isinstance(layout, Mapping) else {}


def _extent(slide: TiledSlide) -> tuple[int, int]:
    return slide.info.width, slide.info.height
