"""Tiles read while a network trains."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

import microtome
from microtome import TileDataset
from microtome.errors import (
    ConfigError,
    InputError,
    SlideOpenError,
    SlideReadError,
    StoreError,
    UnknownPluginError,
)
from microtome.plugin.registry import get_registry
from microtome.slide.batch import TileBatch
from microtome.slide.types import TissueMask

TILES = {"grid": {"size": 100, "magnification": 10}}
"""Tiles that are resampled: 400 px at level 0, 100 px at a level that is twice as fine."""


@pytest.fixture(scope="module")
def output(cohort, tmp_path_factory):
    """Tiles of slides ``a``, ``b`` and ``c``."""
    folder = tmp_path_factory.mktemp("dataset")
    slides = [cohort / f"{name}.svs" for name in "abc"]
    with microtome.activate_progress_reporter(microtome.SilentReporter()):
        result = microtome.run_slides(
            slides, folder, encoder=[], tiler=TILES, segmenter="otsu", inspector="pen"
        )
    assert result.exit_code == 0
    return folder


@pytest.fixture
def tiles(output):
    """All of them."""
    dataset = TileDataset(output)
    yield dataset
    dataset.close()


def of(output, name):
    return output / "patches" / f"{name}.h5"


def everywhere(slide):
    array = np.ones((slide.info.height // 16, slide.info.width // 16), np.bool_)
    return TissueMask(array=array, downsample=(16.0, 16.0))


def read_as_a_slide(cohort, name):
    """Give what `Slide.read` gives of a slide's tiles, in order."""
    with microtome.open_slide(cohort / f"{name}.svs") as slide:
        grid = slide.tiles(slide.tissue("otsu"), **TILES["grid"])
        return slide.read(grid, range(len(grid)))


def test_items_are_what_a_slide_reads(tiles, cohort):
    expected = np.concatenate([read_as_a_slide(cohort, name) for name in "abc"])
    assert len(tiles) == len(expected) > 9
    images = np.stack([tiles[row]["image"] for row in range(len(tiles))])
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images.transpose(0, 2, 3, 1), expected)


def test_items_say_whose_they_are(tiles, output):
    assert tiles.slide_ids == ("a", "b", "c")
    with microtome.open_result(of(output, "b")) as stored:
        coords, columns = stored.coords, dict(stored.columns)
    first = int(np.flatnonzero(tiles.slide_index == 1)[0])
    np.testing.assert_array_equal(tiles.coords[tiles.slide_index == 1], coords)
    item = tiles[first + 2]
    assert (item["slide_id"], item["row"]) == ("b", 2)
    np.testing.assert_array_equal(item["coords"], coords[2])
    assert {"tissue_fraction", "pen_red"} <= {*columns} <= {*item}
    for name, column in columns.items():
        assert item[name] == column[2].item()
    assert tiles[-1]["row"] == tiles.rows[-1]
    with pytest.raises(IndexError, match="no tile"):
        tiles[len(tiles)]


def test_tiles_are_chosen_by_columns(output):
    whole = TileDataset(of(output, "a"))
    kept = TileDataset(of(output, "a"), keep=lambda columns: columns["tissue_fraction"] > 0.9)
    chosen = whole.columns["tissue_fraction"] > 0.9
    assert 0 < len(kept) < len(whole)
    np.testing.assert_array_equal(kept.rows, np.flatnonzero(chosen))
    np.testing.assert_array_equal(kept[0]["image"], whole[int(kept.rows[0])]["image"])
    with pytest.raises(ConfigError, match="booleans for a"):
        TileDataset(of(output, "a"), keep=lambda columns: columns["tissue_fraction"])


def test_a_grid_without_a_run(cohort, output):
    with microtome.open_slide(cohort / "a.svs") as slide:
        grid = slide.tiles(slide.tissue("otsu"), **TILES["grid"])
        for given in (slide, cohort / "a.svs"):
            placed = TileDataset((given, grid))
            np.testing.assert_array_equal(
                placed[3]["image"], TileDataset(of(output, "a"))[3]["image"]
            )


@pytest.mark.parametrize(("context", "workers"), [("spawn", 2), ("fork", 1)])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_read_the_same(tiles, context, workers):
    if context == "fork" and "cucim" in sys.modules:
        pytest.skip("cuCIM's threads do not survive a fork")
    expected = tiles[0]["image"]  # so that a slide is open before the fork
    loader = DataLoader(tiles, batch_size=5, num_workers=workers, multiprocessing_context=context)
    batches = list(loader)
    images = torch.cat([batch["image"] for batch in batches])
    assert images.shape == (len(tiles), 3, 100, 100)
    assert images.dtype is torch.uint8
    assert torch.equal(images[0], torch.from_numpy(expected))
    again = np.stack([tiles[row]["image"] for row in range(len(tiles))])
    assert torch.equal(images, torch.from_numpy(again))
    assert [name for batch in batches for name in batch["slide_id"]] == [
        tiles.slide_ids[number] for number in tiles.slide_index
    ]
    assert torch.equal(
        torch.cat([batch["coords"] for batch in batches]), torch.from_numpy(tiles.coords)
    )
    assert batches[0]["pen_red"].dtype is torch.float64


