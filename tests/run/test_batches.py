"""Worker threads that read batches of tiles ahead of who takes them."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import numpy as np
import pytest
from numbered import TILE, Numbered, grid_of

from microtome.errors import SlideReadError
from microtome.run.slides import batches as batches_module
from microtome.run.slides.batches import BatchReader, fresh
from microtome.slide.types import TileGrid


def batches_of(reader, grid, **options):
    return BatchReader(reader=reader, grid=grid, **options)


@pytest.mark.parametrize("in_blocks", [True, False])
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 5, 32, 1000])
def test_every_tile_comes_once_with_its_own_pixels(in_blocks, workers, batch_size):
    reader = Numbered(140, 3)  # more than one square of the reading order
    grid = grid_of(reader)
    batches = batches_of(reader, grid, in_blocks=in_blocks, workers=workers, batch_size=batch_size)
    seen = []
    for batch in batches.read():
        assert len(batch) <= batch_size
        expected = grid.coords[batch.rows, :2] // TILE
        np.testing.assert_array_equal(batch.pixels[:, 3, 5, :2], expected)
        assert (batch.pixels == batch.pixels[:, :1, :1]).all()
        seen += batch.rows.tolist()
        batches.release(batch)
    assert sorted(seen) == list(range(len(grid)))
    assert (seen == sorted(seen)) is not in_blocks


def test_tiles_are_resampled_into_the_batch():
    reader = Numbered(16, 16)
    grid = grid_of(reader, magnification=20.0, size=TILE)
    assert grid.geometry.read_size == (2 * TILE, 2 * TILE)
    for batch in batches_of(reader, grid, workers=2).read():
        np.testing.assert_array_equal(
            batch.pixels[:, 9, 9, :2], grid.coords[batch.rows, :2] // TILE
        )


def test_memory_does_not_grow_with_the_slide():
    def allocations(columns):
        made = []
        reader = Numbered(columns, 4)
        batches = batches_of(
            reader,
            grid_of(reader),
            batch_size=8,
            workers=2,
            allocate=lambda shape: made.append(shape) or fresh(shape),
        )
        for batch in batches.read():
            batches.release(batch)
        return len(made)

    assert allocations(400) == allocations(40) < 10


def test_memory_is_bounded_for_any_number_of_workers(monkeypatch):
    made = []
    reader = Numbered(400, 8)
    monkeypatch.setattr(batches_module, "_BYTES_AHEAD", 5 * 8 * TILE * TILE * 3)
    batches = batches_of(
        reader,
        grid_of(reader),
        batch_size=8,
        workers=16,
        allocate=lambda shape: made.append(shape) or fresh(shape),
    )
    for batch in batches.read():
        batches.release(batch)
    assert len(made) <= 6


def test_a_batch_that_is_kept_is_not_written_over():
    reader = Numbered(64, 2)
    grid = grid_of(reader)
    kept = list(batches_of(reader, grid, batch_size=8, workers=2).read())
    for batch in kept:
        np.testing.assert_array_equal(
            batch.pixels[:, 0, 0, :2], grid.coords[batch.rows, :2] // TILE
        )


def test_memory_in_use_is_waited_for():
    reader = Numbered(64, 1)
    batches = batches_of(reader, grid_of(reader), batch_size=8)
    user: Future[None] = Future()
    reading = batches.read()
    first = next(reading)
    before = first.pixels.copy()
    first.in_use.append(user)
    batches.release(first)
    threading.Timer(0.2, lambda: user.set_result(None)).start()
    for batch in reading:
        if not user.done():
            np.testing.assert_array_equal(first.pixels, before)
        batches.release(batch)
    assert user.done()


def test_an_error_of_who_uses_the_memory_is_told():
    reader = Numbered(64, 1)
    batches = batches_of(reader, grid_of(reader), batch_size=8)
    reading = batches.read()
    first = next(reading)
    user: Future[None] = Future()
    user.set_exception(OSError("the disk is full"))
    first.in_use.append(user)
    batches.release(first)
    with pytest.raises(OSError, match="disk is full"):
        list(reading)


def test_a_tile_that_cannot_be_read_ends_it_all():
    reader = Numbered(200, 4, fail_at=(40 * TILE, TILE))
    before = threading.active_count()
    with pytest.raises(SlideReadError, match="broken"):
        list(batches_of(reader, grid_of(reader), batch_size=4, workers=3).read())
    assert threading.active_count() == before
    assert sum(map(len, reader.calls)) < 800


def test_closing_it_ends_the_workers():
    reader = Numbered(400, 4)
    before = threading.active_count()
    reading = batches_of(reader, grid_of(reader), batch_size=4, workers=3).read()
    next(reading)
    reading.close()
    assert threading.active_count() == before
    assert sum(map(len, reader.calls)) < 400


def test_workers_finish_the_parts_that_they_read():
    reader = Numbered(140, 2)
    finished = np.zeros(280, int)
    names = set()

    def finish(batch, at):
        finished[batch.rows[at]] += 1
        names.add(threading.current_thread().name)
        batch.keep[at] = batch.rows[at] % 2 == 0

    batches = batches_of(reader, grid_of(reader), workers=2, finish=finish)
    for batch in batches.read():
        np.testing.assert_array_equal(batch.keep, batch.rows % 2 == 0)
    assert (finished == 1).all()
    assert names <= reader.threads


def test_a_slide_without_tiles():
    reader = Numbered(4, 4)
    grid = grid_of(reader)
    nothing = TileGrid(coords=grid.coords[:0], geometry=grid.geometry)
    assert list(batches_of(reader, nothing).read()) == []
