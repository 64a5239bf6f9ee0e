"""Show how the slides of an output stand: done, failed, running, and why."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from microtome.commands._arguments import VerbParser
from microtome.commands._lines import one_line
from microtome.errors import ConfigError, MissingDependencyError
from microtome.plugin.registry import get_registry
from microtome.plugin.specs import TaskSpec, WriterSpec
from microtome.run.progress import duration
from microtome.store.atomic import publish, wrap_errors, write_bytes
from microtome.store.claims import Attempt
from microtome.store.layout import OutputLayout, taken_folders
from microtome.store.status import SlideStatus
from microtome.store.survey import SlideView, find_patients, find_slides, find_tilings, look

STATES = ("done", "empty", "failed", "quarantined", "held", "running", "stale", "interrupted")
"""What a slide is: as its record says, or without one, as its claim does (running, stale) or what
its workers left (interrupted)."""

_ELASTIC = {"slide": 16, "tiling": 8, "reason": 16}
"""Columns that are cut where the terminal is narrow, and how far at most."""

_DISPENSABLE = ("finished", "reader", "time", "tiles/s")
"""Columns that are left out where it is narrower still, the first one first."""

_COLORS = {"failed": "red", "quarantined": "red", "running": "cyan", "stale": "yellow"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A slide in one tiling, as every format shows it.

    Attributes:
        tiling: Name of the tiling; empty for none.
        slide_id: The slide.
        state: One of `STATES`.
        stage: Where it failed, or where it is.
        reason: Why it failed or is empty, who has it, what it is stale for.
        tiles: How many.
        dropped: Tiles left out by their pixels, by reason.
        reasons: Tiles that are there although there is a reason against them, by reason.
        labels: Tiles of each class, where they are labelled.
        reader: Which one.
        seconds: Over all stages.
        tiles_per_second: Of the pass over the pixels.
        finished: UTC, ISO 8601.
        path: The slide's file.
        task: Of the run.
        encoders: Asked for in that run.
        slide_encoders: Likewise.
        stages: Seconds by stage.
        outputs: Paths below the output, by what they are.
        warnings: Sentences.
        host: Where the worker is or was that claims it.
        pid: Of that worker's driver.
        since: When that began, UTC, ISO 8601.
        renewed: Seconds since the claim was last renewed.
        deaths: Workers that died on it, where that is not settled.
        version: Of microtome.
    """

    tiling: str
    slide_id: str
    state: str
    stage: str = ""
    reason: str = ""
    tiles: int | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    reasons: Mapping[str, int] = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)
    reader: str = ""
    seconds: float | None = None
    tiles_per_second: float | None = None
    finished: str = ""
    path: str = ""
    task: str = ""
    encoders: tuple[str, ...] = ()
    slide_encoders: tuple[str, ...] = ()
    stages: Mapping[str, float] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    host: str = ""
    pid: int | None = None
    since: str = ""
    renewed: float | None = None
    deaths: int = 0
    version: str = ""


def main(argv: list[str]) -> int:
    """Print a row a slide: in a terminal as a table, elsewhere with tabs between."""
    args = _parser().parse_args(argv)
    states = _chosen(args.state)
    rows, damaged = read_rows(args.output, args.tiling)
    rows = [row for row in rows if not states or row.state in states]
    for sentence in damaged:
        sys.stderr.write(f"microtome: {one_line(sentence)}\n")
    if args.json:
        sys.stdout.write(f"{json.dumps([_plain(row) for row in rows], indent=2)}\n")
    elif args.parquet:
        write_parquet(args.parquet, rows)
    elif args.csv:
        write_csv(args.csv, rows)
    else:
        (_print_table if sys.stdout.isatty() else _print_lines)(rows)
    if not args.json:
        sys.stderr.write(f"{_counts(rows)}\n{_patients(args.output, args.tiling)}")
        sys.stderr.writelines(_of_tasks(args.output, args.tiling))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = VerbParser("microtome status", description=__doc__)
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="what output=… named")
    parser.add_argument("--tiling", metavar="NAME", help="one tiling; . for the unnamed one")
    parser.add_argument("--state", metavar="STATE,…", help=f"some of {', '.join(STATES)}")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a list, everything that is known")
    form.add_argument("--parquet", metavar="FILE", type=Path, help="the same as a table")
    form.add_argument("--csv", metavar="FILE", type=Path, help="the same as a table")
    return parser


def read_rows(output: Path, tiling: str | None = None) -> tuple[list[Row], list[str]]:
    """Look at every slide of an output.

    Args:
        output: The output folder.
        tiling: One tiling alone; ``"."`` for that without a name.

    Returns:
        A row a slide and tiling, and a sentence for each record that is damaged.

    Raises:
        InputError: If the folder is no output.
        ConfigError: If it has no such tiling.
    """
    chosen = _layouts(output, tiling)
    views = [look(layout, slide_id) for layout in chosen for slide_id in find_slides(layout)]
    rows = [make_row(view) for view in views if view.status or view.holder or view.earlier]
    return rows, [view.damage for view in views if view.damage]


