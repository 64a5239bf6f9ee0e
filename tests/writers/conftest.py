"""The writers as the registry makes them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from writers.patch_runs import ALL, DRAWN, draw, make, run

import microtome_writers
from microtome.testing import make_slide


@pytest.fixture
def make_writer() -> Callable[..., Any]:
    def make(name: str, **options: Any) -> Any:
        spec = next(s for s in microtome_writers.microtome_writers() if s.name == name)
        module, _, target = spec.target.partition(":")
        return getattr(importlib.import_module(module), target)(spec.config(**options))

    return make


@pytest.fixture
def coords() -> Any:
    """Two rows of three tiles at 20x of a 40x slide, read at level 0."""
    y, x = np.divmod(np.arange(6), 3)
    columns = [x * 512, y * 512, 0 * x + 512, 0 * x + 512, 0 * x]
    return np.stack(columns, axis=1).astype(np.int32)


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slides in all patch stores, not to be changed."""
    folder = make(tmp_path_factory.mktemp("patches"))
    assert (
        run(folder, folder / "out", "writer.png.compression_level=1", writer=f"{ALL[:-1]},png]")
        == 0
    )
    return folder


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    """One slide with two outlines."""
    make_slide(tmp_path / "slides/a.svs", size=(640, 512))
    draw(tmp_path / "drawn", "a.svs", *DRAWN["a.svs"])
    return tmp_path
