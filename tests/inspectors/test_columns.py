"""Quality columns of whole runs: what is stored, reused, added, and never read again."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from run_checks import leftovers

from microtome.__main__ import main
from microtome.plugin.registry import get_registry
from microtome.run import runner
from microtome.run.slides import pixels, production
from microtome.slide.tiling import GridTiler
from microtome.store import quality
from microtome.store.folders import aside_path
from microtome.store.verify import verify_output
from microtome.testing import make_slide

RUN = "one.svs output=out engine=inline segmenter=none tiler.size=128 tiler.magnification=40"
BOTH = f"{RUN} writer=[hdf5,zarr] inspector=[blur,artefact]"


@pytest.fixture(scope="module")
def slides(tmp_path_factory) -> Path:
    """Make a slide of which a half is glass."""
    folder = tmp_path_factory.mktemp("slides")
    make_slide(folder / "one.svs", size=(1024, 768), tissue=0.5, pen=False)
    return folder


@pytest.fixture(scope="module")
def made(slides) -> Path:
    """Make an output with two inspectors, in both stores, from the command line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(slides)
        assert main(BOTH.split()) == 0
    return slides


@pytest.fixture
def here(made, tmp_path, monkeypatch) -> Path:
    """Work in a copy."""
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here/out"


@pytest.fixture
def blind(monkeypatch):
    """Let nobody read a pixel from here on."""

    def close():
        monkeypatch.setattr(pixels, "BatchReader", None)

    return close


def stores(out):
    """Open both stores with nothing but their libraries."""
    return h5py.File(out / "patches/one.h5"), zarr.open_group(out / "patches/one.zarr", mode="r")


def status(out):
    return json.loads((out / "status/one.json").read_text())


def reasons(store):
    names = json.loads(store.attrs["reasons"])
    column = store["columns/reason"][:]
    return {name: column >> bit & 1 == 1 for bit, name in enumerate(names)}


def clean(out):
    assert verify_output(out, get_registry()).faults == []
    assert leftovers(out) == []


def test_plain_libraries_read_the_columns(here):
    for store in stores(here):
        rows = store["coords"].shape[0]
        white, reason = store["columns/artefact_white"], store["columns/reason"]
        assert white.shape == reason.shape == (rows,)
        assert (white.dtype, reason.dtype) == (np.float32, np.uint16)
        assert store["features/handcrafted"].shape[0] == rows
        told = json.loads(store.attrs["quality"])
        assert told["artefact"]["limits"]["artefact_white_above"] == 0.95
        assert "limits" not in told["artefact"]["identity_fields"]["inspector"]
        is_glass = reasons(store)["artefact_white_above"]
        np.testing.assert_array_equal(is_glass, white[:] > np.float32(0.95))
        assert 0 < is_glass.sum() < rows
    told = status(here)
    assert told["reasons"]["artefact_white_above"] == is_glass.sum()
    assert {"quality/blur", "quality/artefact"} <= told["identities"].keys()
    clean(here)


def test_the_same_again_reuses(here, blind):
    blind()
    before = status(here)["reasons"]
    assert main(BOTH.split()) == 0
    assert status(here)["state"] == "reused"
    assert status(here)["reasons"] == before


def test_other_limits_read_no_pixel_and_touch_no_feature(here, blind):
    blind()
    old = [
        (s["features/handcrafted"][:], dict(s["features/handcrafted"].attrs)) for s in stores(here)
    ]
    dates = [store.attrs["creation_date"] for store in stores(here)]
    line = f"{BOTH} inspector.artefact.white_above=0.5 inspector.blur.sharpness_below=null"
    assert main(line.split()) == 0
    assert status(here)["state"] == "done"
    for store, (features, card), date in zip(stores(here), old, dates, strict=True):
        white = store["columns/artefact_white"][:] > np.float32(0.5)
        np.testing.assert_array_equal(reasons(store)["artefact_white_above"], white)
        assert "blur_sharpness_below" not in reasons(store)
        np.testing.assert_array_equal(store["features/handcrafted"][:], features)
        assert store["features/handcrafted"].attrs["identity"] == card["identity"]
        assert store.attrs["creation_date"] == date
    clean(here)
    assert main(line.split()) == 0
    assert status(here)["state"] == "reused"


def test_a_later_inspector_adds_columns_and_runs_no_encoder(here, monkeypatch):
    monkeypatch.setattr(production, "FeatureScratch", None)
    before = [store["features/handcrafted"][:] for store in stores(here)]
    assert main(f"{RUN} writer=[hdf5,zarr] inspector=pen".split()) == 0
    assert status(here)["state"] == "done"
    for store, features in zip(stores(here), before, strict=True):
        assert {"pen_red", "blur_sharpness"} <= set(store["columns"].keys())
        assert {"pen_red_above", "artefact_white_above"} <= reasons(store).keys()
        np.testing.assert_array_equal(store["features/handcrafted"][:], features)
    clean(here)


