"""Slides are handed out largest first, once, with their history, and come back in the end."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from microtome.run import queue as queues
from microtome.run.queue import Assignment, SlideQueue
from microtome.run.settings import ClaimSettings
from microtome.slide.types import SlideRef
from microtome.store.claims import read_attempts
from microtome.store.layout import OutputLayout
from microtome.store.status import read_status


@pytest.fixture
def make(tmp_path):
    """Make a queue over files of the given sizes."""

    def queue(sizes, *, keep_order=False, **claims):
        refs = []
        for name, size in sizes.items():
            path = tmp_path / f"{name}.svs"
            path.write_bytes(bytes(size))
            refs.append(SlideRef(path=path, slide_id=name))
        plan = SimpleNamespace(
            layout=OutputLayout(tmp_path / "out"),
            config=SimpleNamespace(claims=ClaimSettings(**claims), task="process"),
            round="",
        )
        return SlideQueue(plan, refs, keep_order=keep_order)

    return queue


def take_all(queue):
    taken = []
    while isinstance(task := queue.take(), Assignment):
        taken.append(task)
    return taken


def names(tasks):
    return [task.ref.slide_id for task in tasks]


def test_the_largest_goes_first(make):
    sizes = {"small": 1, "large": 100, "middle": 10}
    assert names(take_all(make(sizes))) == ["large", "middle", "small"]


def test_the_order_can_be_kept(make):
    sizes = {"small": 1, "large": 100, "middle": 10}
    assert names(take_all(make(sizes, keep_order=True))) == list(sizes)


def test_all_files_of_a_slide_count(make, tmp_path):
    (tmp_path / "more").write_bytes(bytes(1000))
    queue = make({"one": 500})
    many = SlideRef(path=tmp_path / "one.svs", slide_id="many", companions=(tmp_path / "more",))
    plain = SlideRef(path=tmp_path / "one.svs", slide_id="plain")
    gone = SlideRef(path=tmp_path / "gone.svs", slide_id="gone")
    queue = SlideQueue(queue._plan, [gone, plain, many])
    assert names(take_all(queue)) == ["many", "plain", "gone"]


def test_it_is_finished_when_every_slide_came_back(make):
    queue = make({"a": 1, "b": 1})
    tasks = take_all(queue)
    assert not queue.finished
    queue.done(tasks[0])
    assert not queue.finished
    queue.drop(tasks[1])
    assert queue.finished
    assert queue.take() is None


def test_two_queues_share_the_slides(make, monkeypatch):
    monkeypatch.setattr(queues, "_POLL", 0.0)
    first, second = make({"a": 2, "b": 1}), make({"a": 2, "b": 1})
    mine = first.take()
    theirs = second.take()
    assert names([mine, theirs]) == ["a", "b"]
    assert first.take() is None
    assert first.held == 1
    assert not first.finished
    second.done(theirs)
    assert names([first.take()]) == ["b"]  # it comes back to what was held


def test_what_others_hold_can_be_left_to_them(make):
    first, second = make({"a": 1}), make({"a": 1}, wait=False)
    mine = first.take()
    status = second.take()
    assert (status.slide_id, status.state) == ("a", "held")
    assert "claims.wait=true" in status.message
    assert second.finished
    first.done(mine)


def test_a_death_is_history_for_the_next_try(make):
    queue = make({"a": 1, "b": 1}, keep_order=True)
    task = queue.take()
    assert task.history.deaths == 0
    task.claim.note(reader="cucim", stage="tiles")
    assert queue.died(task, "was killed by SIGSEGV") is None
    assert names([queue.take()]) == ["b"]  # the others first
    again = queue.take()
    assert again.ref.slide_id == "a"
    assert again.history.deaths == 1
    assert again.history.avoid == {"cucim"}


def test_three_deaths_are_enough(make, tmp_path):
    queue = make({"a": 1})
    for how in ("was killed by SIGSEGV", "was killed by SIGSEGV"):
        task = queue.take()
        task.claim.note(stage="tiles")
        assert queue.died(task, how) is None
    task = queue.take()
    task.claim.note(stage="open")
    status = queue.died(task, "made no progress")
    assert queue.finished
    assert status.state == "quarantined"
    assert status.stage == "open"
    assert status.message.startswith(
        "3 workers died on it: was killed by SIGSEGV at tiles; made no progress at open."
    )
    assert read_status(tmp_path / "out/status/a.json") == status
    # The next run leaves it alone, and its record as it is.
    queue = make({"a": 1})
    assert queue.take().state == "quarantined"
    assert queue.finished
    assert len(read_attempts(tmp_path / "out/.claims/a.attempts.json")) == 3


def test_a_quarantined_slide_can_be_tried_again_and_die_again(make):
    queue = make({"a": 1}, attempts=1)
    assert queue.died(queue.take(), "was killed").state == "quarantined"
    queue = make({"a": 1}, attempts=2, retry=True)
    task = queue.take()
    assert task.history.deaths == 0
    assert queue.died(task, "was killed") is None
    task = queue.take()
    assert task.history.deaths == 1  # what it died of in this very run counts
    assert queue.died(task, "was killed").state == "quarantined"


def test_without_a_limit_every_run_tries_a_slide_again(make):
    for run in range(2):
        queue = make({"a": 1}, attempts=0)
        for tried in range(2):
            task = queue.take()
            assert task.history.deaths == 3 * run + tried
            assert queue.died(task, "was killed") is None
        status = queue.died(queue.take(), "was killed")
        assert queue.finished
        assert status.state == "quarantined"
        assert status.message.endswith("The next run tries it again.")


def test_attempts_that_nobody_could_record_the_end_of_count(make, tmp_path):
    """As after kill -9 of the whole process: the lease goes with it, the attempt stays."""
    for deaths in range(3):
        task = make({"a": 1}).take()
        # One lost machine says nothing of the slide.
        assert task.history.deaths == max(0, deaths - 1)
        task.claim._lease.release()
    status = make({"a": 1}).take()
    assert status.state == "quarantined"
    assert "vanished" in status.message
