"""Run the benchmarks and print a table of figures, ratios and what is expected of them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench.groups import GROUPS, about
from bench.peers.compare import RUNNERS
from bench.pixels import installed
from bench.process import StepError
from bench.results import Result, append_record
from bench.session import Session
from bench.slides import FULL, QUICK, Slides


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table row by row, and add to a history if asked to.

    Returns:
        0 if everything could be measured, whether it is good enough or not; else 1.
    """
    asked = _parser().parse_args(arguments)
    recipes = QUICK if asked.quick else FULL
    slides = Slides(given=_named_paths(asked.slide), cache=asked.cache, recipes=recipes)
    peers = {name: str(Path(path).absolute()) for name, path in _pairs(asked.peers)}
    session = Session(
        slides=slides,
        repeats=1 if asked.quick else asked.repeats,
        readers=() if asked.quick else installed(),
        peers=peers,
    )
    results: list[Result] = []
    failed = []
    for group in asked.only or GROUPS:
        print(f"\n{group}: {about(group)}", flush=True)
        try:
            results += _shown(GROUPS[group](session))
        except StepError as error:
            failed.append(group)
            print(f"{group} could not be measured: {error}", file=sys.stderr, flush=True)
    print(f"\n{_summary(results)}")
    if asked.quick:
        print("Of slides this small and times taken once, no figure means anything.")
    if asked.json:
        append_record(asked.json, results, slides.used)
    return 1 if failed else 0


def _shown(results: Iterator[Result]) -> Iterator[Result]:
    for result in results:
        print(result, flush=True)
        yield result


def _summary(results: Sequence[Result]) -> str:
    barred = [result for result in results if result.bar is not None]
    missed = [f"{result.group}: {result.name.strip()}" for result in barred if result.missed]
    told = f"{len(barred) - len(missed)} of {len(barred)} bars met."
    return told + "".join(f"\n  missed  {name}" for name in missed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    add = parser.add_argument
    add("--only", type=_groups, metavar="NAME,…", help=f"some of {', '.join(GROUPS)}")
    add(
        "--quick",
        action="store_true",
        help="tiny slides, once, auto reader: only see that it works",
    )
    add("--repeats", type=int, default=5, help="how often a time is taken; the shortest counts")
    add("--json", type=Path, metavar="FILE", help="append the figures to a history, a line a call")
    add(
        "--slide",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help=f"a ready slide instead of a made one: {', '.join(FULL)}",
    )
    add("--cache", type=Path, default=_cache(), help="where made slides are kept (%(default)s)")
    add(
        "--peers",
        action="extend",
        type=lambda words: words.split(","),
        default=[],
        metavar="NAME=PYTHON,…",
        help=f"interpreters of environments with other tools: {', '.join(RUNNERS)}",
    )
    return parser


def _groups(words: str) -> list[str]:
    names = words.split(",")
    for name in names:
        if name not in GROUPS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(GROUPS)}")
    return names


def _named_paths(words: Sequence[str]) -> Mapping[str, Path]:
    paths = {name: Path(path) for name, path in _pairs(words)}
    for name, path in paths.items():
        if name not in FULL or not path.is_file():
            sys.exit(f"--slide {name}={path}: the names are {', '.join(FULL)}, the path a file's.")
    return paths


def _pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    for word in words:
        if "=" not in word:
            sys.exit(f"{word!r} should be NAME=PATH.")
    return [(name, value) for name, _, value in (word.partition("=") for word in words)]


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "microtome-bench"


if __name__ == "__main__":
    sys.exit(main())
