"""Runs on tiles that are there: imported ones, and another output's."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from layouts.stores import content

from microtome.__main__ import main
from microtome.testing import make_slide

RUN = ["engine=inline", "segmenter=none", "tiler=stored"]


@pytest.fixture
def slide(output):
    return output.parent / "slides/a.svs"


@pytest.fixture
def back(exported, imported):
    """Imported coordinates without features."""
    return imported(exported("trident", "--features=none"), "trident")


def run(slide, out, tiles, *words):
    return main([str(slide), f"output={out}", *RUN, f"tiler.folder={tiles / 'patches'}", *words])


def test_features_of_imported_coordinates_are_those_of_the_first_run(slide, back, output, tmp_path):
    assert run(slide, tmp_path / "new", back) == 0
    new, old = content(tmp_path / "new"), content(output)
    assert np.array_equal(new["coords"], old["coords"])
    assert np.array_equal(new["features"]["handcrafted"], old["features"]["handcrafted"])
    assert new["attributes"]["effective_mpp"] == old["attributes"]["effective_mpp"]


def test_tiles_of_another_output_in_zarr(slide, exported, imported, output, tmp_path):
    tiles = imported(exported("slide2vec"), "slide2vec", "--writer=zarr")
    assert run(slide, tmp_path / "new", tiles, "task=coords") == 0
    new = content(tmp_path / "new")
    assert np.array_equal(new["coords"], content(output)["coords"])
    assert np.array_equal(
        new["columns"]["tissue_fraction"], content(output)["columns"]["tissue_fraction"]
    )


def test_it_is_reused_until_the_tiles_are_others(slide, back, tmp_path, capsys):
    assert run(slide, tmp_path / "new", back) == 0
    capsys.readouterr()
    assert run(slide, tmp_path / "new", back) == 0
    assert "1 reused" in capsys.readouterr().out
    with h5py.File(back / "patches/a.h5", "r+") as file:
        file.attrs["identity"] = "0" * 64
    assert run(slide, tmp_path / "new", back) == 3
    assert "tiles.coords changed" in capsys.readouterr().err


def test_a_run_into_imported_slides_says_how_to_go_on(slide, back, capsys):
    assert main([str(slide), f"output={back}", "engine=inline", "segmenter=none"]) == 3
    told = capsys.readouterr().err
    assert "patches/a.h5 was imported, not made by a run" in told
    assert "tiler=stored tiler.folder=…" in told
    assert content(back)["attributes"]["imported_from"] == "TRIDENT"


def test_what_it_needs(slide, back, tmp_path, capsys):
    assert main([str(slide), f"output={tmp_path / 'new'}", *RUN]) == 2
    assert "tiler=stored is given no tiler.folder" in capsys.readouterr().err
    other = make_slide(tmp_path / "other.svs", size=(700, 700)).path
    assert run(other, tmp_path / "new", back) == 3
    assert "holds no finished slide named other" in capsys.readouterr().err
    other = other.rename(tmp_path / "a.svs")
    assert run(other, tmp_path / "new", back) == 3
    assert "is of a slide of 1024 × 768 px" in capsys.readouterr().err


def test_a_slide_without_the_level(slide, back, tmp_path, capsys):
    with h5py.File(back / "patches/a.h5", "r+") as file:
        file.attrs["level"], file.attrs["level_downsample"] = 1, 3.0
    assert run(slide, tmp_path / "new", back) == 3
    assert "tiles of level 1, a downsample of 3" in capsys.readouterr().err


def test_slides_are_told_apart_by_their_id_and_their_content(tmp_path, capsys):
    for seed, name in enumerate("pq"):
        (tmp_path / "slides" / name).mkdir(parents=True)
        make_slide(tmp_path / f"slides/{name}/x.svs", size=(1024, 768), seed=seed)
    one, both = tmp_path / "slides/p", tmp_path / "slides"
    words = ["engine=inline", "segmenter=none", "tiler.size=256", "tiler.magnification=20"]
    coords = [*words, "task=coords"]
    assert main([str(one), f"output={tmp_path / 'flat'}", *coords]) == 0
    nested = ["recursive=true", "slide_id=relpath"]
    assert main([str(both), f"output={tmp_path / 'deep'}", *coords, *nested]) == 0

    deep = tmp_path / "deep"
    assert run(both, tmp_path / "again", deep, *nested, "task=coords") == 0
    again = content(tmp_path / "again", "q/x.svs")
    assert np.array_equal(again["coords"], content(deep, "q/x.svs")["coords"])
    (deep / "patches/q/x.svs.h5").unlink()
    capsys.readouterr()
    assert run(both, tmp_path / "lacking", deep, *nested, "task=coords") == 3
    assert "holds no finished slide named q/x.svs" in capsys.readouterr().err

    assert run(tmp_path / "slides/q", tmp_path / "wrong", tmp_path / "flat") == 3
    assert "holds the tiles of another slide" in capsys.readouterr().err
    assert not (tmp_path / "wrong/patches/x.h5").exists()


def test_scores_and_reasons_are_given_anew(slide, tmp_path):
    words = ["tiler.size=256", "tiler.magnification=20", "inspector=blur", "task=coords"]
    limits = "inspector.blur.sharpness_below=1e9"
    inspected = tmp_path / "inspected"
    plain = ["engine=inline", "segmenter=none"]
    assert main([str(slide), f"output={inspected}", *plain, *words, limits]) == 0
    assert {"reason", "blur_sharpness"} <= {*content(inspected)["columns"]}
    assert run(slide, tmp_path / "without", inspected) == 0
    without = content(tmp_path / "without")
    assert not {name for name in without["columns"] if name.startswith(("reason", "blur"))}
    assert run(slide, tmp_path / "with", inspected, "inspector=blur") == 0
    assert "blur_sharpness" in content(tmp_path / "with")["columns"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "tiler=stored is given no tiler.folder: name"),
        (["tiler.folder=gone"], "tiler.folder=gone is no folder: name"),
        (["tiler.folder=BACK"], "is a whole output: name"),
    ],
)
def test_the_folder_is_asked_for(slide, back, tmp_path, capsys, words, told):
    words = [word.replace("BACK", str(back)) for word in words]
    assert main([str(slide), f"output={tmp_path / 'new'}", *RUN, *words]) == 2
    assert told in capsys.readouterr().err
