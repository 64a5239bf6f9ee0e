"""Runs that are tiled by a level of their slides."""

from __future__ import annotations

import bag_standins
import h5py
import numpy as np
import openslide
import pytest
from label_runs import SQUARE, asap, of_class, read, square
from run_checks import states

import microtome
from microtome.__main__ import main
from microtome.errors import ConfigError
from microtome.plugin.registry import get_registry
from microtome.plugin.specs import EncoderCard
from microtome.run.planning.target import level_misfits, settle_target
from microtome.slide import GridConfig
from microtome.store.exchange import read_geometry
from microtome.store.verify import verify_output
from microtome.testing import make_slide

UNI = EncoderCard(dim=1, patch_size=256, magnification=20, mpp=0.5)
BARE = {"size": (1024, 768), "levels": (1, 2, 4), "aperio": False}


@pytest.fixture(autouse=True)
def bags(plugins):
    plugins.add(bag_standins.Plugins, "bag_standins", "microtome-bag-standins")


@pytest.fixture
def pyramid(tmp_path):
    return make_slide(
        tmp_path / "one.svs", size=(2048, 1536), levels=(1, 2, 4), mpp=0.25, magnification=40
    ).path


def test_a_level_leaves_the_resolution_open():
    settled, notes = settle_target(GridConfig(level=0), {"plain": EncoderCard(dim=1)})
    assert (settled.size, settled.magnification, settled.mpp) == (256, None, None)
    assert notes == ["Tiles are 256 px of level 0: the size is the default."]


def test_cards_that_say_a_resolution_are_told():
    settled, notes = settle_target(GridConfig(level=1), {"uni": UNI})
    assert settled.size == 256
    assert notes[1:] == [
        "uni was made for 256 px at 20x, the run gives 256 px of level 1, at each slide's own "
        "resolution."
    ]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"magnification": 20}, r"tiler\.magnification=20 and tiler\.level=1 are two targets"),
        ({"mpp": 0.5}, r"tiler\.mpp=0\.5 and tiler\.level=1 are two targets"),
        ({"mpp": 0.5, "magnification": 20}, "three targets"),
    ],
)
def test_another_target_beside_it_is_refused(options, told):
    with pytest.raises(ConfigError, match=told):
        settle_target(GridConfig(level=1, **options), {})


def test_what_is_stored_is_the_level(go, pyramid, tmp_path):
    tiler = {"grid": {"level": 1, "size": 128}}
    (status,) = go(pyramid, tiler=tiler, tiling="auto", encoder="handcrafted").statuses
    assert status.state == "done"
    path = tmp_path / "out/level1_128px_0px/patches/one.h5"
    with microtome.open_result(path) as stored:
        told, coords = stored.attributes, stored.coords
        geometry = read_geometry(told, "one")
        assert len(stored.features("handcrafted")) == len(coords) > 0
    assert told["target_level"] == 1
    assert told["target_magnification"] == 20
    assert told["target_mpp"] == "None"
    assert (geometry.target_level, geometry.target_magnification) == (1, None)
    assert geometry.effective_mpp == (0.5, 0.5)
    assert (coords[:, 2:] == (128, 128, 1)).all()
    assert (coords[:, :2] % 256 == 0).all()
    assert states(go(pyramid, tiler=tiler, tiling="auto", encoder="handcrafted")) == ["reused"]
    assert not verify_output(tmp_path / "out", get_registry(), deep=True).faults
    with microtome.open_slide(pyramid) as slide:
        np.testing.assert_array_equal(slide.tiles(level=1, size=128).coords, coords)


def test_a_command_line_without_any_mpp(tmp_path, capsys):
    """Pixels are written as the level stores them; a slide with fewer levels fails alone."""
    slides = tmp_path / "slides"
    bare = {"record_mpp": False, "magnification": None}
    path = make_slide(slides / "a.tif", **BARE, **bare).path
    make_slide(slides / "flat.tif", **{**BARE, "levels": (1,)}, **bare)
    words = ["encoder=handcrafted", "tiler.level=2", "tiler.size=64", "segmenter=none"]
    assert main([str(slides), f"output={tmp_path / 'out'}", "engine=inline", *words]) == 3
    assert "has no level 2, its only one is 0 (1024 × 768 px)" in capsys.readouterr().err
    tiles = microtome.TileDataset(str(tmp_path / "out/patches/a.h5"))
    assert len(tiles) == 4 * 3
    with openslide.OpenSlide(path) as wsi:
        for tile in (tiles[row] for row in range(len(tiles))):
            x, y = (int(tile["coords"][axis]) for axis in (0, 1))
            region = wsi.read_region((x, y), 2, (64, 64)).convert("RGB")
            np.testing.assert_array_equal(np.moveaxis(tile["image"], 0, -1), np.asarray(region))
    with h5py.File(tmp_path / "out/patches/a.h5") as file:
        assert file.attrs["target_magnification"] == "None"
        assert file.attrs["effective_mpp"] == "None"


