"""The logs of workers, written and followed."""

from __future__ import annotations

import json
import os
import socket

import pytest
import standins

from microtome.run import events
from microtome.run.events import EventFollower, EventLog, events_folder, open_log
from microtome.run.progress import SilentReporter
from microtome.store.status import SlideStatus


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]


@pytest.fixture
def now(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(events.time, "monotonic", lambda: now[0])
    return now


def test_a_log_has_a_line_an_event(tmp_path, now):
    end = SlideStatus(slide_id="ä", path="ä.svs", state="done", tiles=7, seconds={"tiles": 2.5})
    with EventLog(tmp_path / "events/w.jsonl") as log:
        log.note("hello")
        log.stage("ä", "open")
        now[0] += 2
        log.stage("ä", "tiles", 7)
        now[0] += 0.5
        log.advance("ä", 7)
        log.finished(end)
    told = lines(tmp_path / "events/w.jsonl")
    assert [line["event"] for line in told] == [
        "note",
        "started",
        "stage",
        "stage",
        "tiles",
        "finished",
    ]
    assert all(line["time"].endswith("+00:00") and "." in line["time"] for line in told)
    assert told[0]["text"] == "hello"
    assert [line["seconds"] for line in told[1:]] == [0, 0, 2, 2.5, 2.5]
    assert told[3]["stage"] == "tiles"
    assert told[3]["tiles"] == told[4]["tiles"] == 7
    assert told[5]["slide_id"] == "ä"
    assert SlideStatus.from_record(told[5]["status"]) == end


def test_tiles_are_told_once_a_second_and_all_of_them(tmp_path, now):
    with EventLog(tmp_path / "w.jsonl") as log:
        log.stage("a", "tiles", 300)
        for _ in range(30):
            now[0] += 0.1
            log.advance("a", 10)
        log.stage("a", "write")
    told = [line["tiles"] for line in lines(tmp_path / "w.jsonl") if line["event"] == "tiles"]
    assert len(told) <= 5
    assert sum(told) == 300


def test_a_slide_that_is_tried_again_is_started_again(tmp_path, now):
    with EventLog(tmp_path / "w.jsonl") as log:
        for _ in range(2):
            log.stage("a", "open")
            log.finished(SlideStatus(slide_id="a", path="a", state="failed"))
    told = [line["event"] for line in lines(tmp_path / "w.jsonl")]
    assert told == ["started", "stage", "finished"] * 2


def test_nothing_told_is_no_file(tmp_path):
    with EventLog(tmp_path / "events/w.jsonl") as log:
        log.start(3)
    assert not list(tmp_path.iterdir())


def test_a_run_without_a_folder_has_no_log():
    assert type(open_log(None)) is SilentReporter


def test_following_gives_each_event_once_and_waits_for_whole_lines(tmp_path):
    follower = EventFollower(tmp_path / "events")
    assert follower.poll() == []
    log = EventLog(tmp_path / "events/one.jsonl")
    log.stage("a", "open")
    first = follower.poll()
    assert [(e.worker, e.event, e.slide_id) for e in first] == [
        ("one", "started", "a"),
        ("one", "stage", "a"),
    ]
    assert follower.poll() == []
    with (tmp_path / "events/two.jsonl").open("a") as other:
        other.write('{"time": "t", "event": "note", "te')
        other.flush()
        assert follower.poll() == []
        other.write('xt": "whole"}\n')
        other.flush()
    log.finished(SlideStatus(slide_id="a", path="a.svs", state="empty"))
    finished, note = follower.poll()
    assert finished.status == SlideStatus(slide_id="a", path="a.svs", state="empty")
    assert (note.worker, note.text) == ("two", "whole")
    log.__exit__(None, None, None)


def test_a_torn_line_costs_no_other(tmp_path):
    path = tmp_path / "w.jsonl"
    path.write_text('{"time": "t", "event": "note", "text": "before"}\n{"time": "t", "eve')
    with EventLog(path) as log:
        log.note("after")
    assert [event.text for event in EventFollower(tmp_path).poll()] == ["before", "after"]


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "7",
        "null",
        '{"event": "note"}',
        '{"time": "t", "event": "finished", "status": {"state": 1}}',
    ],
)
def test_what_is_no_event_is_passed_over(tmp_path, line):
    (tmp_path / "w.jsonl").write_text(f'{line}\n{{"time": "t", "event": "note", "new": 1}}\n')
    (event,) = EventFollower(tmp_path).poll()
    assert event.event == "note"


def test_an_event_tells_a_reporter(tmp_path):
    heard = []

    class Listening(SilentReporter):
        def note(self, text):
            heard.append(text)

        def stage(self, slide_id, stage, tiles=0):
            heard.append((slide_id, stage, tiles))

        def advance(self, slide_id, tiles):
            heard.append((slide_id, tiles))

    with EventLog(tmp_path / "w.jsonl") as log:
        log.stage("a", "tiles", 5)
        log.advance("a", 5)
        log.note("n")
    for event in EventFollower(tmp_path).poll():
        event.tell(Listening())
    assert heard == [("a", "tiles", 5), ("a", 5), "n"]


@pytest.mark.parametrize("engine", ["inline", {"local": {"workers": 1}}], ids=["inline", "local"])
def test_every_run_leaves_its_logs(go, slide, engine):
    options = {"encoder": "handcrafted"} if engine != "inline" else {}
    result = go([slide], engine=engine, **options)
    logs = list(events_folder(result.record.parent).glob("*.jsonl"))
    (log,) = logs
    host, _, pid = log.stem.rpartition("-")
    assert host == socket.gethostname()
    assert (int(pid) == os.getpid()) == (engine == "inline")
    told = lines(log)
    stages = [line["stage"] for line in told if line["event"] == "stage"]
    assert stages == ["open", "tissue", "coords", "check", "tiles", "write"]
    assert told[-1]["status"] == result.statuses[0].record()
    tiles = sum(line["tiles"] for line in told if line["event"] == "tiles")
    assert tiles == result.statuses[0].tiles


def test_the_status_says_where_the_time_went(go, slide):
    status = go(slide, encoder="handcrafted", reader="tiff").statuses[0]
    assert {"open", "tissue", "coords", "check", "tiles", "write"} == set(status.seconds)
    assert {"decode", "encode", "write"} <= set(status.profile)
    assert status.tiles_per_second == pytest.approx(
        status.tiles / status.seconds["tiles"], rel=0.05
    )
    again = go(slide, encoder="handcrafted", reader="tiff").statuses[0]
    assert (again.state, again.tiles_per_second) == ("reused", None)
    assert "encode" not in again.profile


def test_a_profile_ends_with_its_slide(go, slide, monkeypatch):
    whole = go(slide, output=slide.parent / "a").statuses[0]

    def fail(self, batch):
        raise OSError("broken")

    monkeypatch.setattr(standins.MeanEncoder, "encode", fail)
    failed = go(slide, output=slide.parent / "b").statuses[0]
    assert failed.state == "failed"
    assert set(failed.profile) <= set(whole.profile)
    assert failed.tiles_per_second is None
