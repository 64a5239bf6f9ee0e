"""The page of parity names tests that there are, and every row."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "python-parity.md").read_text("utf-8")
ROWS = dict(re.findall(r"^\| (P\d+) \|(.*)\|$", PAGE, re.MULTILINE))


def test_every_row_is_there():
    assert list(ROWS) == [f"P{number}" for number in range(1, 19)]


@pytest.mark.parametrize("row", ROWS)
def test_a_row_names_tests_that_there_are(row):
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", ROWS[row])
    assert named
    for file, name in named:
        tree = ast.parse((Path(__file__).parent / file).read_text("utf-8"))
        functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert name in functions, f"{file}::{name}"
        assert _judges(functions[name]), f"{file}::{name} judges nothing"


def _judges(test):
    """Tell whether a test compares something, by ``assert`` or by what it expects to be raised."""
    named = {node.attr for node in ast.walk(test) if isinstance(node, ast.Attribute)}
    judging = {"raises", "warns", "assert_array_equal", "assert_allclose"}
    return bool(named & judging) or any(isinstance(n, ast.Assert) for n in ast.walk(test))
