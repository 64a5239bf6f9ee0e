"""The same slides by every engine, and whether all of them leave the same.

``python -m bench.engines --slides 100`` makes small slides, runs them inline, by two supervised
workers, as jobs of submitit's local executor and on a local Ray cluster of two nodes, of which one
is killed half-way. It prints what became of the slides, and ends with 1 if any output differs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import microtome
from microtome.run.progress import SilentReporter
from microtome.store.status import SlideStatus
from microtome.testing import make_slide

_TILER = {"grid": {"magnification": 20, "size": 128}}
_STARTS = 4
"""Tries to start a node of Ray, which gives itself 30 s however busy the machine is."""


class Counter(SilentReporter):
    """Does something once half of the slides are finished.

    Args:
        half: How many those are.
        act: What.
    """

    def __init__(self, half: int, act: Callable[[], object]) -> None:
        self._left, self._act = half, act

    def finished(self, status: SlideStatus) -> None:
        """Count."""
        self._left -= 1
        if self._left == 0:
            self._act()


def main() -> int:
    """Run every engine and compare.

    Returns:
        The exit code: 1 where an output differs or a slide is missing.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.engines", description=__doc__)
    parser.add_argument("--slides", type=int, default=100, help="how many")
    count = parser.parse_args().slides
    with tempfile.TemporaryDirectory(prefix="microtome-engines-") as temporary:
        folder = Path(temporary)
        (folder / "slides").mkdir()
        for seed in range(count):
            size = (512 + 64 * (seed % 5), 512)
            make_slide(folder / f"slides/s{seed:03d}.svs", size=size, seed=seed)
        _run(folder, "inline", "inline")
        _run(folder, "local", {"local": {"workers": 2}})
        _run(folder, "submitit", {"slurm": {"cluster": "local", "jobs": 2}})
        with _cluster() as (address, kill):
            ray = {"ray": {"workers": 2, "address": address}}
            _run(folder, "ray, a node killed", ray, Counter(count // 2, kill))
        reference = _content(folder / "inline")
        others = [
            path for path in sorted(folder.iterdir()) if path.name not in ("slides", "inline")
        ]
        same = {path.name: _equal(reference, _content(path)) for path in others}
    for name, equal in same.items():
        print(f"{name:<20} {'equals inline' if equal else 'DIFFERS from inline'}")
    return 0 if all(same.values()) and len(reference) == count else 1


def _run(folder: Path, name: str, engine: Any, reporter: Counter | None = None) -> None:
    began = time.monotonic()
    result = microtome.run_slides(
        folder / "slides",
        folder / name,
        engine=engine,
        reporter=reporter or SilentReporter(),
        tiler=_TILER,
        claims={"seconds": 5.0},
    )
    states = ", ".join(f"{count} {state}" for state, count in result.counts.items())
    once = len({status.slide_id for status in result.statuses}) == len(result.statuses)
    told = "each told once" if once else "SOME TOLD TWICE"
    print(f"{name:<20} {states}, {told}, {time.monotonic() - began:.1f} s", flush=True)


@contextmanager
def _cluster() -> Iterator[tuple[str, Callable[[], object]]]:
    """Start a cluster of a head without CPUs and two nodes; give its address and what kills one."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        _start(lambda: cluster.add_node(num_cpus=0, include_dashboard=False))
        nodes = [_start(lambda: cluster.add_node(num_cpus=1)) for _ in range(2)]
        yield cluster.address, lambda: cluster.remove_node(nodes[0], allow_graceful=False)
    finally:
        cluster.shutdown()


def _start(node: Callable[[], Any]) -> Any:
    for _ in range(_STARTS - 1):
        try:
            return node()
        except RuntimeError as error:
            print(f"a node did not start: {str(error).splitlines()[0]}", file=sys.stderr)
    return node()


def _content(output: Path) -> dict[str, tuple[np.ndarray[Any, Any], ...]]:
    """Read what a run left of every slide: its coordinates and features."""
    found = {}
    for path in sorted((output / "patches").glob("*.h5")):
        with h5py.File(path) as file:
            found[path.stem] = (file["coords"][:], file["features/handcrafted"][:])
    return found


def _equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        all(map(np.array_equal, one[name], other[name])) for name in one
    )


if __name__ == "__main__":
    sys.exit(main())
