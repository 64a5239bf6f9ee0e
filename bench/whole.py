"""Whole processes and runs: start-up, coordinates, several encoders, a real network, memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from bench.encoders import TINY, WIDE
from bench.process import run_process, run_step
from bench.results import Bar, Result
from bench.session import GRID, Measure, Rate, Session, against, scratch
from microtome.plugin.registry import get_registry
from microtome.plugin.specs import EncoderSpec, PluginSpec

ONE: Mapping[str, Mapping[str, Any]] = {"a": {"plugin": TINY}}
THREE: Mapping[str, Mapping[str, Any]] = {key: {"plugin": TINY} for key in "abc"}

_LOOK = 0.02
"""Seconds between looks at a short process's memory."""

_BATCH = 32


def start(session: Session) -> Iterator[Result]:
    """What a user waits for before anything is computed."""
    bare = _wall(session, "-c", "pass")
    yield Result(group="start", name="python -c pass", value=bare, unit="s")
    cases = {
        "microtome --help": ("-m", "microtome", "--help"),
        "microtome plugins": ("-m", "microtome", "plugins"),
        "import the Python API": ("-c", "import microtome; microtome.open_slide"),
    }
    for name, words in cases.items():
        seconds = _wall(session, *words)
        yield Result(
            group="start",
            name=name,
            value=seconds,
            unit="s",
            ratio=seconds / bare,
            against="x python -c pass",
        )


def _wall(session: Session, *words: str) -> float:
    return min(run_process([sys.executable, *words]).wall for _ in range(session.repeats))


def coords(session: Session) -> Iterator[Result]:
    """``task=coords`` as users call it, from the start of the process to its end."""
    slide = session.slide("M")
    wall = min(coords_process(slide).wall for _ in range(session.repeats))
    yield Result(
        group="coords", name="task=coords, whole process", value=wall, unit="s", bar=Bar(1.5, True)
    )
    looked = coords_process(slide, sample=_LOOK)
    yield Result(
        group="coords",
        name="  peak memory",
        value=looked.peak_mb,
        unit="MB",
        bar=Bar(250, True),
        details={"memory": looked.memory},
    )


def coords_process(slide: str, sample: float = 0.0) -> Any:
    """Run ``task=coords`` on a slide into a folder of its own."""
    with scratch() as folder:
        words = ("task=coords", *(f"tiler.{key}={value}" for key, value in GRID.items()))
        command = [sys.executable, "-m", "microtome", slide, f"output={folder}", *words]
        return run_process(command, sample=sample)


def encoders(session: Session) -> Iterator[Result]:
    """Three encoders over one reading, against one; the tiles stage of both."""
    slide = session.slide("M")
    one, three, again = (
        session.take(Measure(name="", step="run", arguments=_arguments(slide, encoders)))
        for encoders in (ONE, THREE, ONE)
    )
    seconds = (one.seconds + again.seconds) / 2
    yield Result(group="encoders", name="1 near-free encoder", value=seconds, unit="s")
    yield Result(
        group="encoders",
        name="3 near-free encoders",
        value=three.seconds,
        unit="s",
        ratio=three.seconds / seconds,
        against="x 1 near-free encoder",
        bar=Bar(1.10, True),
        details=three.found,
    )


def resnet50(session: Session) -> Iterator[Result]:
    """ResNet-50 with random weights in fp32 on the CPU, fed from a slide and from memory.

    Tiles overlap by half, so that a small slide has enough of them.
    """
    model = {"resnet50": {"weights": "random", "device": "cpu", "batch_size": _BATCH}}
    slide = session.slide("S")
    spec = get_registry().find("encoder", "resnet50").spec
    size = {"batch": _BATCH, "size": _input_size(spec), "batches": 4}
    base = Measure(
        name="ResNet-50 alone, random tensors", step="resnet50", arguments={**size, "held": True}
    )
    usual = Measure(
        name="  with torch's usual memory", step="resnet50", arguments={**size, "held": False}
    )
    run = Measure(
        name="  run, ResNet-50 on S, {reader}",
        step="run",
        arguments=_arguments(slide, model, {**GRID, "step": GRID["size"] // 2}),
        bar=Bar(0.95),
    )
    yield from against(session, "resnet50", base, [usual, run])


def _input_size(spec: PluginSpec) -> int | None:
    return spec.card.input_size if isinstance(spec, EncoderSpec) and spec.card else None


def memory(session: Session) -> Iterator[Result]:
    """The peak of a run's processes, less what torch takes by itself."""
    base = run_step("baseline", sample=_LOOK).peak_mb
    yield Result(group="memory", name="torch and the model alone", value=base, unit="MB")
    for name in ("S", "M"):
        for encoders in (ONE, THREE):
            arguments = _arguments(session.slide(name), encoders)
            looked = run_step("run", sample=_LOOK, repeats=1, warm=False, **arguments)
            yield Result(
                group="memory",
                name=f"  run on {name}, near-free encoders: {len(encoders)}, above that",
                value=looked.peak_mb - base,
                unit="MB",
                bar=Bar(250, True),
                details={"memory": looked.memory, "tiles": looked.found["tiles"]},
            )


def write(session: Session) -> Iterator[Result]:
    """The share of a slide's wall clock that goes into writing 1,024 columns a tile."""
    slide = session.slide("M")
    for writer in ("hdf5", "zarr"):
        arguments = _arguments(slide, {"wide": {"plugin": WIDE}}) | {"writer": writer}
        rate: Rate = session.take(Measure(name="", step="run", arguments=arguments))
        yield Result(
            group="write",
            name=f"writing {writer}, 1,024 columns, of the wall",
            value=100 * rate.found["written"],
            unit="%",
            bar=Bar(3, True),
            details=rate.found,
        )


def _arguments(
    slide: str, encoders: Mapping[str, Mapping[str, Any]], grid: Mapping[str, Any] = GRID
) -> dict[str, Any]:
    return {"slide": slide, "grid": grid, "encoder": encoders}
