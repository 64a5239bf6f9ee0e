from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from microtome.errors import EncoderError, StoreError
from microtome.store.features import ArraySource, FeatureScratch, blocks


def read(source, rows=3):
    chunks = list(source.chunks(rows))
    assert all(len(chunk) <= rows for chunk in chunks)
    empty = np.empty((0, source.shape[1]), source.dtype)
    return np.concatenate([empty, *chunks])


def test_rows_come_back_in_plan_order(tmp_path):
    values = np.random.default_rng(0).standard_normal((20, 5))
    with FeatureScratch(tmp_path, 20, "float32") as scratch:
        for start in (10, 0, 15, 5):
            scratch.write(np.arange(start, start + 5), values[start : start + 5])
        source = scratch.source()
        assert source.shape == (20, 5)
        np.testing.assert_array_equal(read(source), values.astype(np.float32))
        np.testing.assert_array_equal(read(source, 100), values.astype(np.float32))


def test_rows_may_lie_apart(tmp_path):
    values = np.random.default_rng(0).standard_normal((7, 2)).astype(np.float32)
    order = np.array([5, 6, 0, 2, 1, 4, 3])
    with FeatureScratch(tmp_path, 7, "float32") as scratch:
        scratch.write(order[:4], values[order[:4]])
        scratch.write(order[4:], values[order[4:]])
        np.testing.assert_array_equal(read(scratch.source()), values)


def test_only_kept_rows_are_needed(tmp_path):
    keep = np.array([0, 1, 4, 6, 7, 8])
    with FeatureScratch(tmp_path, 10, "float32") as scratch:
        for row in keep:
            scratch.write(np.array([row]), np.full((1, 2), row, np.float32))
        source = scratch.source(keep)
        np.testing.assert_array_equal(read(source, 4)[:, 0], keep)


def test_a_row_that_was_never_written_is_an_error(tmp_path):
    with FeatureScratch(tmp_path, 4, "float32", name="uni") as scratch:
        scratch.write(np.arange(2), np.zeros((2, 3)))
        with pytest.raises(StoreError, match=r"2 of 4 rows of 'uni' .* row 2"):
            scratch.source()


def test_no_tile_has_the_width_of_the_card(tmp_path):
    with FeatureScratch(tmp_path, 0, "float32", dim=512) as scratch:
        source = scratch.source(np.empty(0, np.int64))
        assert source.shape == (0, 512)
        assert read(source).shape == (0, 512)


@pytest.mark.parametrize("row", [(2, 3, 4), (5, 2), ()])
def test_rows_may_have_any_shape(tmp_path, row):
    values = np.random.default_rng(0).standard_normal((20, *row)).astype(np.float32)
    order = np.random.default_rng(1).permutation(20)
    keep = np.array([0, 3, 4, 5, 19])
    with FeatureScratch(tmp_path, 20, "float16", dim=row) as scratch:
        for some in np.split(order, [3, 9]):
            scratch.write(some, values[some])
        source = scratch.source(keep)
        assert (source.shape, source.dtype) == ((5, *row), np.float16)
        wanted = values.astype(np.float16)[keep]
        np.testing.assert_array_equal(np.concatenate(list(source.chunks(2))), wanted)
    with FeatureScratch(tmp_path, 0, "float32", dim=row) as scratch:
        assert scratch.source().shape == (0, *row)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 12)), r"shape \(2, 12\); .* of shape \(tiles, 3, 4\) was expected"),
        (np.zeros((2, 3, 4), int), "floating point"),
        (np.zeros((2, 3, 5)), "3 x 5 columns where 3 x 4 were expected"),
        (np.full((2, 3, 4), np.inf), "not finite"),
    ],
)
def test_grids_that_do_not_fit_name_the_encoder(tmp_path, array, message):
    with (
        FeatureScratch(tmp_path, 4, "float32", name="tokens/uni", dim=(3, 4)) as scratch,
        pytest.raises(EncoderError, match=f"'tokens/uni'.*{message}"),
    ):
        scratch.write(np.arange(2), array)


