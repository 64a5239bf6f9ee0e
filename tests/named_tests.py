"""Pages that name tests: the tests are there, and judge something."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parent


def read_rows(page: Path, letter: str) -> dict[str, str]:
    """Give the rows of a page's table by their numbers: ``P1``, ``Q12``."""
    text = page.read_text("utf-8")
    return dict(re.findall(rf"^\| ({letter}\d+) \|(.*)\|$", text, re.MULTILINE))


def assert_tests_are_there(row: str, folder: Path = TESTS) -> None:
    """See that every test that a row names is there and judges; there is one at least."""
    named = re.findall(r"`([\w/]*test_\w+\.py)::(\w+)`", row)
    assert named, row
    for file, name in named:
        functions = _functions(folder / file)
        assert name in functions, f"{file}::{name}"
        assert _judges(functions[name]), f"{file}::{name} judges nothing"


@cache
def _functions(path: Path) -> dict[str, ast.FunctionDef]:
    tree = ast.parse(path.read_text("utf-8"))
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def _judges(test: ast.FunctionDef) -> bool:
    """Tell whether a test compares something, by ``assert`` or by what it expects to be raised."""
    named = {node.attr for node in ast.walk(test) if isinstance(node, ast.Attribute)}
    judging = {"raises", "warns", "assert_array_equal", "assert_allclose"}
    return bool(named & judging) or any(isinstance(n, ast.Assert) for n in ast.walk(test))
