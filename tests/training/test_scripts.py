"""The page for users of the three scripts names tests that there are, and every row."""

from __future__ import annotations

from pathlib import Path

import pytest
from named_tests import assert_tests_are_there, read_rows

PAGE = Path(__file__).resolve().parents[2] / "docs" / "training" / "index.md"
ROWS = read_rows(PAGE, "Q")


def test_every_row_is_there():
    assert list(ROWS) == [f"Q{number}" for number in range(1, 13)]


@pytest.mark.parametrize("row", ROWS)
def test_a_row_names_tests_that_there_are(row):
    assert_tests_are_there(ROWS[row])
