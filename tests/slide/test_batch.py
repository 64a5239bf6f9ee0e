"""What every encoder is lent: geometry as Pillow's, normalisation by the formula, shared work."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from microtome.errors import ConfigError
from microtome.plugin.specs import Transform
from microtome.slide import batch as module
from microtome.slide.batch import TileBatch, prepare_tiles, prepared_size, tile_geometry


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


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(("side", "resize"), [(64, 32), (61, 40), (61, 90), (256, 224)])
def test_torch_is_given_what_numpy_is_given(interpolation, side, resize):
    """Also where torch's own kernel would differ: noise at 8/7 is where it is two levels off."""
    torch = pytest.importorskip("torch")
    noise = np.random.default_rng(0).integers(0, 256, (4, side, side, 3), dtype=np.uint8)
    batch = TileBatch(noise, np.zeros((4, 5), np.int32))
    grey = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}
    transform = Transform(resize=resize, crop=None, interpolation=interpolation, **grey)
    tensor = batch.tensor(transform, "cpu", torch.float32)
    size = Image.Resampling[interpolation.upper()]
    pillow = [np.asarray(Image.fromarray(tile).resize((resize, resize), size)) for tile in noise]
    np.testing.assert_allclose(tensor.permute(0, 2, 3, 1), pillow, rtol=0, atol=1e-4)


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


@pytest.mark.parametrize(
    ("shape", "transform"),
    [
        ((61, 61), Transform(resize=40, crop=32)),
        ((50, 75), Transform(resize=40, crop=None)),
        ((75, 50), Transform(resize=40, crop=None)),
        ((40, 60), Transform(resize=30, resize_mode="exact", crop=None)),
        ((30, 21), Transform(resize=None, crop=26)),
        ((32, 32), Transform(resize=None, crop=None)),
        ((61, 61), Transform(resize=40, crop=32, interpolation="lanczos")),
    ],
)
def test_prepared_size_is_that_of_what_is_prepared(shape, transform):
    pytest.importorskip("torch")
    tiles = prepare_tiles(make_batch(2, *shape).pixels, transform)
    assert tiles.shape == (2, *prepared_size(shape, transform), 3)
    assert tiles.dtype == np.uint8


def test_prepare_tiles_lends_what_fits_already():
    tiles = make_batch(2, 32, 32).pixels
    assert prepare_tiles(tiles, Transform(resize=32, crop=None)) is tiles
    assert np.shares_memory(prepare_tiles(tiles, Transform(resize=32, crop=30)), tiles)


def test_geometry_is_all_but_colours():
    transform = Transform(resize=40, crop=32)
    assert tile_geometry(transform) == tile_geometry(replace(transform, mean=(0, 0, 0)))
    changes = ({"resize": 41}, {"crop": 31}, {"resize_mode": "exact"}, {"interpolation": "bicubic"})
    for change in changes:
        assert tile_geometry(transform) != tile_geometry(replace(transform, **change))


def test_tiles_that_were_prepared_are_not_prepared_again():
    torch = pytest.importorskip("torch")
    transform = Transform(resize=40, crop=32)
    plain = make_batch(5)
    other = make_batch(5, seed=1)
    given = {tile_geometry(transform): prepare_tiles(other.pixels, transform)}
    batch = TileBatch(plain.pixels, plain.coords, given)
    expected = other.tensor(transform, "cpu", torch.float32)
    assert torch.equal(batch.tensor(transform, "cpu", torch.float32), expected)
    parts = [part.tensor(transform, "cpu", torch.float32) for part in batch.split(2)]
    assert torch.equal(torch.cat(parts), expected)
    assert np.array_equal(batch.prepared(transform), other.prepared(transform))
    wider = Transform(resize=44, crop=32)
    assert torch.equal(
        batch.tensor(wider, "cpu", torch.float32), plain.tensor(wider, "cpu", torch.float32)
    )


def test_encoders_with_one_batch_size_share_what_is_made():
    torch = pytest.importorskip("torch")
    batch = make_batch(5)
    first, second = batch.split(2)[1], batch.split(2)[1]
    made = first.tensor(Transform(), "cpu", torch.float32)
    assert second.tensor(Transform(), "cpu", torch.float32) is made


@pytest.mark.parametrize("side", [40, 300])
def test_bfloat16_is_the_rounded_float32(side):
    torch = pytest.importorskip("torch")
    batch = make_batch(6, side, side)
    transform = Transform(resize=None, crop=33)
    full = batch.tensor(transform, "cpu", torch.float32)
    half = batch.tensor(transform, "cpu", torch.bfloat16)
    assert half.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(half, full.bfloat16())


