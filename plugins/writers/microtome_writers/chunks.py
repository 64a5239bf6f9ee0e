"""How large the pieces of an array are on disk."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

CHUNK_BYTES = 1 << 20
"""1 MiB: HDF5's own cache holds one, and reading a few rows does not read much more."""


def chunk_rows(shape: tuple[int, ...], dtype: DTypeLike) -> int:
    """Give the rows of one chunk: about `CHUNK_BYTES`, at least one, at most all.

    Args:
        shape: Of the whole array, rows first.
        dtype: Of its values.
    """
    row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * np.dtype(dtype).itemsize
    return max(1, min(shape[0], CHUNK_BYTES // max(1, row_bytes)))
