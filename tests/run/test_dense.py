"""Token grids and attention of a run: what is stored, where it lies, what is computed again."""

from __future__ import annotations

import json
from dataclasses import dataclass

import h5py
import numpy as np
import pytest
import zarr
from run_checks import states
from standins import MeanEncoder

import microtome
from microtome.errors import ConfigError
from microtome.plugin import EncoderCard, EncoderSpec, hookimpl, option
from microtome.plugin.protocols import EncoderOutput
from microtome.plugin.specs import Transform
from microtome.run.planning import outputs
from microtome.run.slides.dense import dense_layout
from microtome.slide.batch import prepare_tiles
from microtome.slide.types import TileGeometry

CELLS = 4


@dataclass
class GridConfig:
    """Options of `GridEncoder`."""

    bias: float = option(0.0, help="Added to every token.")


class GridEncoder:
    """Gives the mean colour of a tile, and of each of 16 cells of it."""

    card = EncoderCard(dim=3, transform=Transform(resize=64, crop=48))
    calls = 0
    asked: tuple[str, ...] = ()

    def __init__(self, config):
        self.config = config

    def ask(self, *names):
        self.asked = names

    def load(self, device, precision):
        """Load nothing."""

    def encode(self, batch):
        GridEncoder.calls += len(batch)
        tiles = batch.prepared(self.card.transform).astype(np.float32)
        cells = tiles.reshape(len(tiles), CELLS, 12, CELLS, 12, 3).mean((2, 4)) + self.config.bias
        weights = cells[..., 0][:, None] / 1000
        return EncoderOutput(
            cells.mean((1, 2)),
            tokens=cells if "tokens" in self.asked else None,
            attention=np.repeat(weights, 2, 1) if "attention" in self.asked else None,
        )


class Boaster(MeanEncoder):
    """Says that it gives tokens."""

    def encode(self, batch):
        """Give the first pixel."""
        return EncoderOutput(batch.pixels[:, 0, 0].astype(np.float32))

    def ask(self, *names):
        """Forget it."""


class Plugins:
    """The stand-ins as a plugin."""

    @staticmethod
    @hookimpl
    def microtome_encoders():
        """Register the encoders."""
        for name, gives in (("grid", ("tokens", "attention")), ("boaster", ("tokens",))):
            yield EncoderSpec(
                name=name,
                target=f"{__name__}:{'GridEncoder' if name == 'grid' else 'Boaster'}",
                summary="A stand-in",
                config=GridConfig,
                gives=gives,
            )


@pytest.fixture(autouse=True)
def _grid(plugins):
    plugins.add(Plugins, "grids", "microtome-grids")
    GridEncoder.calls = 0


def asking(**options):
    return {"encoder": {"grid": {"tokens": True, "attention": True, **options}}}


def stored(tmp_path):
    return h5py.File(tmp_path / "out" / "patches" / "one.h5")


def test_token_grids_lie_row_by_row_beside_features(go, slide, tmp_path):
    assert states(go(slide, writer=["hdf5", "zarr"], **asking())) == ["done"]
    group = zarr.open_group(tmp_path / "out" / "patches" / "one.zarr", mode="r")
    with stored(tmp_path) as file, microtome.open_slide(slide) as opened:
        grid = opened.tiles(magnification=20)
        assert np.array_equal(file["coords"][:], grid.coords)
        expected = opened.encode_dense(grid, "grid", attention=True)
        assert np.array_equal(file["features/grid"][:], expected.embedding)
        for key, array in (("tokens", expected.tokens), ("attention", expected.attention)):
            found = file[f"{key}/grid"]
            assert found.dtype == np.float16
            assert np.array_equal(found[:], array.astype(np.float16))
            assert np.array_equal(group[f"{key}/grid"][:], found[:])
        assert file["tokens/grid"].shape == (len(grid), 4, 4, 3)
        assert file["attention/grid"].shape == (len(grid), 2, 4, 4)


