"""Verbs that say what a run is of and leave the rest of the line to it."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

from microtome.commands._arguments import VerbParser
from microtome.errors import ConfigError
from microtome.plugin.aliases import listed
from microtome.plugin.registry import get_registry


def run_with(verb: str, kind: str, about: str | None, argv: Sequence[str]) -> int:
    """Print the run that a verb stands for, and do it.

    Args:
        verb: The verb.
        kind: The kind of plugin that the line must choose.
        about: What ``--help`` says.
        argv: The words behind the verb.

    Returns:
        The run's exit code.

    Raises:
        ConfigError: If no plugin of the kind is chosen.
    """
    parser = VerbParser(
        f"microtome {verb}",
        usage=f"microtome {verb} SLIDE … output=FOLDER {kind}=NAME [KEY=VALUE …]",
        description=about,
        epilog=f"{kind}: {' '.join(get_registry().names(kind))}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("words", nargs="*", metavar="WORD", help="slides and KEY=VALUE of a run")
    parser.add_argument("-m", "--multirun", action="store_true", help="a sweep")
    parser.add_argument("-c", "--cfg", metavar="job", help="show the configuration alone")
    own = [*(argv[: argv.index("--")] if "--" in argv else argv)]
    parser.parse_intermixed_args(own or ["--help"])
    if not any(word.lstrip("+").startswith((f"{kind}=", f"{kind}@", "preset=")) for word in own):
        known = listed(get_registry().names(kind))
        raise ConfigError(f"{verb} needs to know by which: {kind}=NAME. Available: {known}.")
    sys.stdout.write(f"microtome {shlex.join(argv)}\n")
    sys.stdout.flush()
    # Not at the top: the command itself imports its verbs.
    from microtome.__main__ import main as microtome

    return microtome(argv)