def test_stores_that_lack_different_things_get_them_together(here):
    assert main(f"{RUN} writer=hdf5 inspector=pen".split()) == 0
    line = f"{BOTH} inspector=[blur,pen] +encoder@encoder.second=handcrafted"
    assert main(line.split()) == 0
    for store in stores(here):
        assert "pen_red" in store["columns"].keys()  # noqa: SIM118 - Zarr's groups
        np.testing.assert_array_equal(store["features/second"], store["features/handcrafted"])
    clean(here)


def test_columns_can_be_had_without_features(here, tmp_path):
    assert main(f"{RUN} output={tmp_path}/bare task=coords".split()) == 0
    assert main(f"{RUN} output={tmp_path}/bare task=coords inspector=blur".split()) == 0
    with h5py.File(tmp_path / "bare/patches/one.h5") as store:
        assert {"blur_sharpness", "reason", "has_background"} <= set(store["columns"])
        assert list(store["features"]) == []
    clean(tmp_path / "bare")


def test_dropped_tiles_are_in_no_file(here, tmp_path, blind, capsys):
    out = tmp_path / "drop"
    line = f"{RUN} output={out} writer=[hdf5,png] inspector=artefact quality.drop=true"
    assert main(line.split()) == 0
    with h5py.File(here / "patches/one.h5") as whole, h5py.File(out / "patches/one.h5") as store:
        good = whole["columns/reason"][:] & 0b1111 == 0
        np.testing.assert_array_equal(store["coords"][:], whole["coords"][:][good])
        np.testing.assert_array_equal(
            store["features/handcrafted"][:], whole["features/handcrafted"][:][good]
        )
        assert not store["columns/reason"][:].any()
        assert json.loads(store.attrs["dropped"]) == status(out)["dropped"]
    assert len(list((out / "images/one").glob("*.png"))) == good.sum()
    assert sum(status(out)["dropped"].values()) >= (~good).sum()
    clean(out)
    blind()
    assert main(line.split()) == 0
    assert status(out)["state"] == "reused"
    assert status(out)["dropped"]["artefact_white_above"]
    # Limits are now part of what the coordinates are.
    assert main([*line.split(), "inspector.artefact.white_above=0.5"]) == 3
    told = capsys.readouterr().err
    assert "quality.artefact.limits.artefact_white_above was 0.95 and is 0.5" in told


def test_the_filter_counts_what_it_drops(tmp_path, slides, monkeypatch):
    monkeypatch.chdir(slides)
    line = f"{RUN} output={tmp_path}/out filter.enabled=true inspector=blur"
    assert main(line.split()) == 0
    first = status(tmp_path / "out")
    assert first["dropped"].keys() == {"white"}
    with h5py.File(tmp_path / "out/patches/one.h5") as store:
        assert len(store["columns/blur_sharpness"]) == first["tiles"]
    assert main([*line.split(), "inspector.blur.sharpness_below=0.9"]) == 0
    assert status(tmp_path / "out")["dropped"] == first["dropped"]
    clean(tmp_path / "out")


def test_scores_of_other_weights_are_refused(here, monkeypatch):
    spec = get_registry().find("inspector", "blur").spec
    object.__setattr__(spec, "output_version", 2)
    try:
        assert main(BOTH.split()) == 3
    finally:
        object.__setattr__(spec, "output_version", 1)
    assert status(here)["state"] == "done"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("inspector=blurr", "no inspector named 'blurr'. Did you mean 'blur'?"),
        ("inspector=blur inspector.blur.sharp_below=1", "Did you mean 'sharpness_below'?"),
        ("inspector=blur inspector.blur.sharpness_below=much", "does not fit"),
        ("inspector=blur quality.dropp=true", "Did you mean 'drop'?"),
        ("inspector=blur encoder=[] writer=png", "Quality columns need a writer"),
        ("-m inspector=blur inspector.blur.sharpness_below=0.1,0.2", "would write the same files"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(slides, monkeypatch, capsys, words, told):
    monkeypatch.chdir(slides)
    assert main([*RUN.replace("output=out", "output=none").split(), *words.split()]) == 2
    assert told in capsys.readouterr().err
    assert not (slides / "none").exists()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda f: f["columns/reason"].__setitem__(0, 9), "reason is not what the scores"),
        (lambda f: f["columns/blur_sharpness"].__setitem__(0, np.nan), "not finite"),
        (lambda f: f.__delitem__("columns/blur_sharpness"), "blur_sharpness is missing"),
        (
            lambda f: f.attrs.__setitem__("quality", '{"blur": 1}'),
            "'quality' of a slide is damaged",
        ),
        (lambda f: f.attrs.__delitem__("quality"), "the inspector blur are missing"),
    ],
)
def test_verify_tells_of_spoilt_columns(here, spoil, told):
    with h5py.File(here / "patches/one.h5", "r+") as file:
        spoil(file)
    assert any(told in fault.message for fault in verify_output(here, get_registry()).faults)


