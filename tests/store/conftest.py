"""Both stores, and what a run would hand them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import microtome_writers
from microtome.plugin.registry import resolve
from microtome.store.publish import ArraySource, FeatureSet, SlideContent


@dataclass(frozen=True)
class Store:
    spec: Any
    writer: Any


def make_store(name: str) -> Store:
    spec = next(s for s in microtome_writers.microtome_writers() if s.name == name)
    return Store(spec, resolve(spec.target)(spec.config()))


SHAPES = {
    "slide_features": (6,),
    "slide_latents": (4, 6),
    "tokens": (9, 2, 3, 5),
    "regions": (2, 4),
}
"""Of arrays by group: one, two and four axes; nine tiles."""


def make_array(key: str, *, seed: int = 0) -> FeatureSet:
    """Make an array whose values depend on its name; its identity says what it was made of."""
    group, _, name = key.partition("/")
    rng = np.random.default_rng([seed, *key.encode()])
    values = rng.standard_normal(SHAPES[group], dtype=np.float32)
    array = rng.integers(0, 9, SHAPES[group], np.int32) if group == "regions" else values
    fields = {"array": key, "features": {name: f"{name}-one"}}
    return FeatureSet(ArraySource(array), {"identity": f"{key}-{seed}", "identity_fields": fields})


def values_of(given: FeatureSet) -> Any:
    """Give all values of a set."""
    return np.concatenate(list(given.source.chunks(10**6)))


def make_content(
    *names: str,
    rows: int = 9,
    identity: str = "one",
    seed: int = 0,
    arrays: Iterable[str] = (),
) -> SlideContent:
    """Make a slide whose features depend on their name, so that a mix-up shows."""
    x = np.arange(rows, dtype=np.int32) * 512
    features = {}
    for name in names:
        rng = np.random.default_rng([seed, *name.encode()])
        array = rng.standard_normal((rows, 17), dtype=np.float32)
        card = {"identity": f"{name}-{identity}", "identity_fields": {"encoder": name}}
        features[name] = FeatureSet(ArraySource(array), card)
    return SlideContent(
        coords=np.stack([x, x * 0, x * 0 + 512, x * 0 + 512, x * 0], axis=1),
        columns={"tissue_fraction": np.linspace(0, 1, rows, dtype=np.float32)},
        attributes={"identity": identity, "identity_fields": {"tiler": {"step": identity}}},
        features=features,
        arrays={key: make_array(key) for key in arrays},
    )


@pytest.fixture(params=["hdf5", "zarr"])
def store(request: pytest.FixtureRequest) -> Store:
    return make_store(request.param)


@pytest.fixture
def content() -> Any:
    return make_content
