"""Slides that are copied before they are worked on: the queue, whole runs, the settings."""

from __future__ import annotations

import shutil
import threading
import time
from contextlib import closing

import numpy as np
import pytest
from staged import SIZE, features, fetch, ref, units

from microtome.errors import ConfigError
from microtome.plugin.registry import get_registry
from microtome.run.inputs import staging
from microtome.run.inputs.cache import SlideCache
from microtome.run.inputs.sources import LocalSource
from microtome.run.inputs.staging import StagedQueue
from microtome.run.planning.plan import make_plan
from microtome.run.progress import SilentReporter
from microtome.run.queue import Assignment
from microtome.run.settings import EncoderChoice, RunConfig, StagingSettings
from microtome.store.status import SlideStatus

pytestmark = pytest.mark.usefixtures("quick_cache")


def within(seconds, condition):
    """Wait for something that is sure to come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def plan(tmp_path):
    def make(**options):
        settings = {"cache": str(tmp_path / "near")} | options.pop("staging", {})
        config = RunConfig(
            slides=(),
            output=tmp_path / "out",
            encoders=(EncoderChoice(plugin="mean"),),
            staging=StagingSettings(**settings),
            **options,
        )
        return make_plan(config, get_registry())

    return make


def take(queue):
    """Take the next slide, waiting for its copy."""
    end = time.monotonic() + 20
    while (taken := queue.take()) is None:
        assert time.monotonic() < end
        time.sleep(0.01)
    return taken


def test_the_next_is_copied_while_one_is_worked_on(plan, files, tmp_path):
    with closing(StagedQueue(plan(), list(map(ref, files)), SilentReporter())) as queue:
        first = take(queue)
        assert isinstance(first, Assignment)
        assert first.ref.path.is_relative_to(tmp_path / "near")
        assert first.ref.source == str(files[0])
        assert first.ref.slide_id == "a"
        within(20, lambda: len(units(tmp_path / "near")) == 2)
        time.sleep(0.05)
        assert len(units(tmp_path / "near")) == 2
        assert not queue.finished
        queue.done(first)
        names = [first.ref.slide_id]
        while not queue.finished:
            taken = take(queue)
            names.append(taken.ref.slide_id)
            queue.done(taken)
        assert sorted(names) == list("abcd")


def test_nothing_is_copied_ahead_if_nothing_is_to_be(plan, files, tmp_path):
    slides = list(map(ref, files))
    with closing(StagedQueue(plan(staging={"ahead": 0}), slides, SilentReporter())) as queue:
        first = take(queue)
        time.sleep(0.1)
        assert len(units(tmp_path / "near")) == 1
        queue.done(first)


def test_a_slide_whose_worker_died_is_staged_again(plan, files, tmp_path):
    with closing(StagedQueue(plan(), [ref(files[0])], SilentReporter())) as queue:
        first = take(queue)
        assert queue.died(first, "was killed") is None
        shutil.rmtree(tmp_path / "near")
        (tmp_path / "near").mkdir()
        again = take(queue)
        assert again.history.deaths == 1
        assert again.ref.path.exists()
        queue.done(again)
        assert queue.finished


def test_closing_gives_all_slides_back(plan, files, tmp_path):
    made = plan()
    queue = StagedQueue(made, list(map(ref, files)), SilentReporter())
    first = take(queue)
    queue.drop(first)
    queue.close()
    claims = made.layout.claims_folder
    assert not [path for path in claims.rglob("*") if path.is_file()]
    # Nothing of it is held any more.
    fetch(SlideCache(tmp_path / "near", SIZE), files[3]).release()


def test_what_is_only_copied_is_no_attempt(plan, files):
    """Killed now, the process would have tried the first slide only."""
    made = plan()
    with closing(StagedQueue(made, list(map(ref, files)), SilentReporter())) as queue:
        first = take(queue)
        attempts = list(made.layout.claims_folder.rglob("*.attempts.json"))
        assert [path.name for path in attempts] == ["a.attempts.json"]
        queue.done(first)


def test_a_copy_that_hangs_is_given_up(plan, files, monkeypatch):
    original, hang = LocalSource.copy, threading.Event()

    def copy(self, file, target, tick):
        if file.name == "a.svs":
            hang.wait(60)
        original(self, file, target, tick)

    monkeypatch.setattr(LocalSource, "copy", copy)
    monkeypatch.setattr(staging, "_STALLED", 0.3)
    with closing(StagedQueue(plan(), list(map(ref, files[:2])), SilentReporter())) as queue:
        results = [take(queue)]
        results.append(take(queue))
        (status,) = [r for r in results if isinstance(r, SlideStatus)]
        assert (status.slide_id, status.state, status.stage) == ("a", "failed", "fetch")
        assert "no byte came for" in status.message
        for one in results:
            if isinstance(one, Assignment):
                queue.done(one)
        assert queue.finished
    hang.set()


def test_waiting_is_told(plan, files, monkeypatch):
    heard = []
    go_on = threading.Event()
    original = LocalSource.copy

    def copy(self, file, target, tick):
        original(self, file, target, tick)
        go_on.wait(20)

    class Listening(SilentReporter):
        def stage(self, slide_id, stage, tiles=0):
            heard.append((slide_id, stage, tiles))

        def advance(self, slide_id, tiles):
            heard.append((slide_id, tiles))

    monkeypatch.setattr(LocalSource, "copy", copy)
    monkeypatch.setattr(staging, "_MIB", 100)
    with closing(StagedQueue(plan(), [ref(files[0])], Listening())) as queue:
        end = time.monotonic() + 20
        while len(heard) < 2:
            assert queue.take() is None
            assert time.monotonic() < end
        go_on.set()
        queue.done(take(queue))
    assert heard == [("a", "fetch", 10), ("a", 10)]


@pytest.mark.parametrize("engine", ["inline", {"local": {"workers": 1}}], ids=["inline", "local"])
def test_a_staged_run_is_as_any_other(go, slide, tmp_path, engine):
    options = {"engine": engine}
    if engine != "inline":
        options["encoder"] = "handcrafted"
    near = tmp_path / "near"
    staged = go(slide, staging={"cache": str(near)}, **options)
    (status,) = staged.statuses
    assert status.state == "done"
    assert status.path == str(slide)
    assert [p.name for p in units(near)[0].iterdir()] == ["one.svs"]
    plain = go(slide, output=tmp_path / "plain", **options).statuses[0]
    assert plain.fingerprint == status.fingerprint
    assert plain.identities == status.identities
    if engine == "inline":
        mine, theirs = features(tmp_path / "out"), features(tmp_path / "plain")
        np.testing.assert_array_equal(mine[1], theirs[1])
        assert mine[2]["wsi_path"] == theirs[2]["wsi_path"] == str(slide)
    # What is finished is not copied to be looked at.
    shutil.rmtree(near)
    assert go(slide, staging={"cache": str(near)}, **options).statuses[0].state == "reused"
    assert units(near) == []


def test_too_large_a_slide_is_read_where_it_lies(go, slide, tmp_path):
    heard = []

    class Listening(SilentReporter):
        def note(self, text):
            heard.append(text)

    settings = {"cache": str(tmp_path / "near"), "budget_gb": 1e-6}
    result = go(slide, staging=settings, reporter=Listening())
    assert result.statuses[0].state == "done"
    assert any("is read where it lies" in text for text in heard)


@pytest.mark.parametrize(
    "settings", [{"budget_gb": 0}, {"budget_gb": float("inf")}, {"ahead": -1}], ids=str
)
def test_settings_that_make_no_sense(settings):
    with pytest.raises(ConfigError, match=rf"staging\.{next(iter(settings))}="):
        StagingSettings(**settings)
