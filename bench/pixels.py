"""The pixel path: readers, their parts and the whole, as shares of decoding alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bench.results import Bar, Result
from bench.session import GRID, Measure, Session, against
from microtome.plugin.registry import get_registry
from microtome.plugin.specs import ReaderSpec

UNALIGNED = (100, 60)
"""A corner that lies inside of a JPEG tile of any usual side, in both directions."""


def readers(session: Session) -> Iterator[Result]:
    """Each reader alone: nothing is resampled, nobody looks at the tiles."""
    slide = session.slide("M")
    cases: Mapping[str, Mapping[str, Any]] = {
        "256 px at 40x": {"size": 256, "magnification": 40},
        "256 px at 40x, unaligned": {"size": 256, "magnification": 40, "origin": UNALIGNED},
        "512 px at 40x": {"size": 512, "magnification": 40},
    }
    for case, grid in cases.items():
        measures = [
            Measure(
                name="  {reader} reads " + case,
                step="read",
                arguments={"slide": slide, "reader": reader, "grid": grid},
            )
            for reader in session.readers or ["auto"]
        ]
        yield from against(
            session, "readers", _floor(f"decoding alone, {case}", slide, grid), measures
        )


def path(session: Session) -> Iterator[Result]:
    """Tiles of 256 px at 20x out of a slide without a 20x level: 512 px are read for each."""
    slide = session.slide("M")
    area = {**GRID, "resample": "area"}
    alone = {"slide": slide, "reader": "auto", "grid": GRID, "resampled": True}
    others = [
        measure
        for reader in session.readers
        for measure in (
            _run(f"  run, {reader}", slide, GRID, reader=reader),
            _run(f"  run, {reader}, area", slide, area, reader=reader),
        )
    ]
    measures = [
        Measure(
            name="  read and resample alone, {reader}", step="read", arguments=alone, bar=Bar(0.65)
        ),
        _run("  run, auto ({reader})", slide, GRID, Bar(0.55)),
        _run("  run, auto ({reader}), area", slide, area, Bar(0.70)),
        *others,
    ]
    yield from against(session, "path", _floor("decoding alone, M at 20x", slide), measures)


def native(session: Session) -> Iterator[Result]:
    """A slide with a 20x level: nothing is resampled."""
    yield from _runs(session, "native", "M2", GRID, Bar(0.80))


def unaligned(session: Session) -> Iterator[Result]:
    """Tiles that begin inside of the file's JPEG tiles."""
    yield from _runs(session, "unaligned", "M", {**GRID, "origin": UNALIGNED}, Bar(0.60))


def odd(session: Session) -> Iterator[Result]:
    """A slide whose JPEG tiles have sides of 240 px, which no tile of 256 px fits."""
    yield from _runs(session, "odd", "M240", GRID, Bar(0.75))


def openslide(session: Session) -> Iterator[Result]:
    """The run through OpenSlide, against a loop of one's own around OpenSlide."""
    slide = session.slide("M")
    base = Measure(
        name="OpenSlide's own, read and resample",
        step="openslide",
        arguments={"slide": slide, "grid": GRID},
    )
    run = _run("  run, {reader}", slide, GRID, Bar(0.90), reader="openslide")
    yield from against(session, "openslide", base, [run])


def installed() -> list[str]:
    """Name the readers of SVS files that can be used here."""
    return [
        entry.spec.name
        for entry in get_registry().entries("reader")
        if isinstance(entry.spec, ReaderSpec)
        and ".svs" in entry.spec.extensions
        and not entry.missing
    ]


def _runs(
    session: Session, group: str, name: str, grid: Mapping[str, Any], bar: Bar
) -> Iterator[Result]:
    slide = session.slide(name)
    measures = [
        _run("  run, auto ({reader})", slide, grid, bar),
        *(_run(f"  run, {reader}", slide, grid, reader=reader) for reader in session.readers),
    ]
    corner = ", unaligned" if "origin" in grid else ""
    base = _floor(f"decoding alone, {name} at 20x{corner}", slide, grid)
    yield from against(session, group, base, measures)


def _floor(name: str, slide: str, grid: Mapping[str, Any] = GRID) -> Measure:
    return Measure(name=name, step="decode", arguments={"slide": slide, "grid": grid})


def _run(
    name: str, slide: str, grid: Mapping[str, Any], bar: Bar | None = None, reader: str = "auto"
) -> Measure:
    arguments = {"slide": slide, "grid": grid, "reader": reader}
    return Measure(name=name, step="run", arguments=arguments, bar=bar)
