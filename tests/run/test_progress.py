"""How a run tells how it goes: bars in a terminal, a line a slide elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from microtome.run import progress
from microtome.run.progress import BarReporter, LineReporter, describe_slide, duration
from microtome.store.status import SlideStatus


def status(**fields):
    return SlideStatus(slide_id="a", path="a.svs", **({"state": "done"} | fields))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.9, "59.9 s"),
        (200, "3 min 20 s"),
        (3605, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_times_are_for_people(seconds, text):
    assert duration(seconds) == text


def test_a_slide_in_a_line():
    done = status(tiles=200, seconds={"open": 0.5, "tiles": 4.0})
    assert describe_slide(done) == "a: done, 200 tiles in 4.5 s, 50 tiles/s"
    failed = status(state="failed", stage="open", error={"type": "E", "message": "No such file."})
    assert describe_slide(failed) == "a: failed at open: No such file."


def test_lines_count_slides_and_say_what_is_left(monkeypatch):
    clock = iter([100.0, 110.0, 120.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    reporter = LineReporter.__new__(LineReporter)
    reporter.stream, reporter.slides, reporter.done = stream, 0, 0
    reporter.start(2)
    reporter.finished(status(tiles=1))
    reporter.finished(status(tiles=1))
    first, second = stream.getvalue().splitlines()
    assert first == "[1/2, 10.0 s left] a: done, 1 tiles in 0.0 s"
    assert second == "[2/2] a: done, 1 tiles in 0.0 s"


def test_bars_show_slides_tiles_rate_and_time_left(monkeypatch):
    stream = io.StringIO()
    reporter = BarReporter()
    reporter.bars.live.console = Console(file=stream, force_terminal=True, width=120)
    now = [0.0]
    reporter.bars.get_time = lambda: now[0]
    with reporter:
        reporter.start(2)
        reporter.stage("a", "tiles", 100)
        for _ in range(5):
            now[0] += 1.0
            reporter.advance(10)
        reporter.bars.refresh()
        shown = stream.getvalue().rsplit("slides", 1)[1]
        assert "0/2" in shown
        assert "a: tiles" in shown
        assert "50/100" in shown
        assert "10 tiles/s" in shown
        assert "0:00:05" in shown
        reporter.finished(status(tiles=100, seconds={"tiles": 10.0}))
        reporter.bars.refresh()
    text = stream.getvalue()
    assert "a: done, 100 tiles in 10.0 s, 10 tiles/s" in text
    assert "1/2" in text.rsplit("slides", 1)[1]


def test_a_slide_named_like_markup_is_printed_as_it_is():
    stream = io.StringIO()
    reporter = BarReporter()
    reporter.bars.live.console = Console(file=stream, force_terminal=False, width=120)
    with reporter:
        reporter.start(1)
        reporter.finished(SlideStatus(slide_id="[red]x[/]", path="x", state="done"))
    assert "[red]x[/]: done" in stream.getvalue()


@pytest.mark.parametrize(("terminal", "kind"), [(True, BarReporter), (False, LineReporter)])
def test_stderr_decides(monkeypatch, terminal, kind):
    class Stream(io.StringIO):
        def isatty(self):
            return terminal

    monkeypatch.setattr(progress.sys, "stderr", Stream())
    assert isinstance(progress.make_reporter(), kind)
