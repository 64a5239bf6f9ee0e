"""A sweep through the whole of microtome: real plugins, a real slide, and one that is not."""

from __future__ import annotations

import json
from pathlib import Path

import bag_standins
import h5py
import numpy as np
import pytest
import standins

from microtome.__main__ import main
from microtome.testing import make_slide
from microtome_segmenters.classic import ClassicSegmenter

SWEEP = [
    *("-m", "slides", "output=out", "tiler.size=64", "tiler.magnification=10,20"),
    *("encoder=handcrafted,timm", "encoder.timm.model=test_vit", "encoder.timm.weights=random"),
    "engine=inline",  # for the spy
]
TILINGS = {"10x_64px_0px": 10, "20x_64px_0px": 20}


@pytest.fixture
def segmented(monkeypatch, tmp_path) -> list[str]:
    """Work beside two slides and a file that is none; give the slides that are segmented."""
    monkeypatch.chdir(tmp_path)
    Path("slides").mkdir()
    Path("slides/bad.svs").write_bytes(b"no slide at all")
    for seed, name in enumerate(("one", "two")):
        make_slide(f"slides/{name}.svs", size=(1024, 768), tissue=0.5, pen=False, seed=seed)
    names: list[str] = []
    segment = ClassicSegmenter.segment

    def spy(self, views):
        names.extend(view.slide.slide_id for view in views)
        return segment(self, views)

    monkeypatch.setattr(ClassicSegmenter, "segment", spy)
    return names


def outcomes() -> list[Path]:
    return list(Path("out/runs").rglob("outcome.json"))


def check_store(path: Path, magnification: float) -> None:
    with h5py.File(path) as file:
        assert file.attrs["target_magnification"] == magnification
        assert len(file["coords"]) > 3
        assert set(file["features"]) == {"handcrafted", "timm"}
        for features in file["features"].values():
            assert len(features) == len(file["coords"])
            assert np.isfinite(features[:]).all()
            assert len(np.unique(features[:], axis=0)) > 1


def test_a_bad_slide_stops_no_job_and_all_jobs_share_one_output(segmented):
    assert main(SWEEP) == 3
    codes = {path.parent.name: json.loads(path.read_text()) for path in outcomes()}
    assert codes == {job: {"exit_code": 3, "error": None} for job in "0123"}

    assert sorted(segmented) == ["one", "two"]
    masks = sorted(path.name.partition(".")[0] for path in Path("out/tissue").glob("*.png"))
    assert masks == ["one", "two"]

    assert {path.name for path in Path("out").iterdir()} == {"runs", "tissue", *TILINGS}
    for tiling, magnification in TILINGS.items():
        stores = sorted(Path("out", tiling, "patches").iterdir())
        assert [path.name for path in stores] == ["one.h5", "two.h5"]
        for path in stores:
            check_store(path, magnification)
        assert json.loads(Path("out", tiling, "status/bad.json").read_text())["state"] == "failed"
    assert not list(Path("out").rglob("*.tmp"))

    before = {path: path.read_bytes() for path in Path("out").rglob("*.h5")}
    assert main(SWEEP) == 3
    assert {path: path.read_bytes() for path in Path("out").rglob("*.h5")} == before
    assert sorted(segmented) == ["one", "two"]
    assert len(outcomes()) == 8


def test_any_key_of_the_tiler_gives_its_tilings_folders_of_their_own(segmented):
    Path("slides/bad.svs").unlink()
    line = "-m slides output=out task=coords tiler.size=64 tiler.min_tissue=0.1,0.9 engine=inline"
    assert main(line.split()) == 0
    found = {}
    for path in Path("out").glob("*/patches/one.h5"):
        with h5py.File(path) as file:
            found[path.parts[1]] = len(file["coords"])
    assert len(found) == 2
    (few,) = (count for tiling, count in found.items() if tiling.endswith("_min_tissue0.9"))
    assert few < max(found.values())
    assert sorted(segmented) == ["one", "two"]


def test_a_sweep_over_slide_encoders_gives_their_tilings_folders_of_their_own(
    segmented, fresh_registry, capsys
):
    fresh_registry.add(standins.Plugins, "standins", "microtome-standins")
    fresh_registry.add(bag_standins.Plugins, "bag_standins", "microtome-bag-standins")
    line = "-m slides/one.svs output=out slide_encoder=nominal,coarse engine=inline"
    assert main(line.split()) == 0
    assert "the sweep over slide_encoder sets tiler.name=auto" in capsys.readouterr().err
    for tiling, name in (("20x_128px_0px", "nominal"), ("10x_128px_0px", "coarse")):
        with h5py.File(Path("out", tiling, "patches/one.h5")) as file:
            assert set(file["slide_features"]) == {name}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("tiler.size=0", "tiler.size is 0"),
        ("tiler.step=0", "tiler.step is 0"),
        ("tiler.min_tissue=2", "tiler.min_tissue is 2"),
        ("tiler.magnification=20 tiler.mpp=0.5", "two targets"),
        ("segmenter=file segmenter.folder=nofolder", "nofolder"),
        ("writer=[]", "needs a writer"),
        ("writer=png", "writer that keeps them"),
        ("mpp_csv=none.csv", "there is no file 'none.csv'"),
    ],
)
@pytest.mark.parametrize("mode", [[], ["-m", "force=false,true"]], ids=["run", "sweep"])
def test_what_cannot_run_leaves_nothing(monkeypatch, tmp_path, capsys, words, told, mode):
    monkeypatch.chdir(tmp_path)
    Path("a.svs").touch()
    assert main([*mode, "a.svs", "output=out", *words.split()]) in (1, 2)
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not Path("out").exists()


@pytest.mark.parametrize("slides", ["empty", "notes.txt"])
def test_nothing_to_do_leaves_nothing(monkeypatch, tmp_path, capsys, slides):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("notes.txt").write_text("no slide")
    assert main([slides, "output=out"]) == 1
    assert slides in capsys.readouterr().err
    assert not Path("out").exists()


def test_segmenters_swept_under_names_of_their_own_share_an_output(segmented):
    Path("slides/bad.svs").unlink()
    line = "-m slides/one.svs output=out task=coords tiler.size=64 tiler.magnification=20"
    segmenters = ["segmenter=otsu,classic", "tiler.name=${segmenter.plugin}"]
    assert main([*line.split(), *segmenters]) == 0
    assert {path.parts[1] for path in Path("out").glob("*/patches/one.h5")} == {"otsu", "classic"}
