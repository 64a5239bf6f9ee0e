"""The simple segmenters, the one that does nothing, and masks from files."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from microtome.errors import ConfigError, TissueError
from microtome.plugin.options import configure
from microtome.plugin.registry import get_registry
from microtome.slide.types import Level, SlideInfo, SlideRef, SlideView
from microtome_segmenters import FileConfig, microtome_segmenters


def view(image, slide_id="s1", mask_path=None, size=None):
    height, width = image.shape[:2] if size is None else size[::-1]
    ref = SlideRef(path=Path(f"{slide_id}.svs"), slide_id=slide_id, mask_path=mask_path)
    level = Level(width=width, height=height, downsample=1.0)
    return SlideView(
        slide=ref,
        info=SlideInfo(path=ref.path, reader="x", levels=(level,)),
        image=image,
        covered=None,
        downsample=(1.0, 1.0),
        mpp=None,
    )


def scene():
    rng = np.random.default_rng(0)
    truth = np.zeros((200, 240), np.uint8)
    cv2.ellipse(truth, (120, 100), (60, 45), 10, 0, 360, 1, -1)
    image = 240 + rng.normal(0, 1, (200, 240, 3))
    tissue = np.asarray([200, 120, 170]) + rng.normal(0, 25, (200, 240, 1))
    image = np.where(truth[..., None] > 0, tissue, image)
    return np.clip(image, 0, 255).astype(np.uint8), truth > 0


def create(name, **options):
    registry = get_registry()
    spec = registry.find("segmenter", name).spec
    return registry.create("segmenter", name, configure(spec, **options))


def test_every_segmenter_is_registered_and_documented():
    specs = list(microtome_segmenters())
    names = {"classic", "otsu", "threshold", "entropy", "none", "file", "sam2"}
    assert names <= {s.name for s in specs}
    assert all(s.summary and s.config.__doc__ for s in specs)


@pytest.mark.parametrize("name", ["classic", "otsu", "threshold", "entropy"])
def test_each_finds_a_plain_piece(name):
    image, truth = scene()
    (found,) = create(name).segment([view(image)])
    assert found.downsample == (1.0, 1.0)
    assert (found.array & truth).sum() / (found.array | truth).sum() > 0.85


@pytest.mark.parametrize("name", ["classic", "otsu", "threshold", "entropy"])
def test_each_finds_nothing_on_glass_and_skips_transparency(name):
    image, truth = scene()
    glass = np.where(truth[..., None], 240, image).astype(np.uint8)
    (empty,) = create(name).segment([view(glass)])
    assert not empty.array.any()


@pytest.mark.parametrize("name", ["classic", "otsu", "threshold", "entropy"])
def test_each_refuses_fluorescence(name):
    image = np.zeros((80, 80, 3), np.uint8)
    image[20:30, 20:30, 2] = 200
    with pytest.raises(TissueError, match=r"s1\.svs.*segmenter=none"):
        create(name).segment([view(image)])


def test_none_calls_everything_tissue_without_a_picture():
    (found,) = create("none").segment([view(np.empty((0, 0, 3), np.uint8), size=(300, 200))])
    assert found.array.tolist() == [[True]]
    assert found.downsample == (300.0, 200.0)


NO_IMAGE = np.empty((0, 0, 3), np.uint8)


def save(path, array):
    Image.fromarray(np.asarray(array, np.uint8)).save(path)
    return path


def load(path=None, size=(400, 200), slide_id="s1", **options):
    segmenter = create("file", **options)
    (found,) = segmenter.segment([view(NO_IMAGE, slide_id, path, size)])
    return found


LABELS = np.array([[0, 1, 2, 2], [0, 1, 1, 0]])


def test_a_mask_image_is_scaled_to_the_slide(tmp_path):
    found = load(save(tmp_path / "m.png", LABELS))
    assert found.array.tolist() == (LABELS > 0).tolist()
    assert found.downsample == (100.0, 100.0)


def test_label_values_choose(tmp_path):
    found = load(save(tmp_path / "m.png", LABELS), values=[2])
    assert found.array.tolist() == (LABELS == 2).tolist()


def test_tiff_and_colour_and_bilevel_masks(tmp_path):
    assert load(save(tmp_path / "m.tif", LABELS)).array.sum() == 5
    colour = np.stack([LABELS * 0, LABELS * 40, LABELS * 0], 2)
    assert load(save(tmp_path / "c.png", colour)).array.sum() == 5
    Image.fromarray(LABELS > 0).save(tmp_path / "b.png")
    assert load(tmp_path / "b.png").array.sum() == 5


def test_alpha_is_no_tissue(tmp_path):
    rgba = np.zeros((2, 4, 4), np.uint8)
    rgba[..., 3] = 255
    assert not load(save(tmp_path / "a.png", rgba)).array.any()


def test_jpeg_noise_is_no_tissue(tmp_path):
    array = np.zeros((100, 200), np.uint8)
    array[:, 100:] = 255
    Image.fromarray(array).save(tmp_path / "m.jpg", quality=60)
    assert np.array_equal(load(tmp_path / "m.jpg").array, array > 0)


def test_a_folder_is_matched_by_id_then_stem(tmp_path):
    save(tmp_path / "s1.png", LABELS)
    save(tmp_path / "other.png", LABELS * 0)
    segmenter = create("file", folder=str(tmp_path))
    by_id = SlideRef(path=Path("other.svs"), slide_id="s1")
    assert segmenter.sources(by_id) == (tmp_path / "s1.png",)
    by_stem = SlideRef(path=Path("other.svs"), slide_id="batch_other")
    assert segmenter.sources(by_stem) == (tmp_path / "other.png",)
    assert load(folder=str(tmp_path)).array.sum() == 5


def test_geojson_is_rasterised(tmp_path):
    ring = [[100, 0], [300, 0], [300, 200], [100, 200], [100, 0]]
    path = tmp_path / "s1.geojson"
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    found = load(folder=str(tmp_path), downsample=50.0)
    assert found.array.tolist() == [[False, False, True, True, True, True, False, False]] * 4


@pytest.mark.parametrize("name", ["m.png", "flat.tif", "tiled.tif", "pyramid.tif"])
def test_a_large_mask_is_reduced(tmp_path, name):
    array = np.zeros((48, 20000), np.uint8)
    array[:, 10002:] = 1
    array[40:, :600] = 1
    path = tmp_path / name
    tile = {"tile": (16, 512)} if name != "flat.tif" else {"rowsperstrip": 7}
    if name == "m.png":
        save(path, array)
    else:
        with tifffile.TiffWriter(path) as tiff:
            pyramid = name == "pyramid.tif"
            tiff.write(array, subifds=int(pyramid), compression="deflate", **tile)
            if pyramid:
                tiff.write(array[::4, ::4], subfiletype=1, tile=(16, 512))
    found = load(path, size=(40000, 96))
    factor = 1 if name == "pyramid.tif" else 3
    assert found.downsample == ((8.0, 8.0) if factor == 1 else (6.0, 6.0))
    expected = array[::4, ::4] if factor == 1 else array[1::3, 1::3]
    assert np.array_equal(found.array[:, : expected.shape[1]], expected > 0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.png", None, "there is no mask"),
        ("bad.png", b"not an image", "cannot be read"),
        ("bad.tif", b"not an image", "cannot be read"),
        ("bad.geojson", b"{", "cannot be read as GeoJSON"),
        ("mask.txt", b"", "a mask is an image"),
    ],
)
def test_unreadable_masks_are_refused_by_name(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TissueError, match=message) as error:
        load(path)
    assert name in str(error.value)


def test_another_aspect_is_refused(tmp_path):
    array = np.ones((100, 260))
    with pytest.raises(TissueError, match="aspect"):
        load(save(tmp_path / "m.png", array))
    assert load(tmp_path / "m.png", aspect_tolerance=0.4).array.all()


def test_missing_masks_and_folders_say_the_way_out(tmp_path):
    with pytest.raises(TissueError, match=r"mask_path.*segmenter\.folder"):
        load()
    with pytest.raises(TissueError, match="no mask s1"):
        load(folder=str(tmp_path))
    with pytest.raises(ConfigError, match="is no folder"):
        create("file", folder=str(tmp_path / "nowhere"))
    assert FileConfig().values == []