def test_the_run_sums_up_reasons_and_drops(here, capsys):
    capsys.readouterr()
    assert main(BOTH.split()) == 0
    counts = ", ".join(f"{name} {count}" for name, count in status(here)["reasons"].items())
    told = capsys.readouterr().out
    assert f"tiles with a reason against them: {counts}\n" in told
    assert "left out" not in told


def test_status_shows_the_reasons(here, capsys):
    assert main(["status", str(here), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["reasons"] == status(here)["reasons"]
    assert row["dropped"] == {}


@pytest.mark.parametrize("start", ["", "task=coords", "encoder=handcrafted"])
def test_what_another_worker_published_meanwhile_stays(slides, start, tmp_path, monkeypatch):
    monkeypatch.chdir(slides)
    out, theirs = tmp_path / "out", tmp_path / "theirs"
    line = f"{RUN} writer=[hdf5,zarr]".replace("output=out", "")
    for output in (out, theirs) if start else ():
        assert main(f"{line} output={output} {start}".split()) == 0
    assert main(f"{line} output={theirs} inspector=blur".split()) == 0
    publish_slide = production.publish_slide

    def late(final, *args, **options):
        other = theirs / "patches" / final.name
        if final.is_dir() or (other.is_dir() and not final.exists()):
            shutil.copytree(other, final, dirs_exist_ok=True)
        else:
            (out / "patches").mkdir(exist_ok=True)
            shutil.copyfile(other, final)
        publish_slide(final, *args, **options)

    monkeypatch.setattr(production, "publish_slide", late)
    second = "encoder=handcrafted +encoder@encoder.second=handcrafted"
    assert main(f"{line} output={out} inspector=pen {second}".split()) == 0
    for store in stores(out):
        assert {"pen_red", "blur_sharpness", "has_background"} <= set(store["columns"].keys())
        assert {"pen_red_above", "blur_sharpness_below"} <= reasons(store).keys()
        assert {"handcrafted", "second"} <= set(store["features"].keys())
    clean(out)


def test_a_slide_removed_meanwhile_is_told(here, monkeypatch, capsys):
    publish_slide = production.publish_slide

    def late(final, *args, **options):
        final.unlink()
        publish_slide(final, *args, **options)

    monkeypatch.setattr(production, "publish_slide", late)
    assert main(f"{RUN} writer=hdf5 inspector=pen".split()) == 3
    assert "one.h5 was removed while this run added to it" in capsys.readouterr().err
    assert not (here / "patches/one.h5").exists()


def test_limits_that_stay_are_counted_before_the_pixels(here, blind, capsys, monkeypatch):
    kept = len(reasons(stores(here)[0]))
    monkeypatch.setattr(quality, "_BITS", kept)
    blind()
    assert main(f"{RUN} writer=[hdf5,zarr] inspector=pen".split()) == 3
    told = " ".join(capsys.readouterr().err.split())
    assert "one.h5 keeps the limits of artefact, blur, too:" in told
    assert f"a tile has room for {kept} reasons" in told


def test_a_column_of_the_tiler_and_an_inspector_is_told_before_the_pixels(
    slides, tmp_path, monkeypatch, blind, capsys
):
    monkeypatch.chdir(slides)
    plan = GridTiler.plan

    def with_column(self, *args):
        grid = plan(self, *args)
        column = np.zeros(len(grid), np.float32)
        return dataclasses.replace(grid, columns={**grid.columns, "pen_red": column})

    monkeypatch.setattr(GridTiler, "plan", with_column)
    blind()
    assert main(f"{RUN} output={tmp_path}/out inspector=pen".split()) == 3
    assert "both give the column 'pen_red'" in capsys.readouterr().err


def test_a_worker_finds_what_a_dead_one_moved_aside(here, monkeypatch):
    final = here / "patches/one.zarr"
    final.rename(aside_path(final))
    # Sweeping was before the other died.
    monkeypatch.setattr(runner, "sweep", lambda folder, below=False: None)
    monkeypatch.setattr(production, "FeatureScratch", None)
    assert main(f"{RUN} writer=[hdf5,zarr] inspector=pen".split()) == 0
    for store in stores(here):
        assert "handcrafted" in store["features"].keys()  # noqa: SIM118 - Zarr's groups
        assert {"pen_red_above", "blur_sharpness_below"} <= reasons(store).keys()
    clean(here)
