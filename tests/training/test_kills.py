"""What is done with labels is killed, looked at and left to finish: a part of `bench.kills`."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2]))

from bench.kills.cohort import COHORT, IMPORTS, Cohort, find_final, look
from bench.kills.labels import look_at_labels
from bench.kills.launch import Nursery
from bench.kills.rounds import Tally, fight

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc"),
]
SHM = Path("/dev/shm")
PLANS = COHORT.every_point(seed=0)


@pytest.fixture(scope="module")
def folder():
    """Give a folder in memory, where there is one: a killed process needs no disk."""
    with tempfile.TemporaryDirectory(dir=SHM if SHM.is_dir() else None) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def nursery(folder):
    with Nursery(folder / "nursery", IMPORTS) as nursery:
        yield nursery


@pytest.fixture(scope="module")
def cohort(folder, nursery):
    return Cohort(folder / "arena", nursery, engines=["inline"])


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.kills[-1].point)
def test_killed_at_a_named_point_nothing_is_wrong_or_stuck(cohort, nursery, plan):
    tally = Tally()
    fight(cohort, nursery, plan, 0, tally)
    assert not tally.wrong
    assert not tally.stuck
    assert [point for point, _, _ in tally.kills.elements()] == [kill.point for kill in plan.kills]


def test_every_file_that_is_cut_short_is_seen(cohort, tmp_path):
    """Of every kind that there is, whatever its library says of it."""
    seen = set()
    for start in ("drawn", "sampled", "probed", "predicted"):
        output = shutil.copytree(cohort.folder / start, tmp_path / start)
        held = [cohort.starts[start]]
        files = (path for each in find_final(output) for path in (each, *each.rglob("*")))
        for path in [path for path in files if path.is_file()]:
            kind = (path.suffix, path.relative_to(output).parts[0])
            if kind in seen or kind[1] == "runs":
                continue
            seen.add(kind)
            data = path.read_bytes()
            path.write_bytes(data[: len(data) * 3 // 4])
            assert look(output, held).faults, path
            path.write_bytes(data)
        assert not look(output, held).faults
    assert len(seen) > 15


def test_an_image_that_lies_in_another_class_is_seen(cohort, tmp_path):
    output = shutil.copytree(cohort.folder / "drawn", tmp_path / "out")
    assert not list(look_at_labels(output))
    image = next(output.glob("imagefolder/images/tumor/slide_01/*"))
    image.rename(output / "imagefolder/images/normal/slide_01" / image.name)
    told = f"{output}: images of slide_01 lie in classes that are not their labels"
    assert list(look_at_labels(output)) == [told]
    faults = look(output, [cohort.starts["drawn"]]).faults
    assert any("slides/slide_01.json is there, and its images are not" in each for each in faults)