def test_the_file_has_no_name(tmp_path):
    with FeatureScratch(tmp_path / "new", 1, "float32") as scratch:
        scratch.write(np.arange(1), np.ones((1, 4)))
        assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(3), "shape"),
        (np.zeros((2, 3), int), "floating point"),
        (np.zeros((2, 4)), "4 columns where 3 were expected"),
        (np.zeros((3, 3)), "3 rows for 2 tiles"),
        (np.full((2, 3), np.nan), "not finite. Try another precision"),
    ],
)
def test_what_does_not_fit_names_the_encoder(tmp_path, array, message):
    with (
        FeatureScratch(tmp_path, 4, "float32", name="uni", dim=3) as scratch,
        pytest.raises(EncoderError, match=f"'uni'.*{message}"),
    ):
        scratch.write(np.arange(2), array)


@pytest.mark.parametrize("rows", [[-1, 0], [3, 4]])
def test_rows_outside_of_the_slide_are_refused(tmp_path, rows):
    with (
        FeatureScratch(tmp_path, 4, "float32", name="uni") as scratch,
        pytest.raises(EncoderError, match="of a slide with 4 tiles"),
    ):
        scratch.write(np.array(rows), np.zeros((2, 3)))


def test_float16_is_rounded_and_overflow_is_told(tmp_path):
    with FeatureScratch(tmp_path, 2, "float16", name="uni") as scratch:
        scratch.write(np.array([0]), np.array([[0.1, 65504.0]], np.float32))
        assert scratch.source(np.array([0])).dtype == np.float16
        assert read(scratch.source(np.array([0])))[0, 0] == np.float16(0.1)
        with pytest.raises(EncoderError, match=r"7e\+04, too large for float16.*float32"):
            scratch.write(np.array([1]), np.array([[0.1, 70000.0]], np.float32))


def test_a_full_disk_is_a_store_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with FeatureScratch(tmp_path, 1, "float32") as scratch, pytest.raises(StoreError, match="free"):
        scratch.write(np.arange(1), np.zeros((1, 3)))


def test_short_writes_and_reads_are_continued(tmp_path, monkeypatch):
    pwrite, preadv = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda f, data, at: pwrite(f, data[:5], at))
    monkeypatch.setattr(os, "preadv", lambda f, views, at: preadv(f, [views[0][:3]], at))
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    with FeatureScratch(tmp_path, 4, "float32") as scratch:
        scratch.write(np.arange(4), values)
        np.testing.assert_array_equal(read(scratch.source()), values)


class Irregular(ArraySource):
    def chunks(self, rows):
        yield self._array[:2]
        yield self._array[2:2]
        yield self._array[2:]


@pytest.mark.parametrize("source", [ArraySource, Irregular])
@pytest.mark.parametrize("rows", [1, 3, 4, 10, 11])
def test_blocks_are_whole(source, rows):
    values = np.arange(20.0).reshape(10, 2)
    got = list(blocks(source(values), rows))
    assert [start for start, _ in got] == list(range(0, 10, rows))
    assert all(len(block) == rows for _, block in got[:-1])
    np.testing.assert_array_equal(np.concatenate([block for _, block in got]), values)


@pytest.mark.parametrize("row", [(), (2,), (3, 4)])
def test_blocks_have_any_number_of_axes(row):
    values = np.random.default_rng(0).random((10, *row))
    got = list(blocks(Irregular(values), 4))
    assert [len(block) for _, block in got] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([block for _, block in got]), values)


@pytest.mark.parametrize("shape", [(9, 2), (11, 2), (10, 3), (10, 2, 1)])
def test_a_source_that_lies_is_refused(shape):
    source = ArraySource(np.zeros((10, 2)))
    source.shape = shape
    with pytest.raises(StoreError, match="features gave"):
        list(blocks(source, 4))
