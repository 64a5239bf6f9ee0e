"""Both stores, what a run would hand them, and an output of several runs to spoil."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import standins
from spoiling import ID

import microtome
import microtome_writers
from microtome.plugin.packages import resolve
from microtome.plugin.registry import get_registry
from microtome.run.progress import SilentReporter
from microtome.store.publish import ArraySource, FeatureSet, SlideContent
from microtome.store.verify import verify_output
from microtome.testing import make_slide


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


TILER = {"size": 128, "magnification": 20}
OPTIONS = {
    "recursive": True,
    "slide_id": "relpath",
    "segmenter": "none",
    "tiler": {"grid": TILER},
}


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """Make an output with everything in it: two slides, two tilings, a later encoder."""
    folder = tmp_path_factory.mktemp("verify")
    for seed, name in enumerate([ID, "b.svs"]):
        path = folder / "slides" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        make_slide(path, size=(768, 768), tissue=0.7, pen=False, seed=seed)
    get_registry.cache_clear()
    get_registry().add(standins.Plugins, "standins", "microtome-standins")

    def run(**options) -> None:
        result = microtome.run_slides(
            folder / "slides",
            folder / "out",
            reporter=SilentReporter(),
            **OPTIONS | options,
        )
        assert result.counts == {"done": 2}

    run(encoder="mean", writer=["hdf5", "zarr", "png"], visualize=["grid", "mask"])
    run(encoder=["mean", "seeded"], writer=["hdf5", "zarr"])
    run(encoder="mean", tiling="low/10x", tiler={"grid": TILER | {"magnification": 10}})
    get_registry.cache_clear()
    return folder / "out"


@pytest.fixture
def out(made, tmp_path) -> Path:
    """Give a copy to spoil."""
    return Path(shutil.copytree(made, tmp_path / "out", symlinks=True))


@pytest.fixture
def verify(out):
    def run(**options):
        return verify_output(out, get_registry(), **options)

    return run


@pytest.fixture
def only(verify, out):
    """Give the one fault that there is, its message without the output's place."""

    def run(kind: str = "output", slide_id: str = ID, **options) -> str:
        found = verify(**options)
        assert len(found.faults) == 1, [fault.message for fault in found.faults]
        (fault,) = found.faults
        assert fault.kind == kind
        assert fault.slide_id == slide_id
        assert fault.message.endswith(".")
        assert str(out / fault.path) in fault.message
        return fault.message.replace(f"{out}/", "")

    return run