def test_attributes_say_where_a_cell_lies_and_whose_it_is(go, slide, tmp_path):
    go(slide, **asking())
    with stored(tmp_path) as file:
        said, features = dict(file["tokens/grid"].attrs), file["features/grid"].attrs
        fields = json.loads(said["identity_fields"])
        assert fields["features"] == features["identity"]
        assert file["attention/grid"].attrs["identity"] != said["identity"]
        assert file["attention/grid"].attrs["heads"] == 2
        assert said["dim"] == 3
        # 256 px at 20x are 512 px at level 0; of 64 px the central 48 are the input: 4 px a pixel.
        assert said["token_grid"].tolist() == [4, 4]
        assert said["input_size"].tolist() == [48, 48]
        assert said["token_size"].tolist() == [48, 48]
        assert said["token_offset"].tolist() == [32, 32]
        assert said["token_size_level0"].tolist() == [96, 96]
        assert said["token_offset_level0"].tolist() == [64, 64]


def test_tokens_of_tiles_that_the_filter_drops_are_not_kept(go, slide, tmp_path):
    go(slide, filter={"enabled": True, "white_drop_from": 0.3}, **asking())
    with stored(tmp_path) as file:
        kept, planned = len(file["coords"]), GridEncoder.calls
        assert kept > 0
        assert file["tokens/grid"].shape[0] == file["attention/grid"].shape[0] == kept
        means = file["tokens/grid"][:].astype(np.float32).mean((1, 2))
        assert np.allclose(means, file["features/grid"][:], atol=0.1)
    with microtome.open_slide(slide) as opened:
        assert kept < len(opened.tiles(magnification=20))
    assert planned == kept + 1  # and a black one, to learn the shapes


def test_tokens_are_added_to_a_slide_without_touching_its_features(go, slide, tmp_path):
    go(slide, encoder="grid")
    with stored(tmp_path) as file:
        features, before = file["features/grid"][:], dict(file["features/grid"].attrs)
        assert "tokens" not in file
    GridEncoder.calls = 0
    assert states(go(slide, encoder={"grid": {"tokens": True}})) == ["done"]
    computed = GridEncoder.calls
    with stored(tmp_path) as file:
        assert computed == len(file["coords"]) + 1
        assert np.array_equal(file["features/grid"][:], features)
        after = dict(file["features/grid"].attrs)
        assert after["identity"] == before["identity"]
        assert after["microtome_token"] == before["microtome_token"]
        assert "attention" not in file
        tokens = file["tokens/grid"].attrs["microtome_token"]
    go(slide, **asking())
    with stored(tmp_path) as file:
        assert file["tokens/grid"].attrs["microtome_token"] == tokens
        assert "grid" in file["attention"]


def test_a_store_in_a_folder_gets_what_it_lacks(go, slide, tmp_path):
    go(slide, encoder="grid", writer="zarr")
    assert states(go(slide, writer=["hdf5", "zarr"], **asking())) == ["done"]
    group = zarr.open_group(tmp_path / "out" / "patches" / "one.zarr", mode="r")
    with stored(tmp_path) as file:
        for key in ("features/grid", "tokens/grid", "attention/grid"):
            assert np.array_equal(group[key][:], file[key][:])


def test_a_slide_that_has_everything_is_left_alone(go, slide):
    go(slide, **asking())
    GridEncoder.calls = 0
    assert states(go(slide, **asking())) == ["reused"]
    assert states(go(slide, encoder="grid")) == ["reused"]
    assert GridEncoder.calls == 0


def test_tokens_of_another_type_are_refused_by_name(go, slide):
    go(slide, **asking())
    (status,) = go(slide, dense_dtype="float32", **asking()).statuses
    assert status.state == "failed"
    assert "tokens/grid" in status.error["message"]
    assert "dtype" in status.error["message"]
    assert states(go(slide, dense_dtype="float32", force=True, **asking())) == ["done"]


