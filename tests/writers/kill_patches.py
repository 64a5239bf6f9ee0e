"""Kill a patch store at every file operation in turn, and look at what it leaves.

Not a test: test_patch_damage.py runs it, so that the forks happen in a process without threads.
Arguments: writer, folder. Prints how many it killed at; fails with the first that left something
half done.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from microtome.plugin.registry import get_registry
from microtome.store.atomic import sweep
from microtome.store.attributes import write_folder_record
from microtome.store.classes import class_folders, publish_images
from microtome.store.patches import labelled_tiles

EVENTS = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove"}
SLIDE_ID, SIZE = "a", 8
LATE = 24

name, folder = sys.argv[1], Path(sys.argv[2])
Image.init()  # else each fork imports the formats
os.fsync = lambda handle: None  # a killed process loses nothing that the system was given
registry = get_registry()
spec = registry.find("writer", name).spec
writer = registry.create("writer", name)
final = folder / spec.folder / f"{SLIDE_ID}{spec.suffix}"
coords = np.array([[x * SIZE, y * SIZE, SIZE, SIZE, 0] for y in range(2) for x in range(3)], "i4")
pixels = np.random.default_rng(0).integers(0, 256, (6, SIZE, SIZE, 3), np.uint8)
# One class loses its last tile, one gets its first, of one they are others.
old, new = np.array([0, 0, 0, 1, 1, -1], "i2"), np.array([0, 0, -1, 2, 0, 2], "i2")


def publish(labels) -> None:
    attributes = {"slide_id": SLIDE_ID, "patch_size": SIZE, "classes": ["n", "t", "s"]}
    record = {**attributes, **labelled_tiles(coords, labels)}
    with publish_images(final, spec, SLIDE_ID) as path:
        sink = writer.open(path, SLIDE_ID, attributes)
        known = labels >= 0
        sink.write(coords[known], pixels[known], labels[known])
        if spec.layout == "file":
            sink.record(record)
        sink.close()
        if spec.layout != "file":
            write_folder_record(path, record)


def holds(labels) -> bool:
    with writer.open_patches(final) as patches:
        known = labels >= 0
        same = np.array_equal(patches.labels, labels[known])
        same = same and np.array_equal(patches.coords, coords[known])
        return same and np.array_equal(patches.read(slice(None)), pixels[known])


def is_of(labels, of: str, there: Path) -> bool:
    """Whether a folder holds the images that some labels give its class, and no others."""
    label = "nts".index(of)
    wanted = {f"a_x{x}_y{y}.png" for x, y in coords[labels == label, :2].tolist()}
    return {each.name for each in there.iterdir()} == wanted


def check() -> None:
    """Fail unless the slide is absent or whole, and every folder of a class is whole."""
    if final.exists():
        assert holds(old) or holds(new)
        assert list(writer.damage(final, deep=True)) == []
    else:
        assert spec.layout == "classes"  # elsewhere one store takes the place of another
    for of, there in class_folders(final, SLIDE_ID).items() if spec.layout == "classes" else ():
        assert is_of(old, of, there) or is_of(new, of, there), of


def complete() -> None:
    """Run the job again, as a user would, and see that it ends well."""
    publish(new)
    assert holds(new)
    assert list(writer.damage(final, deep=True)) == []


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
    publish(new)
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


def attempt(point: int, tally: Path) -> bool:
    """Kill at one point and look; say whether the job got that far."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if in_child(publish, old) != 0:
        sys.exit("cannot begin")
    killed = in_child(die_at, point, tally) == -signal.SIGKILL
    for look in (check, complete):
        if in_child(look) != 0:
            left = sorted(str(path) for path in folder.rglob("*"))
            sys.exit(f"killed at point {point}: {look.__doc__} Left {left}")
    sweep(final.parent)
    if left := [path for path in folder.rglob("*") if path.name.endswith(".tmp")]:
        sys.exit(f"killed at point {point}: {left} stayed")
    return killed


tally = folder.with_name("tally")
if attempt(0, tally):
    sys.exit("killed without being told to")
points = range(1, int(tally.read_text()) + 1)
early, late = points[:-LATE], points[-LATE:]  # images are written, names change
print(sum(attempt(point, tally) for point in [*early[::4], *late]))