def test_many_tiles_are_normalised_as_few():
    torch = pytest.importorskip("torch")
    batch = make_batch(9, 256, 256)
    transform = Transform(resize=None, crop=None)
    parts = [part.tensor(transform, "cpu", torch.float32) for part in batch.split(1)]
    assert torch.equal(batch.tensor(transform, "cpu", torch.float32), torch.cat(parts))


def test_memory_is_used_again_but_not_while_anybody_holds_a_view(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(module, "_buffers", module._Buffers())
    transform = Transform(resize=None, crop=None)
    make = lambda seed: make_batch(2, 40, 40, seed).tensor(transform, "cpu", torch.float32)  # noqa: E731

    first = make(0)
    where, view = first.data_ptr(), first[1:].permute(0, 2, 3, 1)
    expected = view.clone()
    del first
    second = make(1)
    assert second.data_ptr() != where
    assert torch.equal(view, expected)
    del view
    assert make(2).data_ptr() == where


def test_little_memory_is_kept():
    buffers = module._Buffers(most=2)
    lent = [buffers.lend(size) for size in (10, 30, 20)]
    assert [block.size for block in lent] == [10, 30, 20]
    lent.clear()
    assert sorted(whole.size for whole in buffers._free.values()) == [20, 30]
    assert buffers.lend(15).base.size == 20


@pytest.mark.parametrize("std", [(0.2, 0.0, 0.2), (0.2, float("nan"), 0.2)])
def test_a_std_that_cannot_divide_is_refused(std):
    torch = pytest.importorskip("torch")
    with pytest.raises(ConfigError, match="std"):
        make_batch().array(Transform(std=std))
    with pytest.raises(ConfigError, match="std"):
        make_batch().tensor(Transform(std=std), "cpu", torch.float32)


class Streams:
    """Stands in for torch.cuda: tensors stay where they are, and what is asked for is noted."""

    def __init__(self, monkeypatch, torch, *, locked):
        self.log = []
        self.current = "computing"
        monkeypatch.setattr(torch.cuda, "Stream", lambda _: "copying")
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: self)
        monkeypatch.setattr(torch.cuda, "stream", self.switch)
        monkeypatch.setattr(torch.Tensor, "is_pinned", lambda _: locked)
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: self.note("lock") or t.clone())
        monkeypatch.setattr(torch.Tensor, "to", lambda t, *a, **k: self.copy(t, *a, **k))
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda _, s: self.note("keep for", s))
        module._copy_stream.cache_clear()

    def note(self, *what):
        self.log.append((*what, self.current))

    @contextmanager
    def switch(self, stream):
        self.current, before = stream, self.current
        yield
        self.current = before

    def copy(self, tensor, device, *, non_blocking):
        assert non_blocking
        self.note("copy to", device)
        return tensor.clone()

    def wait_stream(self, other):
        self.note("wait for", other)


@pytest.mark.parametrize("locked", [True, False])
def test_a_gpu_copies_on_a_stream_that_its_computing_waits_for(monkeypatch, locked):
    torch = pytest.importorskip("torch")
    with monkeypatch.context() as patch:
        streams = Streams(patch, torch, locked=locked)
        tiles = make_batch(3, 40, 40).pixels[:, 4:36, 4:36]
        there = module._upload(tiles, "cuda:1")
    module._copy_stream.cache_clear()
    assert there.is_contiguous()
    assert np.array_equal(there, tiles)
    assert streams.log == [
        *([] if locked else [("lock", "copying")]),
        ("copy to", "cuda:1", "copying"),
        ("wait for", "copying", "computing"),
        ("keep for", streams, "computing"),
    ]


def test_one_upload_serves_all_normalisations(monkeypatch):
    torch = pytest.importorskip("torch")
    sent = []
    monkeypatch.setattr(
        module, "_upload", lambda tiles, device: sent.append(device) or torch.from_numpy(tiles)
    )
    batch = make_batch(2, 40, 40)
    one = Transform(resize=36, crop=32)
    other = replace(one, mean=(0.1, 0.2, 0.3))
    tensors = [
        batch.tensor(transform, "cuda", dtype)
        for transform in (one, other)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    assert sent == ["cuda"]
    assert torch.equal(tensors[2], batch.tensor(other, "cpu", torch.float32))
    batch.tensor(replace(one, resize=33), "cuda", torch.float32)
    batch.tensor(one, "cuda:1", torch.float32)
    assert sent == ["cuda", "cuda", "cuda:1"]


def test_a_device_normalises_to_shapes_and_types_of_its_own():
    torch = pytest.importorskip("torch")
    images = torch.empty((2, 32, 32, 3), dtype=torch.uint8, device="meta")
    made = module._normalise(images, Transform(), torch.float16)
    assert (made.device.type, made.dtype, made.shape) == ("meta", torch.float16, (2, 3, 32, 32))
    assert made.is_contiguous(memory_format=torch.channels_last)
