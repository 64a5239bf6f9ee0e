"""One pass over the pixels feeds everything that wants them."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
import pytest
from numbered import TILE, Numbered, grid_of

from microtome.errors import EncoderError, SlideReadError
from microtome.plugin import EncoderCard, EncoderSpec
from microtome.plugin.protocols import EncoderOutput
from microtome.plugin.registry import get_registry
from microtome.run.planning.budget import Threads
from microtome.run.planning.encoders import PlannedEncoder
from microtome.run.settings import FilterSettings
from microtome.run.slides.pixels import PixelPass, Sink
from microtome.store.publish import FeatureScratch


class Corner:
    """Gives the first two channels of the first pixel: the tile's column and row."""

    card = EncoderCard(dim=2)

    def __init__(self):
        self.sizes, self.threads = [], set()

    def encode(self, batch):
        self.sizes.append(len(batch))
        self.threads.add(threading.current_thread().name)
        return EncoderOutput(batch.pixels[:, 0, 0, :2].astype(np.float32))


class Late(Corner):
    """Begins, and has its output only when it is asked for."""

    def __init__(self):
        super().__init__()
        self.flying, self.most = 0, 0

    def begin(self, batch):
        self.flying += 1
        self.most = max(self.most, self.flying)

        def finish():
            self.flying -= 1
            return self.encode(batch)

        return finish


class Broken(Corner):
    def encode(self, batch):
        raise EncoderError("no memory")


class Album:
    """Keeps every tile that it is given."""

    def __init__(self, fail_at=None, slow=0.0):
        self.tiles, self.threads = {}, set()
        self.fail_at, self.slow = fail_at, slow

    def write(self, coords, pixels):
        self.threads.add(threading.current_thread().name)
        time.sleep(self.slow)
        for (x, y), tile in zip(coords[:, :2].tolist(), pixels, strict=True):
            if (x, y) == self.fail_at:
                raise OSError("the disk is full")
            assert (x, y) not in self.tiles
            self.tiles[x, y] = tile.copy()


def planned(encoder, name="corner", *, concurrent=False, batch_size=32):
    return PlannedEncoder(
        name=name,
        spec=EncoderSpec(name=name, target="x:X", summary="x", concurrent=concurrent),
        encoder=encoder,
        device="cpu",
        precision="fp32",
        asked_batch_size=batch_size,
        fields={},
        registry=get_registry(),
    )


@pytest.fixture
def go(tmp_path):
    """Do a pass over a slide of 140 × 5 tiles and give what came out of it."""

    def run(*encoders, reader=None, sinks=(), filtered=False, batch_size=32, workers=2):
        reader = reader or Numbered(140, 5)
        grid = grid_of(reader)
        scratches = [
            stack.enter_context(FeatureScratch(tmp_path, len(grid), "float32")) for _ in encoders
        ]
        told = []
        done = PixelPass(
            # Red is the column and no tile is white: grey is below 20 left of column 65.
            filter=FilterSettings(enabled=filtered, black_gray_below=20),
            encoders=[(e, {"embedding": s}) for e, s in zip(encoders, scratches, strict=True)],
            sinks=sinks,
            batch_size=batch_size,
            threads=Threads(workers, 1),
            advance=told.append,
        )
        done.run(reader, grid)
        kept = np.flatnonzero(done.keep)
        features = [np.concatenate(list(s.source(kept).chunks(100))) for s in scratches]
        return SimpleNamespace(grid=grid, done=done, kept=kept, features=features, told=sum(told))

    with ExitStack() as stack:
        yield run


