"""How a run tells how it goes: bars in a terminal, a line a slide elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from microtome.run import progress
from microtome.run.progress import (
    BarReporter,
    LineReporter,
    SilentReporter,
    TeeReporter,
    describe_slide,
    duration,
)
from microtome.store.status import SlideStatus


def status(slide_id="a", **fields):
    return SlideStatus(slide_id=slide_id, path="a.svs", **({"state": "done"} | fields))


@pytest.fixture
def now(monkeypatch):
    """The time, which a test moves."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def stream():
    return io.StringIO()


@pytest.fixture
def bars(now, stream):
    reporter = BarReporter()
    reporter.bars.live.console = Console(file=stream, force_terminal=True, width=160)
    reporter.bars.get_time = lambda: now[0]
    reporter.bars.live.auto_refresh = False
    with reporter:
        yield reporter


def shown(reporter):
    """Give what is on the screen now, a line each."""
    console = Console(file=io.StringIO(), width=160)
    console.print(reporter.bars.get_renderable())
    return console.file.getvalue().splitlines()


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
    done = status(tiles=200, seconds={"open": 0.5, "tiles": 4.0}, tiles_per_second=50.0)
    assert describe_slide(done) == "a: done, 200 tiles in 4.5 s, 50 tiles/s"
    failed = status(state="failed", stage="open", error={"type": "E", "message": "No such file."})
    assert describe_slide(failed) == "a: failed at open: No such file."


def test_lines_count_slides_and_say_what_is_left(now, stream):
    reporter = LineReporter(stream)
    reporter.start(2)
    now[0] += 10
    reporter.finished(status(tiles=1))
    now[0] += 10
    reporter.finished(status("b", tiles=1))
    first, second = stream.getvalue().splitlines()
    assert first == "[1/2, 10.0 s left] a: done, 1 tiles in 0.0 s"
    assert second == "[2/2] b: done, 1 tiles in 0.0 s"


def test_lines_have_the_rate_of_all_workers(now, stream):
    reporter = LineReporter(stream)
    reporter.start(3)
    for name in "ab":
        reporter.stage(name, "tiles", 100)
    for _ in range(10):
        now[0] += 1
        reporter.advance("a", 5)
        reporter.advance("b", 15)
    reporter.finished(status(tiles=50))
    assert stream.getvalue().startswith("[1/3, 20.0 s left, 20 tiles/s] a: done")


def test_a_silent_minute_ends_with_a_line(now, stream):
    reporter = LineReporter(stream)
    reporter.start(2)
    reporter.stage("a", "tiles", 1000)
    reporter.stage("b", "tissue")
    for _ in range(61):
        now[0] += 1
        reporter.advance("a", 4)
    assert stream.getvalue() == "[0/2, 4 tiles/s] in work: a (tiles 240/1000), b (tissue)\n"


def test_the_rate_is_that_of_the_last_half_minute(now, stream):
    reporter = LineReporter(stream)
    reporter.start(9)
    reporter.stage("a", "tiles", 10_000)
    reporter.advance("a", 9000)
    now[0] += 40
    reporter.advance("a", 30)
    now[0] += 10
    reporter.stage("b", "open")
    reporter.finished(status("b"))
    assert ", 1 tiles/s]" in stream.getvalue()


def test_every_slide_in_work_has_a_bar(bars, now, stream):
    bars.start(3)
    bars.stage("a", "tiles", 100)
    bars.stage("b", "tiles", 200)
    for _ in range(5):
        now[0] += 1
        bars.advance("a", 10)
        bars.advance("b", 20)
    total, a, b = shown(bars)
    assert "slides" in total
    assert "0/3" in total
    assert "30 tiles/s" in total
    assert "a: tiles" in a
    assert "50/100" in a
    assert "10 tiles/s" in a
    assert "b: tiles" in b
    assert "100/200" in b
    assert "20 tiles/s" in b
    bars.finished(status(tiles=100, seconds={"tiles": 10.0}, tiles_per_second=10.0))
    assert "a: done, 100 tiles in 10.0 s, 10 tiles/s" in stream.getvalue()
    total, b = shown(bars)
    assert "1/3" in total
    assert "10.0 s left" in total
    assert "b: tiles" in b


def test_a_slide_has_one_bar_for_all_its_stages(bars):
    bars.start(1)
    for stage in ("open", "tissue", "open"):
        bars.stage("a", stage)
    assert len(shown(bars)) == 2


def test_fetching_counts_no_tiles(bars, now):
    bars.start(1)
    bars.stage("a", progress.FETCH, 300)
    now[0] += 2
    bars.advance("a", 100)
    total, a = shown(bars)
    assert "tiles/s" not in total
    assert "100/300" in a
    assert "50 MiB/s" in a


def test_the_end_of_a_slide_that_was_never_begun(bars, stream):
    bars.start(1)
    bars.finished(status(state="held", stage="claim"))
    assert "a: held at claim" in stream.getvalue()
    assert len(shown(bars)) == 1


def test_a_slide_named_like_markup_is_printed_as_it_is(bars, stream):
    bars.start(1)
    bars.stage("[red]x[/]", "open")
    assert "[red]x[/]: open" in "".join(shown(bars))
    bars.finished(status("[red]x[/]"))
    assert "[red]x[/]: done" in stream.getvalue()


def test_a_tee_passes_everything_on():
    heard = []

    class Listening(SilentReporter):
        def __init__(self, name):
            for call in ("start", "note", "stage", "advance", "finished", "__exit__"):
                setattr(self, call, lambda *args, call=call: heard.append((name, call, *args)))

        def __exit__(self, *exc):
            heard.append((self.name, "exit"))

    one, two = Listening("one"), Listening("two")
    one.name, two.name = "one", "two"
    end = status()
    with TeeReporter(one, two) as tee:
        tee.start(1)
        tee.note("n")
        tee.stage("a", "tiles", 3)
        tee.advance("a", 2)
        tee.finished(end)
    expected = [
        ("start", 1),
        ("note", "n"),
        ("stage", "a", "tiles", 3),
        ("advance", "a", 2),
        ("finished", end),
    ]
    assert heard[:-2] == [(name, *call) for call in expected for name in ("one", "two")]
    assert heard[-2:] == [("two", "exit"), ("one", "exit")]


@pytest.mark.parametrize(("terminal", "kind"), [(True, BarReporter), (False, LineReporter)])
def test_stderr_decides(monkeypatch, terminal, kind):
    class Stream(io.StringIO):
        def isatty(self):
            return terminal

    monkeypatch.setattr(progress.sys, "stderr", Stream())
    assert isinstance(progress.make_reporter(), kind)
