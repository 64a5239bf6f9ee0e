"""Kill a job at every file operation in turn, and look at what it leaves.

Not a test: test_publish.py runs it, so that the forks happen in a process without threads.
Arguments: store, scenario, folder, and how many points to try at most: the last ones, where
names change, and an even choice of the others. A scenario that ends in ``-aside`` runs as on a file
system that cannot exchange two names. Points are tried with a sweep before the job is run again, as
by a new run, or without, as by a worker that takes the slide over; the last ones both ways. Prints
how many it killed at; fails with the first that left something half done.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from conftest import make_content, make_store, values_of

from microtome.store import folders
from microtome.store.publish import publish_slide, sweep

NAMES = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.link", folders.EXCHANGE}
EVENTS = {"open", "shutil.copyfile", *NAMES}

name, scenario, folder, most = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
scenario, _, aside = scenario.partition("-")
if aside:
    folders._exchange = lambda *_: False
os.fsync = lambda handle: None  # a killed process loses nothing that the system was given
store = make_store(name)
final = folder / f"slide{store.spec.suffix}"
# Of a group that is there, and the first of a group.
MORE = ["slide_features/b", "tokens/a"]
old, new = make_content("a"), make_content("a", "b")
if scenario == "arrays":
    old = make_content("a", arrays=["slide_features/a"])
    new = make_content("a", arrays=["slide_features/a", *MORE])
if scenario == "force":
    old = make_content("a", arrays=["slide_features/a"])
    new = make_content("b", identity="two", rows=4)
if scenario == "revise":
    old = make_content("a", arrays=["slide_features/a", "tokens/a"])
    new = replace(old, columns={**old.columns, "score": np.arange(9, dtype=np.float32)})
if scenario == "relabel":
    old = make_content("a", arrays=["slide_features/a"])
    old, new = (
        replace(old, columns={**old.columns, "label": np.full(9, label, np.int16)})
        for label in (0, 1)
    )
between = []
if scenario == "arrays" and store.spec.layout == "directory":  # each is published by itself
    between = [make_content("a", arrays=["slide_features/a", MORE[0]])]


def publish(content, *, again: bool = False) -> None:
    revise = None
    if again and scenario in ("revise", "relabel"):
        # A run that knows nothing of the features and arrays that are there.
        content = replace(content, features={}, arrays={})
        revise = lambda found: content  # noqa: E731
    force = again and scenario == "force"
    publish_slide(final, store.writer, store.spec, content, force=force, revise=revise)


def holds(content) -> bool:
    """Whether the slide is there with exactly this, to the last value."""
    with store.writer.open_stored(final) as stored:
        same = stored.feature_names() == sorted(content.features)
        same &= np.array_equal(stored.coords, content.coords)
        same &= stored.columns.keys() == content.columns.keys()
        for key in stored.columns.keys() & content.columns.keys():
            same &= np.array_equal(stored.columns[key], content.columns[key])
        same &= stored.array_names() == sorted(content.arrays)
        for key, features in content.features.items():
            same = same and np.array_equal(stored.features(key), values_of(features))
        for key, array in content.arrays.items():
            same = same and np.array_equal(stored.array(key), values_of(array))
    return same


def check() -> None:
    """Fail unless the final name is absent, or complete as it was or as it should become."""
    before = [] if scenario == "create" else [old]
    if final.exists():
        assert any(holds(content) for content in [*before, *between, new])
    else:
        assert scenario == "create" or (aside and store.spec.layout == "directory")


def complete() -> None:
    """Run the job again, as a user would, and see that it ends well."""
    publish(new, again=True)
    assert holds(new)


def die_at(point: int, tally: Path) -> None:
    """Publish, and die at the given file operation; leave the number of all at the end."""
    count = 0

    def hook(event: str, args: tuple[object, ...]) -> None:
        nonlocal count
        if event in EVENTS and any(str(folder) in str(arg) for arg in args):
            count += 1
            if count == point:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    publish(new, again=True)
    tally.write_text(str(count))


def in_child(work: Callable[..., None], *args: object) -> int:
    """Run in a process of its own, so that this one never starts a thread."""
    pid = os.fork()
    if pid == 0:
        try:
            work(*args)
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def attempt(point: int, tally: Path, *, swept: bool) -> bool:
    """Kill at one point and look; say whether the job got that far."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if scenario != "create" and in_child(publish, old) != 0:
        sys.exit("cannot begin")
    killed = in_child(die_at, point, tally) == -signal.SIGKILL
    for look in (check, complete):
        if in_child(look) != 0:
            sys.exit(f"killed at point {point}: {look.__doc__} Left {sorted(folder.iterdir())}")
        if swept or look is complete:
            sweep(folder)
    if sorted(folder.iterdir()) != [final]:
        sys.exit(f"killed at point {point}: {sorted(folder.iterdir())} stayed")
    return killed


tally = folder.with_name("tally")
if attempt(0, tally, swept=True):
    sys.exit("killed without being told to")
points = range(1, int(tally.read_text()) + 1)
late, early = points[-most // 2 :], points[: -most // 2]
chosen = [*early[:: max(1, 2 * len(early) // most)], *late]
both = points[-20:]
tries = [(p, swept) for p in chosen for swept in (True, False) if p in both or swept == p % 2]
print(sum(attempt(point, tally, swept=swept) for point, swept in tries))
