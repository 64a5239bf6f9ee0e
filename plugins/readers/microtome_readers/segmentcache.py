"""Keeps the tiles and strips that were decoded last."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Key = tuple[int, int, int]


class SegmentCache:
    """A bounded cache for many threads; a segment is decoded by one of them only.

    The newest segment is kept whatever its size.
    """

    def __init__(self, limit: int) -> None:
        """Make an empty cache.

        Args:
            limit: In bytes.
        """
        self._limit = limit
        self._size = 0
        self._entries: OrderedDict[Key, NDArray[np.uint8]] = OrderedDict()
        self._lock = threading.Lock()
        self._making = [threading.Lock() for _ in range(32)]

    def get(self, key: Key, make: Callable[[Key], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Give a segment, made if it is not there."""
        found = self._find(key)
        if found is not None:
            return found
        with self._making[hash(key) % len(self._making)]:
            found = self._find(key)
            if found is None:
                found = make(key)
                self._keep(key, found)
        return found

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._entries.clear()
            self._size = 0

    def _find(self, key: Key) -> NDArray[np.uint8] | None:
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(key)
            return found

    def _keep(self, key: Key, segment: NDArray[np.uint8]) -> None:
        with self._lock:
            self._entries[key] = segment
            self._size += segment.nbytes
            while self._size > self._limit and len(self._entries) > 1:
                self._size -= self._entries.popitem(last=False)[1].nbytes
