"""What goes wrong: one slide at a time, told by name, with nothing half-written."""

from __future__ import annotations

import json
import re
import shutil
import signal
from functools import partial

import pytest
import standins
from run_checks import leftovers, states

from microtome.errors import (
    ConfigError,
    InputError,
    MissingDependencyError,
    PluginError,
    StoreError,
)
from microtome.plugin import registry
from microtome.run.progress import SilentReporter
from microtome.run.slides import pipeline
from microtome.store.status import read_status


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tiler": {"grid": {"magnification": 10}}}, "magnification"),
        ({"tiler": {"grid": {"magnification": 20, "step": 128}}}, "step"),
        ({"segmenter": "none"}, "segmenter"),
        ({"mpp": 0.5}, "mpp"),
        ({"filter": {"enabled": True}}, "filter"),
        ({"encoder": {"mean": {"scale": 2.0}}}, "scale"),
        ({"feature_dtype": "float16"}, "dtype"),
        ({"tissue": {"min_region_um2": 50.0}}, "cleaning.min_region_um2"),
        ({"tiler": {"grid": {"magnification": 20, "min_tissue": 0.5}}}, "min_tissue"),
        ({"tiler": {"grid": {"magnification": 20, "edge": "pad"}}}, "edge"),
        ({"writer": {"hdf5": {"passports": True}}}, "passports"),
        ({"encoder": {"mean": {"plugin": "seeded", "seed": 2}}}, "seed"),
    ],
)
def test_another_configuration_is_refused_by_name(go, slide, tmp_path, change, named):
    go(slide)
    path = tmp_path / "out/patches/one.h5"
    before = path.read_bytes()
    result = go(slide, **change)
    assert states(result) == ["failed"]
    assert result.exit_code == 3
    error = result.statuses[0].error
    assert error["type"] == "IdentityError"
    assert named in error["message"]
    assert "force=true" in error["message"]
    assert path.read_bytes() == before


def test_a_mistake_in_a_plugin_is_told_with_its_place(go, slide):
    (status,) = go(slide, encoder="broken").statuses
    message = status.error["message"]
    assert message.startswith("RuntimeError: two lines (")
    assert re.search(r"standins\.py, line \d+\)$", message)
    assert "BrokenEncoder" not in message
    assert 'raise RuntimeError("two' in status.error["traceback"]


@pytest.mark.parametrize(("encoder", "said"), [("nan", "not finite"), ("wide", "shape")])
def test_wrong_features_fail_the_slide_and_leave_nothing(go, slide, tmp_path, encoder, said):
    result = go(slide, encoder=encoder, writer=["hdf5", "png"])
    assert states(result) == ["failed"]
    assert said in result.statuses[0].error["message"]
    assert encoder in result.statuses[0].error["message"]
    assert result.statuses[0].stage == "tiles"
    assert not (tmp_path / "out/patches/one.h5").exists()
    assert not (tmp_path / "out/images/one").exists()
    assert not leftovers(tmp_path / "out")


def test_one_bad_slide_does_not_stop_the_others(go, slide, tmp_path):
    bad = tmp_path / "slides/bad.svs"
    bad.write_bytes(b"not a slide")
    shutil.copy(slide, tmp_path / "slides/two.svs")
    result = go(tmp_path / "slides")
    assert {s.slide_id: s.state for s in result.statuses} == {
        "bad": "failed",
        "one": "done",
        "two": "done",
    }
    assert result.exit_code == 3
    status = read_status(tmp_path / "out/status/bad.json")
    assert status.stage == "open"
    assert str(bad) in status.error["message"]
    assert (tmp_path / "out/patches/two.h5").exists()


