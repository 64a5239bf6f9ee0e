"""Several processes on one output: each slide is worked on once, and nobody's work is lost."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from microtome.store.claims import Claims
from microtome.store.layout import OutputLayout
from microtome.testing import make_slide

sys.path.append(str(Path(__file__).resolve().parents[2]))

from bench.kills.checks import Truth, check_complete, leftovers, read_store
from bench.kills.launch import environment
from bench.kills.points import LOG, TRAP, Trap

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and its signals")

OPTIONS = ["tiler.size=32", "tiler.magnification=20", "engine=inline", "threads=1"]
BOTH = "writer=[hdf5,zarr]"
SECONDS = 800


@pytest.fixture
def folder():
    """Give a folder in memory, where there is one."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as name:
        yield Path(name)


def make_slides(folder, count):
    """Make small slides, four of them different."""
    folder.mkdir()
    for number in range(count):
        path = folder / f"slide {number:03}.svs"
        if number < 4:
            make_slide(path, size=(384, 256), levels=(1, 2), mpp=0.5, magnification=20, pen=False,
                       tissue=0.2 + 0.1 * number, seed=number)  # fmt: skip
        else:
            shutil.copyfile(folder / f"slide {number % 4:03}.svs", path)
    return folder


@dataclass
class Run:
    """A command that runs in a process of its own."""

    process: subprocess.Popen
    said: Path

    def wait(self):
        """Wait for its end; give its exit code."""
        try:
            return self.process.wait(SECONDS)
        finally:
            self.process.kill()

    def __str__(self):
        return self.said.read_text()


@pytest.fixture
def start(folder):
    """Give a function that starts the command; ends all that is left."""
    runs = []

    def start(*words, **variables):
        said = folder / f"{len(runs)}.txt"
        with said.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "microtome", str(folder / "slides"), *OPTIONS, *words],
                env=environment(folder, **variables),
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        runs.append(Run(process, said))
        return runs[-1]

    yield start
    for run in runs:
        run.process.kill()
        run.process.wait()


@dataclass
class Diary:
    """What the file operations of all processes say."""

    path: Path

    def lines(self):
        """Give when, who and what."""
        text = self.path.read_text() if self.path.exists() else ""
        for line in text.splitlines():
            when, pid, operation = line.split(" ", 2)
            yield int(when), int(pid), operation

    def published(self):
        """Count how often each name of a store appeared."""
        named = (op.rpartition(" -> ")[2] for _, _, op in self.lines() if op.startswith("renamed "))
        return Counter(path.name for path in map(Path, named) if path.parent.name == "patches")

    def work(self, killed):
        """Give (slide, began, ended, process) of every time that a slide was worked on.

        Args:
            killed: When each killed process was.
        """
        open_since = {}
        for when, pid, operation in self.lines():
            name = Path(operation.rpartition(" -> ")[2]).name
            if name.startswith(".") or not name.endswith(".attempts.json"):
                continue
            if operation.startswith("renamed "):
                open_since.setdefault((name, pid), when)
            elif (name, pid) in open_since:
                yield name, open_since.pop((name, pid)), when, pid
        for (name, pid), began in open_since.items():
            yield name, began, killed[pid], pid


def kill_some(runs, diary, after):
    """Kill a run at work whenever so many names have appeared; say when each was killed."""
    killed = {}
    rng = random.Random(0)
    deadline = time.monotonic() + SECONDS
    for count in after:
        while True:
            assert time.monotonic() < deadline, "\n".join(map(str, runs))
            begun = {pid for _, pid, op in diary.lines() if op.endswith(".attempts.json")}
            alive = [r for r in runs if r.process.poll() is None and r.process.pid in begun]
            if len(alive) > 1 and diary.published().total() >= count:
                break
            time.sleep(0.01)
        victim = rng.choice(alive)
        killed[victim.process.pid] = time.monotonic_ns()
        victim.process.kill()
        victim.process.wait()  # while nobody takes notice of its death, its claims last their time
    return killed


def share(folder, start, *, processes, slides, after):
    """Let processes share slides, kill some of them, and look at everything."""
    make_slides(folder / "slides", slides)
    alone = start(f"output={folder / 'alone'}", BOTH)
    assert alone.wait() == 0, str(alone)
    truth = Truth(folder / "alone")
    diary, output = Diary(folder / "diary"), folder / "out"
    runs = [start(f"output={output}", BOTH, **{LOG: str(diary.path)}) for _ in range(processes)]
    killed = kill_some(runs, diary, after)
    for run in runs:
        assert run.wait() == (-signal.SIGKILL if run.process.pid in killed else 0), str(run)
    assert len(killed) == len(after)
    # What a killed process left unfinished is swept by whoever starts next.
    assert start(f"output={output}", BOTH, **{LOG: str(diary.path)}).wait() == 0
    verdict = check_complete(output, truth)
    assert not verdict.faults
    assert diary.published() == Counter(Path(name).name for name in truth.stored)
    assert_one_at_a_time(diary.work(killed), slides)


