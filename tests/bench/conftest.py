"""Makes the benchmarks importable: they are no part of the distribution."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))


@pytest.fixture
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def mosaic(tmp_path_factory) -> Path:
    from bench.slides import MosaicRecipe, make_mosaic

    path = tmp_path_factory.mktemp("bench") / "mosaic.svs"
    make_mosaic(path, MosaicRecipe((3000, 2000), tile=240))
    return path
