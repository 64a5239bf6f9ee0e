"""Slides are segmented several at once, and nothing else about a run changes by it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from batching import Batching, BatchingConfig, told
from run_checks import files, leftovers, states

import microtome
from microtome.plugin import registry
from microtome.run.planning.plan import make_plan
from microtome.run.progress import SilentReporter
from microtome.run.queue import SlideQueue
from microtome.run.settings import Choice, ClaimSettings, RunConfig
from microtome.run.slides import ahead
from microtome.run.working import History, work_on
from microtome.slide.types import SlideRef
from microtome.store.claims import Attempt, read_attempts
from microtome.store.layout import OutputLayout
from microtome.store.masks import load_mask
from microtome.store.status import read_status
from microtome.testing import make_slide

NAMES = ("a", "b", "c", "d", "e")


@pytest.fixture(autouse=True)
def plugins(tmp_path, monkeypatch):
    """Install the stand-ins for this process and its children."""
    info = tmp_path / "site/batching-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: batching\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[microtome]\nbatching = batching\n")
    paths = [str(info.parent), str(Path(__file__).parents[1])]
    known = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [*paths, known])))
    monkeypatch.syspath_prepend(paths[0])
    monkeypatch.setenv("BATCHING_LOG", str(tmp_path / "log"))
    (tmp_path / "log").touch()
    registry.get_registry.cache_clear()
    yield
    registry.get_registry.cache_clear()


@pytest.fixture
def make(tmp_path):
    """Make small slides by name, each with a content of its own."""
    (tmp_path / "slides").mkdir()

    def slides(*names):
        for seed, name in enumerate(names):
            make_slide(tmp_path / f"slides/{name}.svs", size=(768, 640), seed=seed)
        return tmp_path / "slides"

    return slides


@pytest.fixture
def go(tmp_path):
    """Segment slides, several at once, and encode them."""

    def run(slides, batch=3, *, output="out", engine="inline", task="process", **options):
        return microtome.run_slides(
            slides,
            tmp_path / output,
            reporter=SilentReporter(),
            segmenter={"batching": {"batch_size": batch, "seed": options.pop("seed", 0)}},
            encoder="telling",
            engine=engine,
            task=task,
            tiler={"grid": {"magnification": 20, "size": 128}},
            **options,
        )

    return run


def calls():
    """Give the slides of every call of the segmenter."""
    return [line.split()[1:] for line in told() if line.startswith("segment")]


def test_slides_are_segmented_with_those_that_come_next(make, go, tmp_path):
    assert states(go(make(*NAMES))) == ["done"] * 5
    assert calls() == [["a", "b", "c"], ["d", "e"]]
    assert states(go(tmp_path / "slides", 1, output="alone")) == ["done"] * 5
    assert calls()[2:] == [["a"], ["b"], ["c"], ["d"], ["e"]]
    together, alone = files(tmp_path / "out"), files(tmp_path / "alone")
    assert {path for path in together if path.parts[0] != "patches"} == {
        path for path in alone if path.parts[0] != "patches"
    }
    masks = [path for path in together if path.suffix in (".png", ".geojson")]
    assert len(masks) == 10
    assert all(together[path] == alone[path] for path in masks)
    assert not leftovers(tmp_path)


def test_nobody_is_taken_along_twice(make, go, tmp_path):
    go(make("a", "b", "c"), task="tissue")
    assert calls() == [["a", "b", "c"]]
    go(tmp_path / "slides")
    assert calls() == [["a", "b", "c"]]
    make(*NAMES)
    assert states(go(tmp_path / "slides")) == ["reused"] * 3 + ["done"] * 2
    assert [set(call) for call in calls()[1:]] in ([{"d"}, {"e"}], [{"d", "e"}])


def test_the_segmenter_is_released_before_anything_is_encoded(make, go):
    go(make("a", "b"), 1)
    names = [line.split()[0] for line in told()]
    for slide in " ".join(names).split("segment")[1:]:
        first, *rest = slide.split()
        assert first == "release"
        assert set(rest) == {"encode"}


def test_without_encoders_nothing_is_released(make, go):
    go(make("a", "b"), 1, task="coords")
    assert "release" not in told()


def test_what_cannot_be_judged_costs_only_itself(make, go, tmp_path):
    result = go(make("a", "b", "odd", "z"), 4)
    assert states(result) == ["done", "done", "failed", "done"]
    assert read_status(tmp_path / "out/status/odd.json").message == "odd is odd."
    assert calls()[:2] == [["a", "b", "odd", "z"], ["a"]]


class OutOfMemoryError(RuntimeError):
    """As torch calls its own."""


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (RuntimeError("device-side\nassert."), "RuntimeError: device-side assert"),
        (ValueError(), "ValueError"),
        (
            MemoryError(),
            "memory is short for 3 slides at once, so lower the segmenter's batch_size",
        ),
        (
            OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
            "memory is short for 3 slides at once, so lower the segmenter's batch_size",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_goes_wrong_with_all_together_is_noted(make, go, tmp_path, monkeypatch, error, why):
    alone = Batching.segment

    def segment(self, views):
        if len(views) > 1:
            raise error
        return alone(self, views)

    monkeypatch.setattr(Batching, "segment", segment)
    assert states(go(make("a", "b", "c"), task="tissue")) == ["done"] * 3
    status = {name: read_status(tmp_path / f"out/status/{name}.json") for name in "abc"}
    told = f"b, c could not be segmented in one call with this slide ({why})."
    assert status["a"].warnings == (told,)
    assert status["c"].warnings == ()


def test_what_one_of_them_is_no_slide_for_is_not(make, go, tmp_path):
    go(make("a", "odd"), task="tissue")
    assert read_status(tmp_path / "out/status/a.json").warnings == ()


def test_what_a_segmenter_says_of_how_it_runs_is_told(make, go, tmp_path, monkeypatch):
    monkeypatch.setattr(Batching, "notes", ("It runs on one leg.",), raising=False)
    go(make("a"), task="tissue")
    assert read_status(tmp_path / "out/status/a.json").warnings == ("It runs on one leg.",)


def test_what_cannot_be_opened_is_told_at_its_own_turn(make, go, tmp_path):
    folder = make("a", "c")
    (folder / "b.svs").write_bytes(b"II*\0 but no slide")
    result = go(folder)
    assert states(result) == ["done", "failed", "done"]
    assert calls() == [["a", "c"]]
    assert read_status(tmp_path / "out/status/b.json").stage == "open"


def test_what_changes_meanwhile_is_segmented_at_its_own_turn(make, go, tmp_path, monkeypatch):
    folder = make("a", "b")
    draw = ahead.draw_view

    def meanwhile(slide, spec):
        view = draw(slide, spec)
        path = slide.ref.path
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))
        return view

    monkeypatch.setattr(ahead, "draw_view", meanwhile)
    assert states(go(folder)) == ["done", "done"]
    assert calls() == [["a", "b"], ["b"]]


def test_a_mask_that_cannot_be_kept_is_made_again(make, go, monkeypatch):
    save = ahead.TissueFiles.save

    def full(self, mask):
        if calls() == [["a", "b"]] and self.slide_id == "b":
            raise OSError("disk full")
        save(self, mask)

    monkeypatch.setattr(ahead.TissueFiles, "save", full)
    assert states(go(make("a", "b"))) == ["done", "done"]
    assert calls() == [["a", "b"], ["b"]]


def test_force_segments_every_slide_at_its_own_turn(make, go, tmp_path):
    go(make("a", "b"))
    assert states(go(tmp_path / "slides", force=True)) == ["done", "done"]
    assert calls() == [["a", "b"], ["a"], ["b"]]


def test_a_slide_with_a_history_takes_nobody_along(make, go, tmp_path):
    folder = make("a", "b", "c")
    lost = Attempt(started="2026-01-01T00:00:00+00:00", host="h", pid=1, how="was killed")
    path = tmp_path / "out/.claims/a.attempts.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps([asdict(lost)]))
    assert read_attempts(path) == (lost,)
    assert states(go(folder)) == ["done"] * 3
    assert calls() == [["a"], ["b", "c"]]


def test_other_weights_are_another_identity(make, go, tmp_path):
    folder = make("a")
    for seed in (0, 1, 1):
        go(folder, seed=seed, task="tissue")
    masks = sorted((tmp_path / "out/tissue").glob("*.png"))
    seeds = {load_mask(m).identity.fields["segmenter"]["weights"]["seed"] for m in masks}
    assert seeds == {"0", "1"}
    assert len(calls()) == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_of_the_local_engine_segment_ahead(make, go, tmp_path, workers):
    result = go(make(*NAMES), engine={"local": {"workers": workers}})
    assert sorted(states(result)) == ["done"] * 5
    together = max(calls(), key=len)
    assert len(together) == 3
    assert {name for call in calls() for name in call} == set(NAMES)
    if workers == 1:
        assert calls() == [["a", "b", "c"], ["d", "e"]]


def test_slides_that_are_copied_take_those_along_that_are_here(make, go, tmp_path):
    staging = {"cache": str(tmp_path / "cache"), "ahead": 4}
    assert states(go(make(*NAMES), staging=staging)) == ["done"] * 5
    assert {name for call in calls() for name in call} == set(NAMES)
    assert sum(map(len, calls())) == 5


def test_no_reader_is_blamed_for_what_is_opened_meanwhile(make, tmp_path):
    folder = make("a", "b")
    plan = make_plan(
        RunConfig(
            slides=(),
            output=tmp_path / "out",
            task="tissue",
            segmenter=Choice(plugin="batching", config=BatchingConfig(batch_size=2)),
        ),
        registry.get_registry(),
    )
    one, other = (SlideRef(path=folder / f"{name}.svs", slide_id=name) for name in "ab")
    tried = []
    for ref in (one, other):
        work_on(plan, ref, History(), SilentReporter(), trying=tried.append, company=(other,))
    assert calls() == [["a", "b"]]
    assert len(tried) == 4
    assert tried[0] == tried[2] == tried[3] != ""
    assert tried[1] == ""


@pytest.fixture
def queue(tmp_path):
    """Make a queue over slides without content, of a segmenter that takes three at once."""

    def over(names, *, force=False):
        plan = SimpleNamespace(
            layout=OutputLayout(tmp_path / "out"),
            config=SimpleNamespace(claims=ClaimSettings(), task="process", force=force),
            round="",
            segmenter_batch=3,
        )
        refs = [SlideRef(path=tmp_path / name, slide_id=name) for name in names]
        return SlideQueue(plan, refs, keep_order=True)

    return over


def company(queue, **options):
    """Take a slide, and name those that are segmented with it."""
    return [ref.slide_id for ref in queue.company(queue.take(), **options)]


def test_those_are_left_out_that_other_workers_are_about_to_take(queue):
    slides = queue("abcdefgh")
    assert company(slides, workers=2) == ["c", "d"]
    assert company(slides, workers=2) == ["f", "g"]  # b's: e goes to the other worker
    assert company(slides, workers=2) == []  # c's, which was taken along


def test_a_slide_that_a_worker_died_on_is_left_to_itself(queue):
    slides = queue("abc")
    first = slides.take()
    assert slides.died(first, "was killed") is None
    assert company(slides) == ["c"]
    assert company(slides) == []
    again = slides.take()
    assert again.ref.slide_id == "a"
    assert slides.company(again, among=[SlideRef(path=Path("z"), slide_id="z")]) == ()


def test_with_force_every_slide_is_alone(queue):
    assert company(queue("abc", force=True)) == []
