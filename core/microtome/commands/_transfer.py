"""What ``microtome export`` and ``microtome import`` share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import Any, cast

from microtome.commands._lines import one_line
from microtome.config.schema import typed
from microtome.errors import ConfigError
from microtome.plugin.registry import Registry
from microtome.plugin.specs import LayoutSpec
from microtome.run.exchange.exporting import Chosen, Outcome
from microtome.run.runner import EXIT_FAILED_SLIDES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the words that both verbs know."""
    parser.add_argument(
        "--features", metavar="NAMES", help="only these, with commas; 'none' for coordinates alone"
    )
    parser.add_argument("--tiling", metavar="NAME", help="the one of the output, as tiler.name")
    parser.add_argument("--force", action="store_true", help="replace what is there")
    parser.add_argument(
        "option",
        nargs="*",
        metavar="KEY=VALUE",
        help="options of the layout, as in docs/options.md",
    )


def choose(registry: Registry, name: str, words: Iterable[str]) -> Chosen:
    """Make the layout that was named, with its options.

    Raises:
        ConfigError: If a word is no option of it.
        UnknownPluginError: If there is no such layout.
        MissingDependencyError: If a library that it needs is not installed.
    """
    spec = cast("LayoutSpec", registry.find("layout", name).spec)
    config = typed(spec.config, dict(map(_option, words)), f"layout {spec.name}")
    return Chosen(layout=registry.create("layout", spec.name, config), spec=spec, config=config)


def chosen_features(text: str | None) -> list[str] | None:
    """Read ``--features``."""
    if text is None:
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ConfigError("--features names no feature set; none for coordinates alone.")
    return [] if names == ["none"] else names


def tell(outcomes: Iterable[Outcome]) -> int:
    """Print a line for each slide as it ends.

    Returns:
        The exit code: 3 if one failed.
    """
    failed = count = 0
    warned: set[str] = set()
    for outcome in outcomes:
        count += 1
        failed += outcome.state == "failed"
        _say(f"{outcome.slide_id}\t{outcome.state}\t{outcome.text}")
        for warning in outcome.warnings:
            if warning not in warned:  # what is true of all slides is told once
                sys.stderr.write(f"microtome: {one_line(warning)}.\n")
        warned.update(outcome.warnings)
    _say(f"{count} slide{'s' * (count != 1)}, {failed} failed.")
    return EXIT_FAILED_SLIDES if failed else 0


def _option(word: str) -> tuple[str, Any]:
    from omegaconf import OmegaConf

    key, equals, _ = word.partition("=")
    if not equals:
        raise ConfigError(f"{word!r} is no option of the layout: write KEY=VALUE.")
    return key, OmegaConf.from_dotlist([word])[key]


def _say(line: str) -> None:
    sys.stdout.write("\t".join(map(one_line, line.split("\t"))) + "\n")
    sys.stdout.flush()
