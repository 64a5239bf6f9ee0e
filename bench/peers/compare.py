"""Runs microtome and other tools side by side on one slide."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bench.process import Finished, run_process, run_step
from bench.results import Bar, Result
from bench.session import GRID, Rate, Session, scratch

FOLDER = Path(__file__).parent

RUNNERS: Mapping[str, Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "atlaspatch": {"default": {}, "tuned": {"workers": 0}},
        "slide2vec": {"default": {}, "tuned": {"workers": 2, "cucim_workers": 1}},
        "lazyslide": {"default": {}, "tuned": {"workers": 2}},
    }
)
"""The tools that can be run, and the options of each way to run them: the best one that was found
on two cores is called tuned."""

_LOOK = 0.2
"""Seconds between looks at memory; the same for all, since looking costs a little time."""

_OFFLINE = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}


@dataclass(frozen=True)
class _Peer:
    """What one tool reached in one way to run it."""

    name: str
    rate: Rate
    peak_mb: float


def peers(session: Session) -> Iterator[Result]:
    """Other tools beside microtome, on one slide, with the same near-free network."""
    if not session.peers:
        print("  no environment of another tool was given; see --peers")
        return
    slide = session.slide("M")
    before = _own(session, slide)
    reached = [peer for name in session.peers for peer in _features(session, name, slide)]
    after = _own(session, slide)
    for peer in reached:
        yield _row(peer.name, peer.rate.per_second, "tiles/s", details=peer.rate.found)
        yield _row(f"  peak memory, {peer.name}", peer.peak_mb, "MB")
    best = max(reached, key=lambda peer: peer.rate.per_second)
    for kind, bar in (("bilinear", 6), ("area", 7)):
        own = (before[kind].rate.per_second + after[kind].rate.per_second) / 2
        yield _row(
            f"microtome, {kind}",
            own,
            "tiles/s",
            ratio=own / best.rate.per_second,
            against=f"x {best.name}",
            bar=Bar(bar),
        )
        yield _row("  peak memory", max(before[kind].peak_mb, after[kind].peak_mb), "MB")
    yield from _coords(session, slide)


def _own(session: Session, slide: str) -> dict[str, _Peer]:
    """Run microtome, its tiles stage timed, in both ways to resample."""
    reached = {}
    for kind in ("bilinear", "area"):
        finished = run_step(
            "run",
            sample=_LOOK,
            slide=slide,
            grid={**GRID, "resample": kind},
            repeats=session.repeats,
        )
        reached[kind] = _Peer(kind, Rate.of(finished), finished.peak_mb)
    return reached


def _features(session: Session, name: str, slide: str) -> Iterator[_Peer]:
    for way, options in RUNNERS[name].items():
        runs = [
            _run(session, name, {"slide": slide, "features": True, **options})
            for _ in range(min(2, session.repeats))
        ]
        best = min(runs, key=lambda run: run.found["seconds"])
        yield _Peer(f"{name}, {way}", Rate.of(best), best.peak_mb)


def _coords(session: Session, slide: str) -> Iterator[Result]:
    """Compare whole processes that end with coordinates."""
    from bench.whole import coords_process

    walls = {}
    for name in session.peers:
        runs = [
            _run(session, name, {"slide": slide, "features": False})
            for _ in range(min(2, session.repeats))
        ]
        walls[name] = min(run.wall for run in runs)
        yield _row(f"{name}, coordinates, whole process", walls[name], "s")
    own = min(coords_process(slide, sample=_LOOK).wall for _ in range(session.repeats))
    fastest = min(walls, key=lambda name: walls[name])
    yield _row(
        "microtome, coordinates, whole process",
        own,
        "s",
        ratio=walls[fastest] / own,
        against=f"x faster than {fastest}",
        bar=Bar(8),
    )


def _run(session: Session, name: str, asked: Mapping[str, Any]) -> Finished:
    with scratch() as folder:
        words = json.dumps({**asked, "output": folder})
        command = [session.peers[name], str(FOLDER / f"run_{name}.py"), words]
        return run_process(command, sample=_LOOK, environment=_OFFLINE)


def _row(name: str, value: float, unit: str, **fields: Any) -> Result:
    return Result(group="peers", name=name, value=value, unit=unit, **fields)