def _layouts(output: Path, tiling: str | None) -> list[OutputLayout]:
    layouts = {
        layout.root.relative_to(output).as_posix(): layout
        for layout in find_tilings(output, taken_folders(get_registry()))
    }
    if tiling is not None and tiling not in layouts:
        raise ConfigError(
            f"{output} has no tiling {tiling!r}. There: {', '.join(map(repr, layouts))}."
        )
    return [*layouts.values()] if tiling is None else [layouts[tiling]]


def _writers() -> list[WriterSpec]:
    specs = (entry.spec for entry in get_registry().entries("writer"))
    return [spec for spec in specs if isinstance(spec, WriterSpec)]


def _patients(output: Path, tiling: str | None) -> str:
    """Count the patients that have an embedding; nothing where none has."""
    writers, count = _writers(), 0
    for layout in _layouts(output, tiling):
        top = layout.patients_folder
        found = find_patients(layout, writers).items()
        count += len({str(path.relative_to(top)).removesuffix(s.suffix) for path, s in found})
    return f"{count} patient{'s' if count != 1 else ''} embedded\n" if count else ""


def _of_tasks(output: Path, tiling: str | None) -> Iterator[str]:
    """Name what tasks keep in the folders that they make below a tiling."""
    specs = [entry.spec for entry in get_registry().entries("task")]
    names = [name for spec in specs if isinstance(spec, TaskSpec) for name in spec.folders]
    for folder in (layout.root / name for layout in _layouts(output, tiling) for name in names):
        found = sorted({p.stem if p.is_file() else p.name for p in folder.glob("[!.]*")})
        if found:
            yield f"{folder.relative_to(output)}: {one_line(', '.join(found))}\n"


def make_row(view: SlideView) -> Row:
    """Put what is known of a slide into a row."""
    known = {} if view.status is None else _of_record(view.status)
    if view.holder is None:
        return Row(**(_interrupted(view) | known), tiling=view.tiling, slide_id=view.slide_id)
    attempt, age = view.holder.attempt, view.holder.age
    claim: dict[str, Any] = {"renewed": round(age, 1)}
    if attempt is not None:
        claim |= {"host": attempt.host, "pid": attempt.pid, "since": attempt.started}
    who = "a worker" if attempt is None else f"process {attempt.pid} of {attempt.host}"
    since = "" if attempt is None else f" since {attempt.started}"
    if view.is_running:
        claim |= {"state": "running", "reason": f"{who}{since}, heard of {duration(age)} ago"}
        claim |= _reached(attempt)
    else:
        told = f"claimed by {who}{since}, which is gone: the next run takes it over"
        before = known.get("reason")
        claim["reason"] = f"{before}; {told}" if before else told
        claim |= {} if known else {"state": "stale", **_reached(attempt)}
    return Row(**(known | claim), tiling=view.tiling, slide_id=view.slide_id)


def _reached(attempt: Attempt | None) -> dict[str, Any]:
    if attempt is None:
        return {"stage": "", "reader": ""}
    return {"stage": attempt.stage, "reader": attempt.reader}


def _interrupted(view: SlideView) -> dict[str, Any]:
    """Describe a slide that nobody has, and on which workers died."""
    if not view.earlier:
        return {}
    last = view.earlier[-1]
    told = "; ".join(dict.fromkeys(map(str, view.earlier)))
    return {
        "state": "interrupted",
        "reason": f"{told}: the next run tries it again",
        "deaths": len(view.earlier),
        "host": last.host,
        "pid": last.pid,
        "since": last.started,
        **_reached(last),
    }


def _of_record(status: SlideStatus) -> dict[str, Any]:
    encoding = status.seconds.get("tiles", 0.0)
    rate = status.tiles / encoding if status.tiles and encoding > 0 else None
    seconds = round(sum(status.seconds.values()), 3) if status.seconds else None
    return {
        "state": "done" if status.state == "reused" else status.state,
        "stage": status.stage,
        "reason": status.message or "; ".join(status.warnings),
        "tiles": status.tiles,
        "dropped": dict(status.dropped),
        "reasons": dict(status.reasons),
        "labels": dict(status.labels),
        "reader": status.reader,
        "seconds": seconds,
        "tiles_per_second": None if rate is None else round(rate, 1),
        "finished": status.finished,
        "path": status.path,
        "task": status.task,
        "encoders": status.encoders,
        "slide_encoders": status.slide_encoders,
        "stages": dict(status.seconds),
        "outputs": dict(status.outputs),
        "warnings": status.warnings,
        "version": status.version,
    }


