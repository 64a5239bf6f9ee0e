"""What every encoder is lent: geometry as Pillow's, normalisation by the formula, shared work."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from microtome.errors import ConfigError
from microtome.plugin.specs import Transform
from microtome.slide.batch import TileBatch


def make_batch(count=3, height=61, width=61, seed=0):
    """Smooth colour noise: sharp enough that filters differ, without a byte pattern."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, 9, 9, 3), dtype=np.uint8)
    tiles = [np.asarray(Image.fromarray(t).resize((width, height), 3)) for t in small]
    pixels = np.stack(tiles) if tiles else np.zeros((0, height, width, 3), np.uint8)
    coords = np.arange(count * 5, dtype=np.int32).reshape(count, 5)
    return TileBatch(pixels, coords)


def test_split_gives_views_in_order():
    batch = make_batch(7)
    parts = batch.split(3)
    assert [len(part) for part in parts] == [3, 3, 1]
    assert all(np.shares_memory(part.pixels, batch.pixels) for part in parts)
    assert np.array_equal(np.concatenate([part.coords for part in parts]), batch.coords)
    assert batch.split(7) == [batch]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "nearest", "box"])
def test_prepared_is_pillow(interpolation):
    batch = make_batch()
    transform = Transform(resize=40, crop=32, interpolation=interpolation)
    filters = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4}
    expected = [
        np.asarray(
            Image.fromarray(tile).resize((40, 40), filters[interpolation]).crop((4, 4, 36, 36))
        )
        for tile in batch.pixels
    ]
    assert np.array_equal(batch.prepared(transform), expected)


@pytest.mark.parametrize(
    ("height", "width", "resize", "crop"),
    [(61, 61, 40, 32), (50, 75, 40, 33), (75, 50, 40, 33), (61, 61, None, 44), (30, 21, None, 26)],
)
def test_prepared_follows_torchvision(height, width, resize, crop):
    v2 = pytest.importorskip("torchvision.transforms.v2.functional")
    batch = make_batch(2, height, width)
    expected = []
    for tile in batch.pixels:
        image = Image.fromarray(tile)
        image = v2.resize(image, [resize]) if resize else image
        expected.append(np.asarray(v2.center_crop(image, [crop])))
    got = batch.prepared(Transform(resize=resize, crop=crop))
    assert np.array_equal(got, expected)


def test_exact_mode_ignores_the_aspect_ratio():
    batch = make_batch(1, 40, 60)
    tiles = batch.prepared(Transform(resize=30, resize_mode="exact", crop=None))
    expected = np.asarray(Image.fromarray(batch.pixels[0]).resize((30, 30), 2))
    assert np.array_equal(tiles[0], expected)


def test_tiles_that_fit_are_lent_as_they_are():
    batch = make_batch(2, 32, 32)
    assert batch.prepared(Transform(resize=None, crop=None)) is batch.pixels
    assert np.shares_memory(batch.prepared(Transform(resize=32, crop=32)), batch.pixels)


def test_prepared_is_made_once_for_one_geometry():
    batch = make_batch()
    first = Transform(resize=40, crop=32)
    other_colours = Transform(resize=40, crop=32, mean=(0, 0, 0), std=(1, 1, 1))
    assert batch.prepared(first) is batch.prepared(other_colours)
    assert batch.array(first) is not batch.array(other_colours)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"interpolation": "cubic"}, "cubic"), ({"resize_mode": "longest"}, "longest")],
)
def test_unknown_geometry_is_refused_by_name(wrong, named):
    with pytest.raises(ConfigError, match=named):
        make_batch().prepared(Transform(**wrong))


def test_array_is_the_formula():
    batch = make_batch(2, 16, 16)
    transform = Transform(resize=None, crop=None)
    expected = (batch.pixels / 255.0 - transform.mean) / transform.std
    got = batch.array(transform)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected.transpose(0, 3, 1, 2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("side", "resize"), [(64, 32), (61, 40), (61, 90)])
def test_torch_is_within_one_grey_level_of_pillow(interpolation, side, resize):
    torch = pytest.importorskip("torch")
    batch = make_batch(4, side, side)
    grey = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}
    transform = Transform(resize=resize, crop=None, interpolation=interpolation, **grey)
    tensor = batch.tensor(transform, "cpu", torch.float32)
    pillow = batch.prepared(transform).transpose(0, 3, 1, 2).astype(np.float32)
    assert np.abs(tensor.numpy() - pillow).max() <= 1.001


def test_tensor_equals_array_where_nothing_is_resized():
    torch = pytest.importorskip("torch")
    batch = make_batch(3, 40, 40)
    transform = Transform(resize=None, crop=33, std=(0.2, 0.3, 0.4))
    tensor = batch.tensor(transform, "cpu", torch.float32)
    assert tensor.shape == (3, 3, 33, 33)
    assert tensor.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(tensor.numpy(), batch.array(transform), rtol=0, atol=2e-6)


def test_tensor_is_shared_by_encoders_with_one_transform():
    torch = pytest.importorskip("torch")
    batch = make_batch()
    tensor = batch.tensor(Transform(), "cpu", torch.float32)
    assert batch.tensor(Transform(), "cpu", torch.float32) is tensor
    half = batch.tensor(Transform(), "cpu", torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert batch.tensor(Transform(resize=230), "cpu", torch.float32) is not tensor


def test_read_only_pixels_and_views_are_taken():
    torch = pytest.importorskip("torch")
    whole = make_batch(4, 40, 40)
    part = whole.split(2)[1]
    frozen = part.pixels.copy()
    frozen.flags.writeable = False
    same = TileBatch(frozen, part.coords)
    transform = Transform(resize=32, crop=32)
    assert torch.equal(
        same.tensor(transform, "cpu", torch.float32), part.tensor(transform, "cpu", torch.float32)
    )


def test_an_empty_batch_has_the_right_shape():
    torch = pytest.importorskip("torch")
    batch = make_batch(0)
    assert batch.array(Transform()).shape == (0, 3, 224, 224)
    assert batch.tensor(Transform(), "cpu", torch.float32).shape == (0, 3, 224, 224)
