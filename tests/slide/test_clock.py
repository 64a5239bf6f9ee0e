"""Where the time of a run goes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from microtome.slide import clock


@pytest.fixture
def ticks(monkeypatch):
    """A clock that a test moves."""
    now = [0.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])
    return now


def test_nothing_is_kept_unless_it_was_asked_for(ticks):
    with clock.timed("decode"):
        ticks[0] += 1
    with clock.profiling() as profile:
        pass
    assert dict(profile.seconds) == {}


def test_an_inner_stage_is_taken_off_the_outer(ticks):
    with clock.profiling() as profile, clock.timed("decode"):
        ticks[0] += 2
        with clock.timed("read"):
            ticks[0] += 3
        with clock.timed("read"), clock.timed("wait"):
            ticks[0] += 4
    assert dict(profile.seconds) == {"decode": 2, "read": 3, "wait": 4}


def test_a_stage_inside_of_itself_counts_once(ticks):
    with clock.profiling() as profile, clock.timed("write"):
        ticks[0] += 1
        with clock.timed("write"):
            ticks[0] += 1
    assert dict(profile.seconds) == {"write": 2}


def test_an_error_ends_a_stage(ticks):
    def fail():
        with clock.timed("decode"):
            ticks[0] += 1
            raise KeyError

    with clock.profiling() as profile:
        with pytest.raises(KeyError):
            fail()
        with clock.timed("encode"):
            ticks[0] += 5
    assert dict(profile.seconds) == {"decode": 1, "encode": 5}


def test_every_thread_counts_for_itself(ticks):
    def work(_):
        with clock.timed("decode"):
            pass

    with clock.profiling() as profile, clock.timed("wait"):
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(100)))
        ticks[0] += 1
    assert dict(profile.seconds) == {"decode": 0, "wait": 1}


def test_profiles_do_not_mix(ticks):
    with clock.profiling() as outer:
        with clock.timed("read"):
            ticks[0] += 1
        with clock.profiling() as inner, clock.timed("read"):
            ticks[0] += 2
        with clock.timed("read"):
            ticks[0] += 4
    assert (outer.seconds["read"], inner.seconds["read"]) == (5, 2)
