"""How large the pieces of an array are on disk."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import DTypeLike

CHUNK_BYTES = 1 << 20
"""1 MiB: HDF5's own cache holds one, and reading a few rows does not read much more."""


def chunk_shape(shape: tuple[int, ...], dtype: DTypeLike) -> tuple[int, ...]:
    """Give the shape of one chunk: about `CHUNK_BYTES`, of whole rows where a row is no more.

    Args:
        shape: Of the whole array, rows first.
        dtype: Of its values.

    Returns:
        A side for each axis, at least 1, at most that of the array.
    """
    left = max(1, CHUNK_BYTES // np.dtype(dtype).itemsize)
    chunk: list[int] = []
    for side in reversed(shape):
        chunk.append(max(1, min(side, left)))
        left = left // chunk[-1] if chunk[-1] >= side else 0
    return tuple(reversed(chunk))


def chunks_per_row(shape: tuple[int, ...], chunk: tuple[int, ...]) -> int:
    """Count the chunks that one row of an array lies in."""
    return math.prod(-(-max(1, s) // c) for s, c in zip(shape[1:], chunk[1:], strict=True))