@pytest.mark.parametrize("batch_size", [7, 32, 1000])
@pytest.mark.parametrize("encoder", [Corner, Late])
@pytest.mark.parametrize("concurrent", [True, False])
def test_features_lie_where_their_tiles_are(go, encoder, concurrent, batch_size):
    made = encoder()
    result = go(planned(made, concurrent=concurrent), batch_size=batch_size)
    np.testing.assert_array_equal(result.features[0], result.grid.coords[:, :2] // TILE)
    assert result.told == len(result.grid) == sum(made.sizes)


def test_several_encoders_have_batches_of_their_own_size(go):
    small, large, free = Corner(), Corner(), Corner()
    result = go(
        planned(small, "small", batch_size=5),
        planned(large, "large", batch_size=50),
        planned(free, "free", concurrent=True, batch_size=3),
    )
    for features in result.features:
        np.testing.assert_array_equal(features, result.grid.coords[:, :2] // TILE)
    assert max(small.sizes) == 5
    assert max(large.sizes) == 50
    assert max(free.sizes) == 3


@pytest.mark.parametrize(("own", "other"), [(32, 50), (8, 32), (32, 48)])
def test_an_encoder_gets_the_same_batches_in_company(go, own, other):
    alone, accompanied = Corner(), Corner()
    go(planned(alone, batch_size=own), batch_size=own)
    go(planned(accompanied, batch_size=own), planned(Corner(), "b", batch_size=other))
    if (own, other) == (32, 50):  # 800 tiles at once would be too many
        assert max(accompanied.sizes) <= own
    else:
        assert accompanied.sizes == alone.sizes


def test_a_network_has_one_thread_to_itself_and_others_have_all(go):
    alone, free = Corner(), Corner()
    go(planned(alone, "alone"), planned(free, "free", concurrent=True), workers=3)
    assert alone.threads == {threading.current_thread().name}
    assert threading.current_thread().name not in free.threads


def test_a_device_computes_while_the_next_batch_is_prepared(go):
    late = Late()
    go(planned(late))
    assert late.most == 2
    assert late.flying == 0


@pytest.mark.parametrize("concurrent", [True, False])
def test_images_come_whole_and_once(go, concurrent):
    album = Album()
    result = go(sinks=[Sink(album, concurrent)], workers=3)
    assert len(album.tiles) == len(result.grid)
    for (x, y), tile in album.tiles.items():
        assert (tile[..., :2] == (x // TILE, y // TILE)).all()
    assert len(album.threads) == 1 or concurrent


def test_a_slow_writer_sees_the_pixels_that_it_was_given(go):
    album = Album(slow=0.01)
    go(planned(Corner()), sinks=[Sink(album)], batch_size=16)
    for (x, y), tile in album.tiles.items():
        assert (tile[..., :2] == (x // TILE, y // TILE)).all()


def test_the_filter_is_before_everything(go):
    album, one, free = Album(), Corner(), Corner()
    result = go(
        planned(one, "one"),
        planned(free, "free", concurrent=True),
        sinks=[Sink(album), Sink(shared := Album(), True)],
        filtered=True,
    )
    columns = result.grid.coords[:, 0] // TILE
    assert 0 < len(result.kept) < len(result.grid)
    expected = result.grid.coords[result.kept, :2]
    for features in result.features:
        np.testing.assert_array_equal(features, expected // TILE)
    assert set(map(tuple, expected.tolist())) == set(album.tiles) == set(shared.tiles)
    assert columns[~result.done.keep].max() < 65 <= columns[result.done.keep].max()
    assert result.done.keep[columns >= 65].all()
    assert result.told == len(result.grid)


@pytest.mark.parametrize("concurrent", [True, False])
def test_an_encoder_that_fails_ends_every_thread(go, concurrent):
    before = threading.active_count()
    with pytest.raises(EncoderError, match="no memory"):
        go(planned(Broken(), concurrent=concurrent))
    assert threading.active_count() == before


@pytest.mark.parametrize("concurrent", [True, False])
@pytest.mark.parametrize("last", [True, False])
def test_a_writer_that_fails_ends_every_thread(go, concurrent, last):
    place = (139 * TILE, 4 * TILE) if last else (100 * TILE, TILE)
    before = threading.active_count()
    with pytest.raises(OSError, match="disk is full"):
        go(planned(Corner()), sinks=[Sink(Album(fail_at=place), concurrent)])
    assert threading.active_count() == before


def test_a_broken_tile_ends_every_thread(go):
    before = threading.active_count()
    with pytest.raises(SlideReadError):
        go(
            planned(Late()),
            reader=Numbered(140, 5, fail_at=(130 * TILE, 0)),
            sinks=[Sink(Album(slow=0.05))],
        )
    assert threading.active_count() == before


def test_an_output_that_is_not_the_cards_is_refused(go):
    class Wide(Corner):
        card = EncoderCard(dim=3)

    with pytest.raises(EncoderError, match="its card says"):
        go(planned(Wide()))
