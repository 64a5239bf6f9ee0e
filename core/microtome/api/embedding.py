"""What embedding gives: slides and patients in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from microtome.api.results import open_result
from microtome.errors import ConfigError, MissingDependencyError
from microtome.plugin.protocols import StoredSlide
from microtome.slide.regions import group_tiles
from microtome.store.arrays import array_names
from microtome.store.regions import read_regions

if TYPE_CHECKING:
    from anndata import AnnData

T = TypeVar("T", bound="_Embedded")

Array = NDArray[Any]


class _Embedded:
    """Arrays that can be had as tensors."""

    def as_tensors(self: T) -> T:
        """Give the same with torch tensors, on the CPU and without copying, for numpy arrays.

        Raises:
            MissingDependencyError: If torch is not installed.
        """
        try:
            import torch
        except ImportError as error:
            raise MissingDependencyError(
                "Tensors need torch. Install with: pip install torch"
            ) from error
        return self._mapped(torch.from_numpy)

    def __repr__(self) -> str:
        """Name the fields that say something, of arrays their shapes."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        told = [f"{name}={_short(v)}" for name, v in values.items() if v is not None]
        return f"{type(self).__name__}({', '.join(told)})"

    def _mapped(self: T, change: Any) -> T:
        changed: dict[str, Any] = {}
        for each in fields(self):  # type: ignore[arg-type]
            value = getattr(self, each.name)
            if isinstance(value, np.ndarray):
                changed[each.name] = change(value)
            elif isinstance(value, Mapping):
                changed[each.name] = {
                    name: change(array) if isinstance(array, np.ndarray) else array
                    for name, array in value.items()
                }
        return replace(self, **changed)  # type: ignore[type-var]


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class EmbeddedSlide(_Embedded):
    """A slide and what a model made of it, in numpy arrays; `as_tensors` gives torch's.

    Attributes:
        sample_id: The slide.
        tile_embeddings: (N, D) floating point, one row a tile, sorted by (y, x); with regions
            (R, T, D), the tiles of a region row by row.
        slide_embedding: (D,) of a slide encoder; None for a tile encoder, and for a slide without
            tiles.
        x: (N,) int64 left edge of each tile in level-0 pixels; with regions (R,), of each region.
        y: (N,) int64 top edge, likewise.
        tile_size_lv0: Side of a tile in level-0 pixels.
        image_path: The slide's file, or its URL.
        mask_path: The tissue mask that was given, else the one that was found where it is kept.
        num_tiles: N, with regions R × T.
        mask_preview_path: The picture of the mask, if one was asked for.
        tiling_preview_path: The picture of the tiles, if one was asked for.
        latents: (count, D) of a slide encoder that has latents, if asked for with
            ``save_latents``.
        tokens: (N, h, w, D) of a tile encoder, if asked for with ``tokens=True``.
        attention: (N, heads, h, w) of a tile encoder, if asked for with ``attention=True``.
        region_size_lv0: Side of a region in level-0 pixels; None without regions.
        path: The file that holds it all; None where no ``output_dir`` was given.
        name: Of the feature set in that file.
    """

    sample_id: str
    tile_embeddings: Array
    slide_embedding: Array | None
    x: Array
    y: Array
    tile_size_lv0: int
    image_path: str | Path
    mask_path: Path | None = None
    num_tiles: int = 0
    mask_preview_path: Path | None = None
    tiling_preview_path: Path | None = None
    latents: Array | None = None
    tokens: Array | None = None
    attention: Array | None = None
    region_size_lv0: int | None = None
    path: Path | None = None
    name: str = ""

    def to_anndata(self, **options: Any) -> AnnData:
        """Give the tiles as AnnData; see `microtome.to_anndata` for the options.

        Raises:
            ConfigError: If the slide is kept nowhere.
            MissingDependencyError: If anndata is not installed.
        """
        if self.path is None:
            raise ConfigError(
                f"{self.sample_id} is in memory alone; to_anndata reads the file that holds it. "
                "Embed it with ExecutionOptions(output_dir=…)."
            )
        from microtome.api.anndata import to_anndata

        return to_anndata(self.path, **{"encoder": self.name, **options})


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class EmbeddedPatient(_Embedded):
    """A patient and what a model made of the slides, in numpy arrays.

    Attributes:
        patient_id: The patient.
        patient_embedding: (D,) floating point.
        slide_embeddings: (D,) of each slide by ``sample_id``, in the order given; empty where the
            model takes tiles and embeds no slide by itself.
        left_out: Slides that failed or have no tissue, and why.
        path: The file that holds the embedding; None where no ``output_dir`` was given.
    """

    patient_id: str
    patient_embedding: Array
    slide_embeddings: Mapping[str, Array] = field(default_factory=lambda: MappingProxyType({}))
    left_out: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    path: Path | None = None


def _short(value: Any) -> str:
    """Write a value, of an array or tensor its shape."""
    if hasattr(value, "shape"):
        return f"<{'×'.join(map(str, value.shape))} {value.dtype}>"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name!r}: {_short(each)}" for name, each in value.items()) + "}"
    return str(value) if isinstance(value, Path) else repr(value)


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where a slide's embeddings lie.

    Attributes:
        path: The store's file.
        features: Of the feature set.
        slide: Name of the slide encoder's arrays; empty for none.
        dense: Groups of dense features that are wanted.
        latents: Whether latents are.
    """

    path: Path
    features: str
    slide: str = ""
    dense: tuple[str, ...] = ()
    latents: bool = False


def read_embedded(where: Where, **known: Any) -> EmbeddedSlide:
    """Read a slide out of its store.

    Args:
        where: What to read.
        **known: The fields of `EmbeddedSlide` that no store knows.

    Raises:
        StoreError: If it cannot be read.
    """
    with open_result(where.path) as stored:
        values = read_tiles(stored, where.features)
        if where.slide:
            values["slide_embedding"] = _array(stored, f"slide_features/{where.slide}")
        if where.latents:
            values["latents"] = _array(stored, f"slide_latents/{where.slide}")
        for group in where.dense:
            values[group] = _array(stored, f"{group}/{where.features}")
    return EmbeddedSlide(**{"slide_embedding": None, "name": where.features, **values, **known})


def read_tiles(stored: StoredSlide, name: str) -> dict[str, Any]:
    """Read tile embeddings and where the tiles lie; by region where there are regions."""
    features, coords = np.asarray(stored.features(name)), stored.coords
    values: dict[str, Any] = {
        "num_tiles": len(coords),
        "tile_size_lv0": int(stored.attributes["patch_size_level0"]),
    }
    if array_names(stored, "regions"):
        regions = read_regions(stored)
        features, coords = group_tiles(features, regions.index), regions.coords
        values["num_tiles"] = regions.index.size
        values["region_size_lv0"] = int(stored.attributes["region_size_level0"])
    places = np.ascontiguousarray(coords[:, :2].T, np.int64)
    return values | {"tile_embeddings": features, "x": places[0], "y": places[1]}


def _array(stored: StoredSlide, key: str) -> Array | None:
    """Read an array; None where the store has none, as of a slide without tiles."""
    group = key.partition("/")[0]
    return np.asarray(stored.array(key)) if key in array_names(stored, group) else None
