"""Show what a run would do, without doing it.

`microtome plan slides/ output=out slide_encoder=[titan,prism]` takes the words of a run. It goes by
what plugins say of themselves, so it needs none of the encoders' packages, weights or access; no
slide is opened, nothing is loaded and nothing is written. What the run would be refused for is told
as the run tells it, but for what only loading the models can show.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from microtome.commands._arguments import VerbParser
from microtome.commands._cards import at_a_glance
from microtome.commands._lines import columns, one_line
from microtome.commands._names import LEVELS
from microtome.plugin.files import add_files
from microtome.plugin.registry import Registry, get_registry
from microtome.run.inputs.finding import find_slides
from microtome.run.preview import Preview, PreviewedModel, preview
from microtome.run.settings import RunConfig
from microtome.run.tasks import check_task


def main(argv: list[str]) -> int:
    """Print what a run would do.

    Returns:
        0, whatever is to be installed first.
    """
    own = argv[: argv.index("--")] if "--" in argv else argv
    _parser().parse_intermixed_args(own or ["--help"])
    from microtome.config.app import compose

    config, registry = compose(argv), get_registry()
    if config.own_task is not None:
        sys.stdout.write(f"{describe_task(config, registry)}\n")
    else:
        sys.stdout.write(f"{describe(preview(config, registry))}\n")
    return 0


def describe_task(config: RunConfig, registry: Registry) -> str:
    """Write what is known of a task before it is done: it goes by what the output holds.

    Raises:
        MicrotomeError: What the task would be refused for, but for missing packages.
    """
    registry = add_files(registry, config.encoder_plugin)
    entry = registry.find("task", config.task)
    told = f"task={config.task}: {entry.spec.summary}. "
    if config.slides:
        slides = find_slides(config, registry)
        count = len(slides.slides)
        told += f"{count} slide{'s' * (count != 1)} named. "
    told += f"What it does goes by what {config.output} holds, and shows as it is done."
    if entry.missing:
        step = entry.spec.install or f"pip install {' '.join(entry.missing)}"
        return f"{told}\n\nFirst:\n  {step}"
    check_task(config, registry)
    return told


def describe(shown: Preview) -> str:
    """Write what a run would do, as text."""
    return "\n\n".join("\n".join(part) for part in _parts(shown))


def _parser() -> argparse.ArgumentParser:
    parser = VerbParser(
        "microtome plan",
        usage="microtome plan SLIDE … [output=FOLDER] [KEY=VALUE …]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("words", nargs="*", metavar="WORD", help="slides and KEY=VALUE of a run")
    parser.add_argument("-cd", "--config-dir", metavar="FOLDER", help="of your own presets")
    parser.add_argument("-m", "--multirun", action="store_true", help=argparse.SUPPRESS)
    return parser


def _parts(shown: Preview) -> Iterator[list[str]]:
    slides = len(shown.slides.slides)
    told = f"{slides} slide{'s' * (slides != 1)}"
    if shown.patients:
        told += f" of {shown.patients} patient{'s' * (shown.patients != 1)}"
    count = len(shown.passes)
    yield [
        f"{told}, {count} pass{'es' * (count != 1)} over {'them' if slides != 1 else 'it'}.",
        *(one_line(f"refused: {r.slide.slide_id}: {r.reason}") for r in shown.slides.refused),
        *(one_line(note) for note in shown.notes),
    ]
    for number, each in enumerate(shown.passes, 1):
        rows = [_row(kind, model) for kind, found in each.models.items() for model in found]
        title = f"pass {number}: {each.tiles}" if count > 1 else each.tiles
        yield [
            columns(title, rows) if rows else title,
            *(f"  → {place}" for place in each.places),
        ]
    models = [found for each in shown.passes for found in each.models.values()]
    if steps := dict.fromkeys(step for found in models for step in _steps(found)):
        yield ["First:", *(f"  {step}" for step in steps)]


def _row(kind: str, model: PreviewedModel) -> tuple[str, ...]:
    reads = f"of {', '.join(model.reads)}" if model.reads else ""
    return (kind.replace("_", " "), model.name, reads, *at_a_glance(model.entry, model.card))


def _steps(models: tuple[PreviewedModel, ...]) -> Iterator[str]:
    """Say what is to be done before the run can start."""
    for model in models:
        spec, missing = model.entry.spec, model.entry.missing
        if missing:
            yield spec.install or f"pip install {' '.join(missing)}"
        if model.card is not None and model.card.gated:
            level = next(level for level, kind in LEVELS.items() if kind == spec.kind)
            yield (
                f"microtome encoders show {spec.name} --level {level}  (access must be asked for)"
            )
