"""Heatmaps: where colours lie, and what viewers make of the files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import openslide
import pytest
import tifffile
from matplotlib import colormaps
from PIL import Image
from probability_maps import make_map

from microtome.errors import ConfigError, StoreError
from microtome.slide.opening import open_slide
from microtome.slide.types import SlideRef
from microtome.testing import make_slide
from microtome_training.options.predict import HeatmapConfig, HeatmapKind
from microtome_training.predicting.heatmaps import (
    blend,
    draw_heatmap,
    rasterise,
    read_overlay,
    to_grey,
)
from microtome_training.predicting.pyramid import pyramid_sizes, read_note
from microtome_training.predicting.results import heatmap_path

SIZE = (3000, 2100)
"""Of the slide; neither side is a whole number of tiles or of pictures' pixels."""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_slide(
        tmp_path_factory.mktemp("slide") / "a.svs", size=SIZE, mpp=0.5, magnification=20
    ).path


@pytest.fixture
def slide(path):
    with open_slide(SlideRef(path=path, slide_id="a")) as opened:
        yield opened


@pytest.fixture
def found():
    return make_map(["09", "5."], extent=SIZE)


def pixels_of(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_every_pixel_has_the_probability_of_the_tile_that_its_centre_is_in():
    values, covered = rasterise(make_map(["09", "5."], extent=(1024, 1024)), (64, 64))
    assert np.unique(values[:16, :16]).tolist() == [0]
    assert np.unique(values[:16, 16:32]).tolist() == pytest.approx([0.9])
    assert np.unique(values[16:32, :16]).tolist() == [0.5]
    assert covered[:16, :32].all()
    assert covered[16:32, :16].all()
    assert covered.sum() == 3 * 256


def test_overlapping_tiles_have_their_mean():
    values, covered = rasterise(make_map(["28"], step=128, extent=(384, 256)), (3, 2))
    assert values[0].tolist() == pytest.approx([0.2, 0.5, 0.8])
    assert covered.all()


def test_order_of_tiles_does_not_show():
    rows = ["1234567"] * 5
    orders = (None, np.random.default_rng(1).permutation(35))
    maps = [make_map(rows, step=37, extent=(600, 500), order=order) for order in orders]
    first, second = (rasterise(each, (97, 81))[0] for each in maps)
    assert np.array_equal(first, second)


def test_bands_of_a_high_picture_fit_together():
    values, covered = rasterise(make_map(["3"] * 9, extent=(256, 9 * 256)), (20, 1500))
    assert covered.all()
    assert np.unique(values).tolist() == pytest.approx([0.3])


def test_tiles_beyond_the_slide_are_cut():
    values, covered = rasterise(make_map(["37"], extent=(300, 100)), (30, 10))
    assert covered.all()
    assert values[0, 25:28].tolist() == pytest.approx([0.3, 0.7, 0.7])


def test_grey_tells_no_tile_from_probability_0():
    values, covered = np.array([[0, 0, 0.5, 1]], np.float32), np.array([[0, 1, 1, 1]], bool)
    assert to_grey(values, covered).tolist() == [[0, 1, 128, 255]]


def test_picture_stays_where_there_is_no_tile():
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    covered = np.zeros((4, 6), bool)
    covered[1, 2] = True
    mixed = blend(image, np.ones((4, 6), np.float32), covered, opacity=1)
    assert np.array_equal(mixed[~covered], image[~covered])
    top = np.rint(np.array(colormaps["viridis"](1.0)[:3]) * 255)
    assert mixed[1, 2].tolist() == top.tolist()


def test_overlay_has_the_colours_of_its_tiles(tmp_path, slide, found):
    options = HeatmapConfig(opacity=1, kind=HeatmapKind.none, thumbnail_px=1500)
    files = draw_heatmap(found, slide, tmp_path / "b" / "a", options=options)
    assert files.tiff is None
    picture = pixels_of(files.png)
    assert picture.shape[0] == 1050
    assert picture.shape[1] > 1500  # the legend is beside it
    for (x, y), value in {(64, 64): 0.0, (192, 64): 0.9, (64, 192): 0.5}.items():
        wanted = np.array(colormaps["viridis"](value)[:3]) * 255
        assert np.abs(picture[y, x] - wanted).max() <= 2
    plain = draw_heatmap(
        replace(found, coords=found.coords[:0], probability=found.probability[:0]),
        slide,
        tmp_path / "plain",
        options=options,
    )
    without = pixels_of(plain.png)
    assert np.array_equal(picture[300:, :1500], without[300:, :1500])
    assert np.array_equal(picture[:, 1500:], without[:, 1500:])


def test_an_overlay_is_read_without_its_legend(tmp_path, slide, found):
    options = HeatmapConfig(kind=HeatmapKind.none, thumbnail_px=600)
    path = draw_heatmap(found, slide, tmp_path / "a", options=options).png
    whole, picture = pixels_of(path), read_overlay(path)
    assert picture.shape == (420, 600, 3)
    assert whole.shape[1] > 600
    assert np.array_equal(whole[:420, :600], picture)
    Image.fromarray(whole).save(path)  # a picture of somebody else's
    assert read_overlay(path).shape == whole.shape
    path.write_bytes(path.read_bytes()[:99])
    with pytest.raises(StoreError, match="cannot be read as a picture"):
        read_overlay(path)


def test_no_two_classes_share_a_folder(tmp_path):
    names = ["a/b", "a_b", "a%2Fb", ".a", "a", "a.", "a:", "a ", "..", "%", "tumour, µ"]
    paths = [heatmap_path(tmp_path, "s/1", name, ["normal", *names]) for name in names]
    folders = [path.parent.parent for path in paths]
    assert len(set(folders)) == len(names)
    assert {folder.parent for folder in folders} == {tmp_path / "heatmaps"}
    assert [folder.name for folder in folders][:3] == ["a%2Fb", "a_b", "a%252Fb"]
    assert not [folder for folder in folders if folder.name.startswith(".")]
    assert heatmap_path(tmp_path, "s", "a", ["normal", "a"]) == tmp_path / "heatmaps" / "s"


def test_labelled_tiles_are_outlined(tmp_path, slide, found):
    options = HeatmapConfig(opacity=1, kind=HeatmapKind.none, thumbnail_px=1500)
    labelled = replace(found, positive=np.array([False, True, False]))
    files = draw_heatmap(labelled, slide, tmp_path / "a", options=options)
    picture = pixels_of(files.png)
    assert (picture[64, [128, 255]] < 40).all()
    assert picture[64, 192, 1] > 150
    assert not (picture[192, [0, 127]] < 40).all()


def test_pyramid_opens_in_openslide_and_lies_on_the_slide(tmp_path, slide, found):
    options = HeatmapConfig(png=False, mpp=1.0, opacity=1)
    files = draw_heatmap(found, slide, tmp_path / "a", options=options)
    assert files.png is None
    with openslide.OpenSlide(files.tiff) as heatmap:
        assert heatmap.level_dimensions == ((1500, 1050), (750, 525), (375, 263), (188, 132))
        for axis, side in (("x", 0), ("y", 1)):
            mpp = float(heatmap.properties[f"openslide.mpp-{axis}"])
            assert mpp * heatmap.dimensions[side] == pytest.approx(SIZE[side] * 0.5, rel=1e-6)
        for level, factor in enumerate(heatmap.level_downsamples):
            assert factor == pytest.approx(2**level, rel=0.01)
            pixels = np.asarray(
                heatmap.read_region((0, 0), level, heatmap.level_dimensions[level])
            )[..., :3]
            for (x, y), value in {(64, 64): 0.0, (192, 64): 0.9, (64, 192): 0.5}.items():
                wanted = np.array(colormaps["viridis"](value)[:3]) * 255
                got = pixels[int(y / factor), int(x / factor)]
                assert np.abs(got - wanted).max() <= 8  # it is JPEG


def test_levels_are_directories_tagged_as_reduced(tmp_path, slide, found):
    files = draw_heatmap(found, slide, tmp_path / "a", options=HeatmapConfig(png=False, mpp=1.0))
    with tifffile.TiffFile(files.tiff) as file:
        assert [page.subfiletype for page in file.pages] == [0, 1, 1, 1]
        assert all(page.is_tiled for page in file.pages)
        assert {page.compression.name for page in file.pages} == {"JPEG"}
        assert {page.tags["ResolutionUnit"].value.name for page in file.pages} == {"CENTIMETER"}
        assert not file.is_bigtiff
    assert read_note(files.tiff)["class"] == "tumor"


def test_probabilities_are_stored_without_loss(tmp_path, slide, found):
    options = HeatmapConfig(png=False, mpp=1.0, kind=HeatmapKind.probability)
    files = draw_heatmap(found, slide, tmp_path / "a", options=options)
    with tifffile.TiffFile(files.tiff) as file:
        assert file.pages.first.shape == (1050, 1500)
        for number, page in enumerate(file.pages):
            grey = page.asarray()
            assert np.unique(grey).tolist() == [0, 1, 128, 230]
            assert grey[64 >> number, 192 >> number] == 230
    with openslide.OpenSlide(files.tiff) as heatmap:
        assert heatmap.level_count == 4
        assert heatmap.read_region((128, 0), 0, (1, 1)).getpixel((0, 0))[:3] == (230,) * 3


def test_pictures_that_show_the_same_are_left(tmp_path, slide, found):
    def draw(identity, **options):
        files = draw_heatmap(
            found, slide, tmp_path / "a", options=HeatmapConfig(**options), identity=identity
        )
        return [each.stat().st_mtime_ns for each in (files.png, files.tiff)]

    first = draw("one")
    assert draw("one") == first
    other = draw("two")
    assert not set(other) & set(first)
    assert not set(draw("two", opacity=0.7)) & set(other)
    assert draw("") != draw("")


def test_labels_that_changed_are_drawn(tmp_path, slide, found):
    def draw(*positive):
        labelled = replace(found, positive=np.array(positive))
        options = HeatmapConfig(kind=HeatmapKind.none, thumbnail_px=300)
        files = draw_heatmap(labelled, slide, tmp_path / "a", options=options, identity="one")
        return files.png.read_bytes()

    assert draw(True, False, False) != draw(False, True, False)


def test_large_file_is_a_bigtiff_that_opens(tmp_path, slide, found, monkeypatch):
    monkeypatch.setattr("microtome_training.predicting.pyramid._BIG", 1000)
    files = draw_heatmap(found, slide, tmp_path / "a", options=HeatmapConfig(png=False))
    with tifffile.TiffFile(files.tiff) as file:
        assert file.is_bigtiff
    with openslide.OpenSlide(files.tiff) as heatmap:
        assert heatmap.dimensions == (375, 262)


def test_damaged_pictures_are_drawn_anew(tmp_path, slide, found):
    files = draw_heatmap(found, slide, tmp_path / "a", identity="one")
    for path in (files.png, files.tiff):
        path.write_bytes(b"nothing")
    draw_heatmap(found, slide, tmp_path / "a", identity="one")
    assert pixels_of(files.png).shape[2] == 3
    assert read_note(files.tiff)["prediction"] == "one"


def test_slide_without_mpp_has_a_heatmap_without(tmp_path, found):
    bare = make_slide(
        tmp_path / "bare.tif", size=SIZE, record_mpp=False, magnification=None, aperio=False
    )
    with open_slide(SlideRef(path=bare.path, slide_id="a")) as opened:
        options = HeatmapConfig(max_px=600)
        files = draw_heatmap(found, opened, tmp_path / "a", options=options)
    with openslide.OpenSlide(files.tiff) as heatmap:
        assert heatmap.dimensions == (600, 420)
        assert "openslide.mpp-x" not in heatmap.properties


def test_class_of_any_name_has_a_legend(tmp_path, slide, found):
    named = replace(found, class_name="$x$ 腫瘍")
    files = draw_heatmap(named, slide, tmp_path / "a", options=HeatmapConfig(thumbnail_px=300))
    assert read_note(files.tiff)["class"] == "$x$ 腫瘍"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"colours": "rainbows"}, "viridis"),
        ({"opacity": 1.5}, "opacity"),
        ({"mpp": 0}, "heatmap.mpp"),
        ({"max_px": -1}, "heatmap.max_px"),
    ],
)
def test_options_that_make_no_sense(tmp_path, slide, found, options, told):
    with pytest.raises(ConfigError, match=told):
        draw_heatmap(found, slide, tmp_path / "a", options=HeatmapConfig(**options))


def test_sizes_of_a_pyramid_end_with_a_tile():
    assert pyramid_sizes(1000, 301) == [(1000, 301), (500, 151), (250, 76)]
    assert pyramid_sizes(256, 1) == [(256, 1)]