def test_an_empty_slide_has_no_tokens(go, slide, tmp_path):
    assert states(go(slide, segmenter="nothing", **asking())) == ["empty"]
    with stored(tmp_path) as file:
        assert file["tokens/grid"].shape == (0, 4, 4, 3)
        assert file["attention/grid"].shape == (0, 2, 4, 4)


def test_a_full_disk_is_told_before_anything_is_computed(go, slide, monkeypatch, tmp_path):
    class Full:
        free = 1000

    monkeypatch.setattr(outputs, "disk_usage", lambda _: Full)
    (status,) = go(slide, dense_dtype="float32", **asking()).statuses
    assert status.state == "failed"
    assert "tokens/grid 4 × 4 × 3" in status.error["message"]
    assert "dense_dtype=float16" in status.error["message"]
    assert GridEncoder.calls == 1
    assert not (tmp_path / "out" / "patches" / "one.h5").exists()
    assert states(go(slide, encoder="grid", force=True)) == ["done"]


def test_an_encoder_that_gives_none_is_refused_with_those_that_do(go, slide):
    with pytest.raises(ConfigError) as refused:
        go(slide, encoder={"mean": {"tokens": True}})
    assert "encoder.mean.tokens=true, and mean gives no tokens. These do: " in str(refused.value)
    assert "boaster" in str(refused.value)
    with pytest.raises(ConfigError, match=r"encoder\.boaster\.attention=true"):
        go(slide, encoder={"boaster": {"attention": True}})


def test_an_encoder_that_says_more_than_it_gives_fails_its_slide(go, slide):
    (status,) = go(slide, encoder={"boaster": {"tokens": True}}).statuses
    assert status.state == "failed"
    assert "boaster was asked for tokens and gave none" in status.error["message"]


def test_tokens_too_large_for_half_precision_are_told_with_the_option(go, slide):
    (status,) = go(slide, **asking(bias=1e6)).statuses
    assert status.state == "failed"
    assert "dense_dtype=float32" in status.error["message"]


@pytest.mark.parametrize(
    ("transform", "tile"),
    [
        (Transform(resize=64, crop=48), 96),
        (Transform(resize=64, crop=47), 128),
        (Transform(resize=32, crop=48), 96),
        (Transform(resize=None, crop=48), 96),
        (Transform(resize=48, crop=None, resize_mode="exact"), 96),
        (None, 96),
    ],
)
def test_the_place_of_a_cell_is_where_its_pixels_come_from(transform, tile):
    geometry = geometry_of(tile)
    layout = dense_layout(geometry, transform, (4, 4))
    ramp = np.broadcast_to(np.arange(tile, dtype=np.uint8)[:, None], (tile, tile))
    image = np.stack([ramp, ramp.T, np.full_like(ramp, 255)], -1)[None]
    made = image if transform is None else prepare_tiles(image, transform)
    height, width = made.shape[1:3]
    assert layout["input_size"] == [width, height]
    inside = made[0, ..., 2] == 255
    y, x = np.nonzero(inside)
    for axis, (values, place) in enumerate(((made[0, ..., 1], x), (made[0, ..., 0], y))):
        span = layout["token_size"][axis] * 4 / made.shape[2 - axis]
        expected = layout["token_offset"][axis] + (place + 0.5) * span - 0.5
        assert np.abs(values[y, x] - expected).max() <= 1
        assert layout["token_offset_level0"][axis] == 2 * layout["token_offset"][axis]


def geometry_of(size):
    return TileGeometry(
        size=size,
        step=size,
        level=0,
        level_downsample=1.0,
        read_size=(2 * size, 2 * size),
        pitch=(2 * size, 2 * size),
        size_level0=(2.0 * size, 2.0 * size),
        pitch_level0=(2.0 * size, 2.0 * size),
        target_mpp=0.5,
        target_magnification=None,
        effective_mpp=(0.5, 0.5),
    )
