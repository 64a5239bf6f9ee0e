"""The cache of decoded tiles: one decoding each, bounded, and its memory used again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from microtome_readers.tiff.segmentcache import SegmentCache

A, B, C = (0, 0, 0), (0, 0, 1), (0, 0, 2)
SHAPE = (5, 5, 4)


class Maker:
    """Makes segments of 100 bytes, in the memory that it is given, and notes what it did."""

    def __init__(self, cache, shape=SHAPE):
        self.cache, self.shape = cache, shape
        self.made, self.given = [], []

    def borrow(self, key):
        def make(out):
            self.made.append(key)
            self.given.append(out)
            pixels = np.empty(SHAPE, np.uint8) if out is None else out
            pixels[:] = key[2]
            return pixels

        return self.cache.borrow_or_make(key, make, shape=self.shape)

    def use(self, key):
        segment = self.borrow(key)
        self.cache.give_back(segment)
        return segment.pixels


def test_a_segment_is_decoded_by_one_thread_only():
    maker = Maker(SegmentCache(1000))
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: maker.use(A), range(50)))
    assert maker.made == [A]


def test_it_drops_what_was_used_longest_ago():
    maker = Maker(SegmentCache(200))
    for key in (A, B, A, C, A, B):
        maker.use(key)
    assert maker.made == [A, B, C, B]
    assert maker.cache.borrow(C) is None


def test_what_is_dropped_lends_its_memory_to_the_next():
    maker = Maker(SegmentCache(200))
    first = maker.use(A)
    for key in (B, C):
        maker.use(key)
    assert maker.use((0, 0, 3)) is first
    assert (first == 3).all()


def test_the_memory_of_what_is_in_use_is_left_alone():
    maker = Maker(SegmentCache(100))
    held = maker.borrow(A)
    for number in range(1, 9):
        maker.use((0, 0, number))
    assert (held.pixels == 0).all()
    # Given back late, it does not become another one's.
    maker.cache.give_back(held)
    again = maker.borrow(A)
    assert again.users == 1


@pytest.mark.parametrize("shape", [None, (10, 5, 2)])
def test_memory_only_serves_its_own_shape(shape):
    cache = SegmentCache(100)
    for number in range(4):
        Maker(cache).use((0, 0, number))
    other = Maker(cache, shape)
    other.use((1, 0, 0))
    assert other.given == [None]


def test_a_failure_leaves_nothing_behind():
    cache = SegmentCache(1000)

    def fail(_):
        raise ValueError("damaged")

    for _ in range(2):
        with pytest.raises(ValueError, match="damaged"):
            cache.borrow_or_make(A, fail)
    assert cache.borrow(A) is None


def test_the_newest_is_kept_whatever_its_size():
    maker = Maker(SegmentCache(10))
    maker.use(A)
    assert maker.cache.borrow(A) is not None
