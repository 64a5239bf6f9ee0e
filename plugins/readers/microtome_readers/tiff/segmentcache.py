"""Keeps the tiles and strips that were decoded last."""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Shape = tuple[int, int, int]
Key = tuple[int, int, int]

_SPARES = 4
"""Arrays of one shape that are kept for the next segments."""


@dataclass(eq=False)
class Segment:
    """A segment that is lent out until it is given back.

    Attributes:
        pixels: (height, width, channels).
        shape: Of the array if it may be decoded into again, once nobody has it; or else None.
        users: How many have it.
    """

    pixels: Pixels
    shape: Shape | None = None
    users: int = 0


class SegmentCache:
    """A bounded cache for many threads; a segment is decoded by one of them only.

    The newest segment is kept whatever its size. The memory of one that is dropped serves the next:
    fresh memory costs a third of the time that decoding a tile into it takes.
    """

    def __init__(self, limit: int) -> None:
        """Make an empty cache.

        Args:
            limit: In bytes.
        """
        self._limit = limit
        self._size = 0
        self._entries: OrderedDict[Key, Segment] = OrderedDict()
        self._spares: defaultdict[Shape | None, list[Pixels]] = defaultdict(list)
        self._lock = threading.Lock()
        self._making = [threading.Lock() for _ in range(32)]

    def borrow(self, key: Key) -> Segment | None:
        """Give a segment if it is there, to be given back."""
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                found.users += 1
                self._entries.move_to_end(key)
            return found

    def borrow_or_make(
        self, key: Key, make: Callable[[Pixels | None], Pixels], *, shape: Shape | None = None
    ) -> Segment:
        """Give a segment, made if it is not there, to be given back.

        Args:
            key: Of the segment.
            make: Makes it, in the memory that it is given or in its own.
            shape: What that memory must be, where ``make`` uses it.
        """
        found = self.borrow(key)
        if found is not None:
            return found
        with self._making[hash(key) % len(self._making)]:
            found = self.borrow(key)
            if found is None:
                found = Segment(make(self._spare(shape)), shape, users=1)
                self._keep(key, found)
        return found

    def give_back(self, segment: Segment) -> None:
        """Say that a segment's pixels are no longer looked at."""
        with self._lock:
            segment.users -= 1

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._entries.clear()
            self._spares.clear()
            self._size = 0

    def _spare(self, shape: Shape | None) -> Pixels | None:
        with self._lock:
            spares = self._spares[shape]
            return spares.pop() if spares else None

    def _keep(self, key: Key, segment: Segment) -> None:
        with self._lock:
            self._entries[key] = segment
            self._size += segment.pixels.nbytes
            while self._size > self._limit and len(self._entries) > 1:
                dropped = self._entries.popitem(last=False)[1]
                self._size -= dropped.pixels.nbytes
                spares = self._spares[dropped.shape]
                if dropped.shape and not dropped.users and len(spares) < _SPARES:
                    spares.append(dropped.pixels)
