"""Finished slides as AnnData, as scanpy, squidpy and LazySlide know it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.api.results import open_result
from microtome.errors import ConfigError, MissingDependencyError
from microtome.plugin.protocols import StoredSlide
from microtome.store.arrays import array_names
from microtome.store.attributes import plain_attributes

if TYPE_CHECKING:
    from anndata import AnnData

_ATTENTION, _SLIDE_FEATURES = "slide_attention", "slide_features"


def to_anndata(result: str | Path | StoredSlide, encoder: str | Sequence[str] = ()) -> AnnData:
    """Give a finished slide's tiles as AnnData, a row a tile.

    ::

        tiles = microtome.to_anndata("out/patches/a.h5", ["uni_v1", "resnet18"])
        scanpy.pp.pca(tiles)

    Args:
        result: A finished slide's file, or what `open_result` gave.
        encoder: Of the features that become ``X``; further ones go into ``obsm``. Need not be said
            of a slide that has features of one encoder.

    Returns:
        ``X``: (N, D) features; ``var`` has the encoder's names of the columns, else numbers.

        ``obsm["spatial"]``: (N, 2) centres of the tiles in level-0 pixels; ``obsm["X_<encoder>"]``:
        further features.

        ``obs``, named ``<slide>-<row>``: ``slide_id``, ``x`` and ``y`` (top left corners at level
        0), the columns of the store (``tissue_fraction``, quality, ``region``), and
        ``attention_<slide encoder>``.

        ``uns["spatial"][<slide>]``: ``scalefactors`` with ``spot_diameter_fullres``, the side of a
        tile, and ``metadata`` with the slide's file. ``uns["slide_features"]``: (D,) by slide
        encoder. ``uns["microtome"]``: the attributes of the slide, of ``features`` and of
        ``slide_features``, with geometry, cards, identities and provenance, as in the store.

    Raises:
        ConfigError: If it has no such features, or those of several encoders and none is named.
        StoreError: If it cannot be read.
        MissingDependencyError: If anndata is not installed.
    """
    _see_that_it_is_installed()
    if isinstance(result, str | Path):
        with open_result(result) as stored:
            return to_anndata(stored, encoder)
    names = _choose(result, [encoder] if isinstance(encoder, str) else list(encoder))
    with _quiet():
        return _make(result, names)


def _see_that_it_is_installed() -> None:
    try:
        with _quiet():
            import anndata  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "AnnData needs anndata. Install with: pip install 'microtome[spatialdata]'"
        ) from error


def _choose(stored: StoredSlide, wanted: Sequence[str]) -> Sequence[str]:
    there = stored.feature_names()
    if missing := [name for name in wanted if name not in there]:
        raise ConfigError(
            f"{_name(stored)} has no features {', '.join(missing)}. "
            f"Available: {', '.join(there) or 'none'}."
        )
    if not wanted and len(there) != 1:
        raise ConfigError(
            f"{_name(stored)} has features of {', '.join(there) or 'no encoder'}: say which become "
            "X, as in encoder='uni_v1'; further ones go into obsm."
        )
    return list(dict.fromkeys(wanted or there))


def _make(stored: StoredSlide, names: Sequence[str]) -> AnnData:
    from anndata import AnnData
    from pandas import DataFrame

    first, *others = names
    attributes, slide_id = stored.attributes, _name(stored)
    sides = np.asarray(attributes["patch_size_level0_exact"], np.float64)
    obsm = {"spatial": stored.coords[:, :2] + sides / 2}
    obsm |= {f"X_{name}": np.asarray(stored.features(name)) for name in others}
    arrays = {name: np.asarray(stored.array(name)) for name in array_names(stored, _SLIDE_FEATURES)}
    told = {
        **_plain(attributes),
        "features": {name: _plain(stored.feature_attributes(name)) for name in names},
        _SLIDE_FEATURES: {_last(key): _plain(stored.array_attributes(key)) for key in arrays},
    }
    spatial = {
        "scalefactors": {"spot_diameter_fullres": float(sides[0])},
        "metadata": {"source_image_path": str(attributes.get("wsi_path", ""))},
    }
    return AnnData(
        X=np.asarray(stored.features(first)),
        obs=_observations(stored),
        var=DataFrame(index=_variables(stored, first)),
        obsm=obsm,
        uns={
            "spatial": {slide_id: spatial},
            _SLIDE_FEATURES: {_last(key): array for key, array in arrays.items()},
            "microtome": told,
        },
    )


def _observations(stored: StoredSlide) -> Any:
    from pandas import Categorical, DataFrame

    count, slide_id = len(stored.coords), _name(stored)
    columns = {name: np.asarray(column) for name, column in stored.columns.items()}
    columns |= {
        f"attention_{_last(key)}": np.asarray(stored.array(key))
        for key in array_names(stored, _ATTENTION)
    }
    slide = Categorical.from_codes(np.zeros(count, np.int8), categories=[slide_id])
    places = {"slide_id": slide, "x": stored.coords[:, 0], "y": stored.coords[:, 1]}
    index = [f"{slide_id}-{row}" for row in range(count)]
    return DataFrame({**columns, **places}, index=index)


def _variables(stored: StoredSlide, name: str) -> list[str]:
    """Name the columns of features as their encoder does, else by numbers."""
    count = stored.feature_shape(name)[1]
    try:
        columns = json.loads(str(stored.feature_attributes(name).get("columns")))
        named = [str(column["name"]) for column in columns]
    except (ValueError, TypeError, KeyError):
        named = []
    return named if len({*named}) == count else [str(number) for number in range(count)]


def _plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Give attributes that files of AnnData can hold, whose keys know no slash."""
    plain = plain_attributes(attributes)
    return {name.replace("/", "_"): value for name, value in plain.items()}


def _name(stored: StoredSlide) -> str:
    return str(stored.attributes.get("slide_id", "slide"))


def _last(key: str) -> str:
    return key.partition("/")[2]


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what anndata and pandas tell of their own future."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
