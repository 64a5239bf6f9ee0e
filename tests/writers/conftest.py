"""The writers as the registry makes them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import microtome_writers


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
