"""The command ``microtome``."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from microtome import commands
from microtome.config import app
from microtome.errors import MicrotomeError


def main(argv: Sequence[str] | None = None) -> int:
    """Answer a command line: a verb, or a run.

    Args:
        argv: The words without the program's name; those of the process if None.

    Returns:
        The exit code, as `microtome.config.app.main` says.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        _never_fail_to_print()
    verbs = commands.find_verbs()
    try:
        if words and words[0] in verbs:
            return commands.run_verb(words[0], words[1:])
        return app.main(words, verbs)
    except MicrotomeError as error:
        return app.report(error)
    except KeyboardInterrupt as interrupt:
        sys.stderr.write("microtome: interrupted; the next run goes on from here.\n")
        return int(getattr(interrupt, "exit_code", app.EXIT_INTERRUPTED))
    except BrokenPipeError:
        # The reader of a pipe left; what is still buffered must not raise at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as stop:  # argparse and Hydra end this way
        if isinstance(stop.code, int):
            return stop.code
        return app.EXIT_BAD_COMMAND_LINE if stop.code else 0


def _never_fail_to_print() -> None:
    """Print a question mark for what a terminal's encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


if __name__ == "__main__":
    sys.exit(main())