def test_a_transform_is_given_a_picture(output):
    augment = v2.Compose([v2.ToImage(), v2.CenterCrop(64), v2.ToDtype(torch.float32, scale=True)])
    plain, changed = TileDataset(of(output, "a")), TileDataset(of(output, "a"), transform=augment)
    expected = torch.from_numpy(plain[0]["image"][:, 18:82, 18:82]) / 255
    assert torch.allclose(changed[0]["image"], expected)


def test_a_transform_is_that_of_an_encoders_card(output):
    transform = get_registry().find("encoder", "resnet18").spec.card.transform
    plain = TileDataset(of(output, "a"))
    named = TileDataset(of(output, "a"), transform="resnet18")
    tile = plain[1]["image"].transpose(1, 2, 0)[np.newaxis]
    batch = TileBatch(np.ascontiguousarray(tile), plain.coords[1:2])
    expected = batch.tensor(transform, "cpu", torch.float32)[0]
    assert named[1]["image"].shape == (3, 224, 224)
    assert np.allclose(named[1]["image"], expected.numpy(), atol=1e-6)
    with pytest.raises(ConfigError, match="takes pixels as they are"):
        TileDataset(of(output, "a"), transform="handcrafted")


def test_no_more_slides_are_open_than_asked_for(output):
    dataset = TileDataset(output, max_open=2)
    for slide in (0, 1, 2, 0, 2):
        row = int(np.flatnonzero(dataset.slide_index == slide)[0])
        assert dataset[row]["slide_id"] == dataset.slide_ids[slide]
        assert len(dataset._slides._held) <= 2
    assert list(dataset._slides._held) == [0, 2]
    assert not pickle.loads(pickle.dumps(dataset))._slides._held
    dataset.close()
    assert not dataset._slides._held
    assert dataset[0]["slide_id"] == "a"


def test_a_slide_that_has_changed_is_told(output, cohort, tmp_path):
    moved = shutil.copy(cohort / "a.svs", tmp_path / "elsewhere.svs")
    there = TileDataset(of(output, "a"), slides={"a": moved})
    np.testing.assert_array_equal(there[0]["image"], TileDataset(of(output, "a"))[0]["image"])
    other = TileDataset(of(output, "a"), slides={"a": cohort / "b.svs"})
    with pytest.raises(SlideOpenError, match=r"Slide a: .*b\.svs is another file"):
        other[0]
    gone = TileDataset(of(output, "a"), slides={"a": tmp_path / "gone.svs"})
    with pytest.raises(
        SlideOpenError, match=r"Slide a: .*gone\.svs is not there.*manifest.*slides="
    ):
        gone[0]


@pytest.mark.parametrize("name", ["openslide", "tiff"])
def test_slides_are_read_by_the_reader_that_is_named(output, name):
    dataset = TileDataset(of(output, "a"), reader=name)
    again = pickle.loads(pickle.dumps(dataset))
    for one in (dataset, again):
        assert one[0]["image"].shape == (3, 100, 100)
        assert [slide.info.reader for slide in one._slides._held.values()] == [name]
        one.close()
    with pytest.raises(UnknownPluginError, match="nope"):
        TileDataset(of(output, "a"), reader="nope")


def test_a_tile_that_cannot_be_decoded_is_told(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    path = tmp_path / "cut.png"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: len(noise.tobytes()) // 2])
    with microtome.open_slide(path, mpp=0.5) as slide:
        grid = slide.tiles(everywhere(slide), size=128, mpp=0.5)
        dataset = TileDataset((slide, grid))
    assert len(dataset) == 4
    with pytest.raises(SlideReadError, match=r"Slide cut: .*cut\.png cannot be decoded"):
        dataset[3]


def test_what_makes_no_dataset(output, cohort, tmp_path):
    with pytest.raises(InputError, match="holds no finished slides"):
        TileDataset(tmp_path)
    with pytest.raises(InputError, match="at least one"):
        TileDataset([])
    with pytest.raises(StoreError, match="No writer reads"):
        TileDataset(cohort / "a.svs")
    with pytest.raises(ConfigError, match="not of int"):
        TileDataset([3])
    with pytest.raises(ConfigError, match="max_open=0"):
        TileDataset(output, max_open=0)
    with microtome.open_slide(cohort / "a.svs") as slide:
        small = slide.tiles(slide.tissue("otsu"), size=64, magnification=10)
        with pytest.raises(ConfigError, match=r"100 px \(a\), 64 px \(a\)"):
            TileDataset([of(output, "a"), (slide, small)])


def test_it_needs_no_torch(output):
    code = (
        "import sys, microtome\n"
        "tiles = microtome.TileDataset(sys.argv[1])\n"
        "assert tiles[0]['image'].shape == (3, 100, 100)\n"
        "assert 'torch' not in sys.modules\n"
    )
    command = [sys.executable, "-c", code, str(of(output, "a"))]
    done = subprocess.run(command, env={**os.environ}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
