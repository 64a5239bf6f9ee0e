"""Plain images in every mode, and what is refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageFile
from readers import tiffs

from microtome.errors import SlideOpenError, SlideReadError
from microtome_readers import PillowConfig
from microtome_readers.pillow_reader import PillowReader

RGB = tiffs.colours()
GREY = RGB[..., 0]
ALPHA = np.where(GREY > 90, 255, 40).astype(np.uint8)


def reader(path, **options):
    return PillowReader(path, PillowConfig(**options))


def save(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp"])
def test_rgb_comes_back_as_it_is(tmp_path, suffix):
    options = {"lossless": True} if suffix == ".webp" else {}
    slide = reader(save(tmp_path / f"a{suffix}", RGB, **options))
    assert (slide.info.channels, slide.info.width, slide.info.height) == (3, 130, 90)
    assert np.array_equal(tiffs.whole(slide), RGB)
    assert np.array_equal(tiffs.read(slide, 30, 20, 50, 40), RGB[20:60, 30:80])


def test_jpeg_is_what_pillow_decodes(tmp_path):
    path = save(tmp_path / "a.jpg", RGB, quality=90)
    with Image.open(path) as image:
        assert np.array_equal(tiffs.whole(reader(path)), np.asarray(image))


def test_grey_becomes_rgb(tmp_path):
    slide = reader(save(tmp_path / "a.png", GREY))
    assert np.array_equal(tiffs.whole(slide), np.repeat(GREY[..., None], 3, axis=2))


def test_black_and_white_becomes_rgb(tmp_path):
    slide = reader(save(tmp_path / "a.png", GREY > 90))
    assert np.array_equal(tiffs.whole(slide)[..., 1], np.where(GREY > 90, 255, 0))


def test_a_palette_is_looked_up(tmp_path):
    image = Image.fromarray(RGB).quantize(32)
    image.save(tmp_path / "a.png")
    assert np.array_equal(tiffs.whole(reader(tmp_path / "a.png")), np.asarray(image.convert("RGB")))


def test_cmyk_becomes_rgb(tmp_path):
    image = Image.new("CMYK", (20, 10), (0, 255, 255, 0))
    image.save(tmp_path / "a.jpg", quality=100)
    assert np.abs(tiffs.whole(reader(tmp_path / "a.jpg"))[5, 5] - [255.0, 0, 0]).max() <= 3


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_kept(tmp_path, mode):
    colours = RGB if mode == "RGBA" else GREY[..., None]
    slide = reader(save(tmp_path / "a.png", np.dstack([colours, ALPHA])))
    pixels = tiffs.whole(slide)
    assert slide.info.channels == 4
    assert np.array_equal(pixels[..., 3], ALPHA)
    assert np.array_equal(pixels[..., :1], colours[..., :1])


def test_a_transparent_colour_is_alpha(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png", transparency=tuple(RGB[5, 5].tolist()))
    pixels = tiffs.whole(reader(tmp_path / "a.png"))
    assert np.array_equal(pixels[..., 3] == 0, (RGB[5, 5] == RGB).all(axis=2))


def test_of_an_animation_the_first_frame_is_read(tmp_path):
    frames = [Image.new("L", (30, 20), value) for value in (40, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (tiffs.whole(reader(tmp_path / "a.gif"))[..., :3] == 40).all()


def test_sixteen_bits_are_refused(tmp_path):
    save(tmp_path / "grey.png", GREY.astype(np.uint16) * 257)
    with pytest.raises(SlideOpenError, match=r"more than 8 bits.*convert it"):
        reader(tmp_path / "grey.png")


def test_sixteen_bit_rgb_is_refused_though_pillow_cuts_it_to_8(tmp_path):
    import cv2

    cv2.imwrite(str(tmp_path / "a.png"), RGB.astype(np.uint16) * 257)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "RGB"
    with pytest.raises(SlideOpenError, match="more than 8 bits"):
        reader(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".gif"])
@pytest.mark.parametrize("lenient", [False, True])
def test_a_cut_image_raises_each_time(tmp_path, monkeypatch, suffix, lenient):
    """Even where the process has told Pillow to fill in what is missing."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    path = save(tmp_path / f"a{suffix}", RGB)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    slide = reader(path)
    for _ in range(2):
        with pytest.raises(SlideReadError, match="cannot be decoded"):
            tiffs.whole(slide)
    assert lenient == ImageFile.LOAD_TRUNCATED_IMAGES


def test_too_large_an_image_is_refused_before_it_is_decoded(tmp_path):
    path = save(tmp_path / "a.png", RGB)
    with pytest.raises(SlideOpenError, match=r"reader\.max_megapixels=0\.01"):
        reader(path, max_megapixels=0.01)


def test_pillows_own_limit_does_not_count(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert reader(save(tmp_path / "a.png", RGB)).info.width == 130
    assert Image.MAX_IMAGE_PIXELS == 100


def test_a_tiff_is_left_to_other_readers(tmp_path):
    path = save(tmp_path / "a.tif", RGB)
    assert not PillowReader.probe(path)
    with pytest.raises(SlideOpenError, match="does not know"):
        reader(path)


def test_probe_knows_an_image_by_its_bytes(tmp_path):
    save(tmp_path / "a.png", RGB).rename(tmp_path / "nameless")
    assert PillowReader.probe(tmp_path / "nameless")


def test_threads_share_one_decoding(tmp_path):
    slide = reader(save(tmp_path / "a.png", RGB))
    with ThreadPoolExecutor(8) as threads:
        tiles = list(threads.map(lambda x: tiffs.read(slide, x, 0, 30, 90), range(100)))
    assert all(np.array_equal(tile, RGB[:, x : x + 30]) for x, tile in enumerate(tiles))