def test_a_slide_that_truncates_half_way_fails_alone(go, slide, tmp_path):
    whole = (tmp_path / "slides/one.svs").read_bytes()
    (tmp_path / "slides/cut.svs").write_bytes(whole[: len(whole) // 2])
    result = go(tmp_path / "slides")
    assert {s.slide_id: s.state for s in result.statuses} == {"cut": "failed", "one": "done"}
    assert not (tmp_path / "out/patches/cut.h5").exists()
    assert not leftovers(tmp_path / "out")


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_keeps_what_is_done_and_goes_on(
    go, slide, tmp_path, sent, code, request
):
    # Shells let what runs in the background ignore it, these tests for one.
    request.addfinalizer(partial(signal.signal, sent, signal.signal(sent, signal.SIG_DFL)))
    standins.Interrupting.signal = sent
    shutil.copy(slide, tmp_path / "slides/two.svs")
    tiles = go(slide, output=tmp_path / "probe").statuses[0].tiles
    standins.Interrupting.left = -(-tiles // 32) + 1 if tiles > 32 else 1
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "slides", encoder="interrupting")
    out = tmp_path / "out"
    assert (out / "patches/one.h5").exists()
    assert not (out / "patches/two.h5").exists()
    assert not leftovers(out)
    (record,) = out.glob("runs/*/run.json")
    assert json.loads(record.read_text())["exit_code"] == code
    standins.Interrupting.left = -1
    assert states(go(tmp_path / "slides", encoder="interrupting")) == ["reused", "done"]


def test_another_slide_of_that_name_is_refused(go, slide, tmp_path):
    go(slide)
    other = tmp_path / "other"
    other.mkdir()
    changed = bytearray((tmp_path / "slides/one.svs").read_bytes())
    changed[-1] ^= 1
    (other / "one.svs").write_bytes(changed)
    result = go(other / "one.svs")
    assert states(result) == ["failed"]
    message = result.statuses[0].error["message"]
    assert str(other / "one.svs") in message
    assert str(slide) in message
    assert "slide_id=relpath" in message


def test_slides_of_one_name_are_refused_and_the_others_done(go, slide, tmp_path):
    (tmp_path / "slides/sub").mkdir()
    shutil.copy(slide, tmp_path / "slides/two.svs")
    shutil.copy(slide, tmp_path / "slides/sub/two.svs")
    result = go(tmp_path / "slides", recursive=True)
    assert [(s.slide_id, s.state) for s in result.statuses] == [
        ("one", "done"),
        ("two", "failed"),
        ("two", "failed"),
    ]
    assert result.exit_code == 3
    assert str(tmp_path / "slides/sub/two.svs") in result.statuses[1].error["message"]
    assert not (tmp_path / "out/patches/two.h5").exists()
    apart = go(tmp_path / "slides", recursive=True, slide_id="relpath", output=tmp_path / "apart")
    assert states(apart) == ["done"] * 3
    assert (tmp_path / "apart/patches/sub/two.svs.h5").exists()


def test_a_record_that_cannot_be_written_costs_its_slide_alone(go, slide, tmp_path, monkeypatch):
    shutil.copy(slide, tmp_path / "slides/two.svs")
    write = pipeline.write_status

    def full(path, status):
        if path.stem == "one":
            raise StoreError("no space left")
        write(path, status)

    monkeypatch.setattr(pipeline, "write_status", full)
    result = go(tmp_path / "slides")
    assert [(s.slide_id, s.state) for s in result.statuses] == [("one", "failed"), ("two", "done")]
    assert result.exit_code == 3
    assert json.loads(result.record.read_text())["failed"]["one"]["message"] == "no space left"


def test_another_slides_record_is_not_overwritten(go, slide, tmp_path):
    go(slide, task="tissue")
    record = (tmp_path / "out/status/one.json").read_bytes()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/one.svs").write_bytes(slide.read_bytes() + b"x")
    result = go(tmp_path / "other/one.svs", task="tissue")
    assert states(result) == ["failed"]
    assert "slide_id=relpath" in result.statuses[0].message
    assert (tmp_path / "out/status/one.json").read_bytes() == record


def test_a_plugin_that_raises_when_made_is_named(go, slide):
    with pytest.raises(PluginError, match="'unmakable' of microtome-standins cannot be made: Run"):
        go(slide, encoder="unmakable")


def test_masks_that_nobody_uses_are_told(go, slide, tmp_path):
    (tmp_path / "m.png").write_bytes(b"")
    (tmp_path / "m.csv").write_text(f"slide,mask_path\n{slide},m.png\n")
    result = go(tmp_path / "m.csv")
    assert (
        "segmenter=classic does not use the 1 mask_path given; segmenter=file does." in result.notes
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tiler": {"grid": {"magnification": 20, "mpp": 0.5}}}, "two targets"),
        ({"task": "train"}, "task=train"),
        ({"writer": []}, "writer"),
        ({"writer": "png"}, "writer that keeps them"),
        ({"task": "coords", "writer": ["hdf5", "png"]}, "encoder=\\[\\]"),
        ({"visualize": ["heatmap"]}, "visualize=heatmap"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"mpp": -1.0}, "mpp=-1"),
        ({"tissue": {"min_region_um2": -5.0}}, "tissue.min_region_um2=-5"),
        ({"tissue": {"min_hole_fraction": 7.0}}, "from 0 to 1"),
        ({"filter": {"white_drop_from": -1.0}}, "filter.white_drop_from=-1"),
        ({"encoders": "mean"}, "encoder"),
        ({"encoder": {"mean": {"batch_size": 0}}}, "batch_size"),
        ({"writer": ["hdf5"], "reader": ["openslide", "tiff"]}, "one reader"),
        ({"tiler": {"size": 256}}, "name the plugin first: tiler={NAME: {'size': 256}}"),
    ],
)
def test_runs_that_make_no_sense_do_not_start(go, slide, tmp_path, options, said):
    with pytest.raises(ConfigError, match=said):
        go(slide, **options)
    assert not (tmp_path / "out/patches").exists()


def test_no_slide_at_all(go, tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        go(tmp_path / "nowhere.svs")


def test_observers_hear_of_the_run_and_a_raising_one_is_dropped(go, slide, plugins):
    from microtome.plugin import hookimpl

    heard = []

    class Observer:
        @staticmethod
        @hookimpl
        def microtome_run_started(run):
            heard.append(len(run["slides"]))

        @staticmethod
        @hookimpl
        def microtome_slide_finished(status):
            heard.append(status["state"])

        @staticmethod
        @hookimpl
        def microtome_run_finished(run):
            heard.append(run["exit_code"])

    class Raiser:
        @staticmethod
        @hookimpl
        def microtome_slide_finished(status):
            raise RuntimeError("no")

    class Listening(SilentReporter):
        def __init__(self):
            self.notes = []

        def note(self, text):
            self.notes.append(text)

    plugins.add(Observer, "observer", "microtome-observer")
    plugins.add(Raiser, "raiser", "microtome-raiser")
    reporter = Listening()
    result = go(slide, reporter=reporter)
    assert heard == [1, "done", 0]
    assert states(result) == ["done"]
    assert any("microtome-raiser" in note for note in reporter.notes)


def test_a_reader_that_misses_its_library_stops_the_run(go, slide, plugins, monkeypatch):
    monkeypatch.setattr(registry, "installed", lambda module: module != "cucim")
    with pytest.raises(MissingDependencyError, match=r"needs cucim, .* pip install"):
        go(slide, reader="cucim")