@pytest.mark.parametrize(("level", "state"), [(1, "done"), (0, "failed"), (2, "failed")])
def test_slide_encoders_go_by_the_mpp_of_the_level(go, pyramid, level, state):
    """Both need 0.5 µm/px, one by name: level 1 of a slide of 0.25."""
    (status,) = go(
        pyramid,
        slide_encoder=["physical", "nominal"],
        encoder=[],
        tiler={"grid": {"level": level, "min_tissue": 0.01}},
    ).statuses
    assert status.state == state, status.message
    if state == "failed":
        mpp = (0.25, 0.5, 1)[level]
        assert f"{mpp} µm/px" in status.message
        assert "by name" not in status.message


def test_a_slide_encoder_is_not_fed_tiles_of_unknown_resolution(go, tmp_path):
    path = make_slide(tmp_path / "b.tif", **BARE, record_mpp=False, magnification=None).path
    given = {"slide_encoder": "nominal", "encoder": [], "segmenter": "none"}
    (status,) = go(path, tiler={"grid": {"level": 0}}, **given).statuses
    assert status.state == "failed"
    assert "no known resolution" in status.message


def test_a_size_that_a_slide_encoder_was_not_made_for_is_refused_early(go, pyramid):
    with pytest.raises(ConfigError, match=r"128 px at 20x .* tiler\.size=256\. Leave out"):
        go(
            pyramid,
            slide_encoder="nominal",
            encoder=[],
            tiler={"grid": {"level": 1, "size": 256}},
        )


def test_each_slide_warns_of_encoders_made_for_another_resolution(go, pyramid, plugins):
    with microtome.open_slide(pyramid) as slide:
        at = {n: slide.tiles(level=n, size=128).geometry for n in (0, 1)}
        nominal = slide.tiles(magnification=40, size=128).geometry
    assert list(level_misfits({"uni": UNI}, at[1])) == []
    assert list(level_misfits({"uni": UNI}, nominal)) == []
    assert list(level_misfits({"uni": UNI, "plain": EncoderCard(dim=1)}, at[0])) == [
        "level 0 has 0.25 µm/px, uni was made for 256 px at 20x"
    ]


def test_a_run_warns_of_them(go, pyramid, monkeypatch):
    import standins

    card = EncoderCard(dim=3, patch_size=128, magnification=20, mpp=0.5)
    monkeypatch.setattr(standins.MeanEncoder, "card", card)
    given = {"encoder": "mean", "tiler": {"grid": {"level": 0}}}
    (status,) = go(pyramid, **given).statuses
    assert status.warnings == ("level 0 has 0.25 µm/px, mean was made for 128 px at 20x",)


def test_tiles_of_a_level_are_labelled(pyramid, tmp_path):
    """Level 2 is 4 times smaller: tiles of 64 px are 256 at level 0."""
    asap(tmp_path / "outlines/one.xml", SQUARE)
    words = [f"output={tmp_path / 'out'}", f"annotations={tmp_path / 'outlines'}"]
    words += ["task=index", "labels.classes.tumor=[Tumor]", "tiler.level=2", "tiler.size=64"]
    assert main([str(pyramid), *words, "segmenter=none", "engine=inline"]) == 0
    labels, told = read(tmp_path / "out/patches/one.h5")
    assert of_class(labels) == square(*SQUARE[1])
    assert len(labels) == 8 * 6
    assert told["target_level"] == 2


def test_a_real_slide_without_mpp(go, shared_data, tmp_path):
    """Its level 1 is 2.0005 times smaller; nothing says how many µm a pixel is."""
    path = shared_data / "slides/tcga-cr-7395-01a-01-ts1.svs"
    tiler = {"grid": {"level": 1, "size": 256}}
    (status,) = go(path, tiler=tiler, encoder="handcrafted", segmenter="none").statuses
    assert (status.state, status.tiles) == ("done", (2221 // 256) * (1783 // 256))
    with microtome.open_result(tmp_path / f"out/patches/{path.stem}.h5") as stored:
        geometry = read_geometry(stored.attributes, path.stem)
    assert geometry.read_size == geometry.pitch == (256, 256)
    assert (geometry.target_level, geometry.effective_mpp) == (1, None)
