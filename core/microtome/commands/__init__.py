"""The verbs: a file each, with ``main(argv) -> int`` and a docstring whose first line sums it up.

A verb reads a registry or an output, or translates into a run; what computes is a run.
"""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path


def find_verbs() -> dict[str, str]:
    """List the verbs with their summaries, without importing any."""
    paths = sorted(Path(__file__).parent.glob("[a-z]*.py"))
    return {path.stem.replace("_", "-"): _summary(path) for path in paths}


def run_verb(name: str, argv: list[str]) -> int:
    """Answer a verb.

    Args:
        name: One of `find_verbs`.
        argv: The words behind it.

    Returns:
        The exit code.
    """
    return int(import_module(f"{__name__}.{name.replace('-', '_')}").main(argv))


def _summary(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].rstrip(".")
