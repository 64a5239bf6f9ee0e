"""Check the files of an output: values, checksums, identities, records, leftovers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from microtome.commands._arguments import VerbParser
from microtome.commands._lines import one_line
from microtome.plugin.registry import get_registry
from microtome.store.verify import Verification, verify_output


def main(argv: list[str]) -> int:
    """Print what is wrong and what to do, a line each; 1 if anything is."""
    about = f"{__doc__} Nothing is changed. Ends with 1 if anything is wrong."
    parser = VerbParser("microtome verify", description=about)
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="what output=… named")
    depth = parser.add_mutually_exclusive_group()
    depth.add_argument("--deep", action="store_true", help="read everything, the default")
    depth.add_argument("--quick", action="store_true", help="read no features and no tile images")
    parser.add_argument("--json", action="store_true", help="for programs")
    args = parser.parse_args(argv)
    with _progress() as tell:
        found = verify_output(args.output, get_registry(), deep=not args.quick, tell=tell)
    if args.json:
        sys.stdout.write(f"{json.dumps(asdict(found), indent=2)}\n")
    else:
        _print(found)
    return int(bool(found.faults))


def _print(found: Verification) -> None:
    for line in [fault.message for fault in found.faults] + found.notes:
        sys.stdout.write(f"{one_line(line)}\n")
    files = f"{found.files} file{'s' * (found.files != 1)}"
    faults = f"{len(found.faults)} fault{'s' * (len(found.faults) != 1)}"
    slides = f"{found.slides} slide{'s' * (found.slides != 1)}"
    sys.stdout.write(f"{files} of {slides} checked, {faults}.\n")


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Give what tells how far it is: a bar in a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done, slides: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("slides", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None)
        yield lambda done, slides: bars.update(task, completed=done, total=slides)