def assert_one_at_a_time(work, slides):
    """See that no slide was worked on by two living processes."""
    by_slide = defaultdict(list)
    for name, began, ended, pid in work:
        by_slide[name].append((began, ended, pid))
    assert len(by_slide) == slides
    for name, times in by_slide.items():
        times.sort()
        for (_, ended, one), (began, _, other) in pairwise(times):
            assert ended <= began, f"{name}: {one} and {other} at a time"


def test_three_processes_share_twelve_slides_and_one_is_killed(folder, start):
    share(folder, start, processes=3, slides=12, after=[5])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_eight_processes_share_two_hundred_slides_and_three_are_killed(folder, start):
    after = sorted(random.Random(0).sample(range(20, 300), 3))
    share(folder, start, processes=8, slides=200, after=after)


def test_two_jobs_that_add_encoders_at_once_lose_nothing(folder, start):
    make_slides(folder / "slides", 4)
    second = "+encoder@encoder.second=handcrafted"
    assert start(f"output={folder / 'alone'}", BOTH, second).wait() == 0
    output = f"output={folder / 'out'}"
    runs = [start(output, BOTH), start(output, BOTH, "encoder=[]", second)]
    assert [run.wait() for run in runs] == [0, 0], "\n".join(map(str, runs))
    truth = Truth(folder / "alone")
    assert not check_complete(folder / "out", truth).faults


def test_two_tilings_that_share_tissue_lose_nothing(folder, start):
    make_slides(folder / "slides", 4)
    tilings = {
        name: [BOTH, f"tiler.name={name}", f"tiler.magnification={power}"]
        for name, power in (("fine", 20), ("coarse", 10))
    }
    alone = [start(f"output={folder / n}", *words) for n, words in tilings.items()]
    together = [start(f"output={folder / 'out'}", *words) for words in tilings.values()]
    assert [run.wait() for run in (*alone, *together)] == [0, 0, 0, 0]
    out = folder / "out"
    for name in tilings:
        wanted = sorted((folder / name / name / "patches").iterdir())
        assert len(wanted) == 8
        for path in wanted:
            expected, found = read_store(path), read_store(out / name / "patches" / path.name)
            assert expected.identities == found.identities
            for key, array in expected.arrays.items():
                np.testing.assert_array_equal(found.arrays[key], array)
        for path in (folder / name / "tissue").iterdir():
            assert (out / "tissue" / path.name).read_bytes() == path.read_bytes()
    assert not leftovers(out)


def test_a_worker_that_was_stopped_blocks_nobody_and_spoils_nothing_when_it_wakes(folder, start):
    make_slides(folder / "slides", 1)
    assert start(f"output={folder / 'alone'}").wait() == 0
    words = [f"output={folder / 'out'}", "claims.seconds=1"]
    trap = Trap(point="before a file's replace", mark=str(folder / "mark"), signal="SIGSTOP")
    stopped = start(*words, **{TRAP: trap.as_json()})
    deadline = time.monotonic() + SECONDS
    while not Path(trap.mark).exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    other = start(*words)
    assert other.wait() == 0, str(other)
    truth = Truth(folder / "alone")
    held = read_store(folder / "out" / "patches" / "slide 000.h5")
    assert held.identities == truth.stored["patches/slide 000.h5"].identities
    os.kill(stopped.process.pid, signal.SIGCONT)
    assert stopped.wait() == 0, str(stopped)
    assert not check_complete(folder / "out", truth).faults


@pytest.mark.parametrize("marker", ["", "held"])
def test_a_claim_that_its_lease_cannot_take_over_is_free_in_time(tmp_path, monkeypatch, marker):
    """A worker died before it wrote its name; or the file system cannot exchange two names."""
    layout = OutputLayout(tmp_path)
    dead = "import os, sys; from microtome.store.claims import *; "
    dead += "claim = Claims(OutputLayout(Path(sys.argv[1])), 1).take('slide'); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", dead, tmp_path], check=False).returncode == 9
    if not marker:
        layout.claim("slide", ".lease").write_text("")
    monkeypatch.setattr("filelock._soft.exchange_names", lambda *_: False)
    claims = Claims(layout, 1)
    assert claims.take("slide") is None
    deadline = time.monotonic() + 30
    while (claim := claims.take("slide")) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    claim.end()
    assert not list(layout.claims_folder.iterdir())