def _chosen(states: str | None) -> set[str]:
    chosen = {state.strip() for state in (states or "").split(",")} - {""}
    unknown = sorted(chosen - {*STATES, "reused"})
    if unknown:
        raise ConfigError(f"There is no state {unknown[0]!r}. Available: {', '.join(STATES)}.")
    return {"done" if state == "reused" else state for state in chosen}


def _counts(rows: Sequence[Row]) -> str:
    counts = Counter(row.state for row in rows)
    told = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    tilings = len({row.tiling for row in rows})
    slides = len({row.slide_id for row in rows})
    where = f" in {tilings} tilings, {len(rows)} rows" if tilings > 1 else ""
    return f"{slides} {'slide' if slides == 1 else 'slides'}{where}: {told or 'none'}"


def _cells(row: Row) -> dict[str, str]:
    """Give the columns that a person reads."""
    rate, seconds = row.tiles_per_second, row.seconds
    return {
        "state": row.state,
        "slide": one_line(row.slide_id),
        "tiling": one_line(row.tiling),
        "stage": one_line(row.stage),
        "tiles": "" if row.tiles is None else str(row.tiles),
        "reader": one_line(row.reader),
        "time": "" if seconds is None else duration(seconds),
        "tiles/s": "" if rate is None else f"{rate:.0f}",
        "finished": row.finished,
        "reason": one_line(row.reason),
    }


def _print_lines(rows: Sequence[Row]) -> None:
    """Print everything, for grep and cut."""
    sys.stdout.write("\t".join(_cells(Row(tiling="", slide_id="", state=""))) + "\n")
    for row in rows:
        sys.stdout.write("\t".join(_cells(row).values()) + "\n")


def _print_table(rows: Sequence[Row]) -> None:
    """Print a table as wide as the terminal; columns without anything are left out."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout)
    cells = [_cells(row) | {"finished": row.finished[:16].replace("T", " ")} for row in rows]
    table = Table(box=None, pad_edge=False)
    widths = _widths(cells, console.width)
    for name, least in widths.items():
        right = name in ("tiles", "time", "tiles/s")
        table.add_column(name, no_wrap=True, justify="right" if right else "left", min_width=least)
    for row in cells:
        style = _COLORS.get(row["state"], "")
        table.add_row(*(Text(row[name], style if name == "state" else "") for name in widths))
    console.print(table)


def _widths(cells: Sequence[Mapping[str, str]], width: int) -> dict[str, int]:
    """Choose columns that have anything in them and fit, each with its least width."""
    longest = {n: max(len(row[n]) for row in cells) for n in cells[0]} if cells else {}
    widths = {
        name: min(_ELASTIC.get(name, width), max(least, len(name)))
        for name, least in longest.items()
        if least
    }
    for name in _DISPENSABLE:
        if sum(widths.values()) + 2 * len(widths) > width:
            widths.pop(name, None)
    return widths


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write all columns as CSV; what is several values as JSON.

    Raises:
        StoreError: If it cannot be written.
    """
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(f.name for f in fields(Row))
    for row in rows:
        plain = _plain(row).values()
        table.writerow(json.dumps(v) if isinstance(v, dict | list) else v for v in plain)
    write_bytes(path, text.getvalue().encode("utf-8", "surrogateescape"))


def write_parquet(path: Path, rows: Sequence[Row]) -> None:
    """Write all columns as Parquet.

    Raises:
        MissingDependencyError: If pyarrow is not installed.
        StoreError: If it cannot be written.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingDependencyError(
            "--parquet needs pyarrow, which is not installed. Install with: pip install pyarrow"
        ) from error
    text, number, texts = pa.string(), pa.float64(), pa.list_(pa.string())
    special = {
        "tiles": pa.int64(), "pid": pa.int64(), "deaths": pa.int64(), "encoders": texts,
        "slide_encoders": texts, "warnings": texts,
        "seconds": number, "tiles_per_second": number, "renewed": number,
        "stages": pa.map_(text, number), "outputs": pa.map_(text, text),
        "dropped": pa.map_(text, pa.int64()), "reasons": pa.map_(text, pa.int64()),
        "labels": pa.map_(text, pa.int64()),
    }  # fmt: skip
    schema = pa.schema([(f.name, special.get(f.name, text)) for f in fields(Row)])
    plain = [_utf8(_plain(row)) for row in rows]
    table = pa.Table.from_pylist(
        [
            {k: list(v.items()) if isinstance(v, dict) else v for k, v in row.items()}
            for row in plain
        ],
        schema,
    )
    with publish(path) as private, wrap_errors(path):
        pq.write_table(table, private)


def _plain(row: Row) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(row).items()}


def _utf8(value: Any) -> Any:
    """Replace what a file name holds that UTF-8 does not."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    if isinstance(value, dict):
        return {_utf8(key): _utf8(item) for key, item in value.items()}
    return [_utf8(item) for item in value] if isinstance(value, list) else value
