"""Runs are killed, their outputs looked at, and left to finish: a part of `bench.kills`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2]))

from bench.kills.cohort import COHORT
from bench.kills.launch import Nursery
from bench.kills.points import POINTS
from bench.kills.rounds import ANY, Kill, Plan, Tally, fight
from bench.kills.slides import SCENES, SLIDES, Arena

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
SHM = Path("/dev/shm")
PLANS = SLIDES.every_point(seed=0)


@pytest.fixture(scope="module")
def folder():
    """Give a folder in memory, where there is one: a killed process needs no disk."""
    with tempfile.TemporaryDirectory(dir=SHM if SHM.is_dir() else None) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def nursery(folder):
    with Nursery(folder / "nursery") as nursery:
        yield nursery


@pytest.fixture(scope="module")
def arena(folder, nursery):
    return Arena(folder / "arena", nursery, ["inline"])


def fight_one(arena, nursery, plan):
    """Kill as planned, and see that nothing is wrong or stuck; give what was killed."""
    tally = Tally()
    fight(arena, nursery, plan, 0, tally)
    assert not tally.wrong
    assert not tally.stuck
    assert tally.files > 30
    return [point for point, _, _ in tally.kills.elements()]


def test_there_is_a_plan_for_every_point():
    plans = [*PLANS, *COHORT.every_point(seed=0)]
    assert {plan.kills[-1].point for plan in plans} == set(POINTS)


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.kills[-1].point)
def test_killed_at_a_named_point_nothing_is_wrong_or_stuck(arena, nursery, plan):
    assert fight_one(arena, nursery, plan) == [kill.point for kill in plan.kills]


@pytest.mark.parametrize(
    "kills",
    [
        [("before a file's replace", "worker"), "new"],
        [("a published file copied, nothing added", "driver"), "add"],
        [("a folder moved aside, its successor not there", "both"), "force"],
    ],
    ids=["worker", "driver", "both"],
)
def test_killed_with_workers_nothing_is_wrong_or_stuck(arena, nursery, kills):
    (point, whom), scene = kills
    assert fight_one(arena, nursery, Plan(scene, "local", (Kill(point, whom),))) == [point]


@pytest.mark.parametrize("scene", SCENES)
def test_killed_at_any_moment_nothing_is_wrong_or_stuck(arena, nursery, scene):
    moments = (Kill(ANY, "driver", moment=0.4), Kill(ANY, "driver", moment=0.7))
    assert fight_one(arena, nursery, Plan(scene, "inline", moments))
