"""The installed tools' own readers on our files, and ours on theirs.

``MICROTOME_SLIDE2VEC_PYTHON`` and the like name interpreters that have them. TRIDENT, CLAM and
STAMP are not asked: what they look for is written down in docs/layouts.md and held in
test_foreign.py.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from layouts.conftest import OPTIONS
from layouts.stores import content
from PIL import Image

import microtome
from microtome.__main__ import main

DRIVER = Path(__file__).with_name("peer_readers.py")

pytestmark = pytest.mark.timeout(600)  # they import torch


@pytest.fixture
def ask(exported, output, tmp_path):
    """Give what a tool's reader finds in our export, and the folder that it wrote into."""

    def run(tool, what="", folder=None):
        python = os.environ.get(f"MICROTOME_{tool.upper()}_PYTHON")
        if not python:
            pytest.skip(f"MICROTOME_{tool.upper()}_PYTHON names no interpreter with {tool}")
        own = tmp_path / "own"
        own.mkdir()
        slide = output.parent / "slides/a.svs"
        hidden = ("PYTHONPATH", "PYTHONHOME")
        paths = map(str, (folder or exported(tool), slide, own))
        done = subprocess.run(
            [python, str(DRIVER), what or tool, *paths],
            env={k: v for k, v in os.environ.items() if k not in hidden},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1]), own

    return run


@pytest.mark.parametrize("tool", ["slide2vec", "lazyslide", "atlaspatch"])
def test_their_readers_find_what_we_wrote(tool, ask, output):
    found, _ = ask(tool)
    ours = content(output)
    order = np.lexsort(np.array(found["points"]).T)
    assert np.array_equal(np.array(found["points"])[order], ours["coords"][:, :2])
    features = np.array(found["features"], np.float32)[order]
    assert np.array_equal(features, ours["features"]["handcrafted"])
    assert (found["side"], found["read"]) == (256, 256)
    assert found.get("image", [128, 128, 3]) == [128, 128, 3]
    assert found.get("names", ["handcrafted"]) == ["handcrafted"]


def test_slide2vecs_tile_archives_are_read_as_it_reads_them(ask, tmp_path):
    found, own = ask("slide2vec")
    (archive,) = own.rglob("*.tiles.tar")
    words = ["engine=inline", "+preset=archive", "writer=[hdf5,png]", "encoder=[]"]
    assert main([str(archive), f"output={tmp_path / 'new'}", *words]) == 0
    tiles = np.load(own / "archived.npy")
    assert len(tiles) == len(found["points"]) > 0
    for (x, y), tile in zip(found["points"], tiles, strict=True):
        png = Image.open(tmp_path / f"new/images/a.tiles/a.tiles_x{x}_y{y}.png")
        assert np.array_equal(np.array(png), tile)


def test_lazyslide_finds_tissue_and_embeddings(ask, output, tmp_path):
    words = [str(output.parent / "slides/a.svs"), f"output={tmp_path / 'out'}", *OPTIONS]
    words += [f"segmenter.folder={output.parent / 'masks'}", "tiler.magnification=20"]
    assert main([*words, "encoder=handcrafted", "slide_encoder=mean"]) == 0
    there = tmp_path / "there"
    assert main(["export", str(tmp_path / "out"), "--to", "lazyslide", str(there)]) == 0
    found, _ = ask("lazyslide", "lazyslide_slides", there)
    assert (found["tissues"], found["contours"], found["tissue_ids"]) == (1, [0], [0])
    with microtome.open_result(tmp_path / "out/patches/a.h5") as stored:
        expected = stored.array("slide_features/mean-handcrafted")
    np.testing.assert_array_equal(np.array(found["ours"], np.float32), expected[np.newaxis])
    np.testing.assert_allclose(found["theirs"], found["ours"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tool", ["slide2vec", "lazyslide", "atlaspatch"])
def test_what_they_wrote_is_imported(tool, ask, imported):
    found, own = ask(tool)
    theirs = content(imported(own, tool))
    points = np.array(found.get("theirs", found["points"]))
    order = np.lexsort(points.T)
    assert np.array_equal(theirs["coords"][:, :2], points[order])
    assert theirs["features"]["theirs"].shape == (len(points), 67)
    attributes = theirs["attributes"]
    assert (attributes["patch_size"], attributes["patch_size_level0"]) == (128, 256)
    if tool == "atlaspatch":  # each feature of theirs is its tile's x + y
        sums = points[order].sum(axis=1)
        assert np.array_equal(theirs["features"]["theirs"][:, 0], sums)
