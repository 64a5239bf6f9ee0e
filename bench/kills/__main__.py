"""Kills runs until enough were killed, and reports what that did to their outputs."""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

from bench.kills import cohort
from bench.kills.launch import Nursery
from bench.kills.rounds import Plan, Ring, Tally, fight
from bench.kills.slides import Arena

RINGS: Mapping[str, tuple[Callable[[Path, Nursery], Ring], Sequence[str]]] = {
    "slides": (Arena, ()),
    "labels": (cohort.Cohort, cohort.IMPORTS),
}
"""What can be killed: runs over slides, or what is done with labels; and what that imports."""


def main() -> int:
    """Fight rounds and print the report.

    Returns:
        The exit code: 1 where anything was wrong or stuck.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=1000, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="decides every round")
    parser.add_argument("--minutes", type=float, default=60.0, help="no new round after these")
    parser.add_argument("--lanes", type=int, default=2, help="rounds at a time")
    parser.add_argument("--local", type=float, default=0.25, help="share of rounds with workers")
    parser.add_argument("--of", choices=RINGS, default="slides", help="what is killed")
    parser.add_argument("--round", type=int, help="only this round, for a closer look")
    parser.add_argument("--folder", type=Path, help="where; a temporary folder by default")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="microtome-kills-") as temporary:
        folder = arguments.folder or Path(temporary) / "arena"
        began = time.monotonic()
        tally = fight_on(folder, arguments)
        print(report(tally, time.monotonic() - began))
    return 1 if tally.wrong or tally.stuck else 0


def fight_on(folder: Path, arguments: argparse.Namespace) -> Tally:
    """Fight round after round, several at a time."""
    tally, lock = Tally(), Lock()
    make, imports = RINGS[arguments.of]
    with Nursery(folder / "first", imports) as nursery:
        arena = make(folder / "arena", nursery)
    deadline = time.monotonic() + 60 * arguments.minutes
    rounds = itertools.count() if arguments.round is None else iter([arguments.round])

    def lane(number: int) -> None:
        with Nursery(folder / f"lane-{number}", imports) as nursery:
            while tally.kills.total() < arguments.kills and time.monotonic() < deadline:
                with lock:
                    current = next(rounds, None)
                if current is None:
                    return
                plan = Plan.draw(arena.repertoire, arguments.seed, current, local=arguments.local)
                fight(arena, nursery, plan, current, tally)
                if current and current % 100 == 0:
                    print(f"round {current}: {tally.kills.total()} kills", flush=True)

    with ThreadPoolExecutor(arguments.lanes) as pool:
        list(pool.map(lane, range(arguments.lanes)))
    return tally


def report(tally: Tally, seconds: float) -> str:
    """Write the report."""
    lines = [f"{'killed':<48}{'engine':<8}{'whom':<8}{'kills':>6}"]
    lines += [
        f"{point:<48}{engine:<8}{whom:<8}{count:>6}"
        for (point, engine, whom), count in sorted(tally.kills.items())
    ]
    lines.append(
        f"{tally.kills.total()} kills in {tally.runs} runs; {tally.files} files checked, "
        f"{len(tally.wrong)} wrong; {len(tally.stuck)} stuck; the longest recovery took "
        f"{tally.seconds:.1f} s; {seconds:.0f} s in all"
    )
    return "\n".join(
        [*lines, *(f"WRONG {w}" for w in tally.wrong), *(f"STUCK {s}" for s in tally.stuck)]
    )


if __name__ == "__main__":
    sys.exit(main())
