"""How figures are judged, shown and kept."""

from __future__ import annotations

import json

import pytest
from bench.results import Bar, Result, append_record


@pytest.mark.parametrize(
    ("bar", "figure", "verdict"),
    [
        (Bar(0.55), 0.55, "≥ 0.55  met"),
        (Bar(0.55), 0.5, "≥ 0.55  missed by 0.050"),
        (Bar(1.5, at_most=True), 1.4, "≤ 1.5  met"),
        (Bar(250, at_most=True), 262, "≤ 250  missed by 12.0"),
    ],
)
def test_a_bar_says_by_how_much_it_is_missed(bar, figure, verdict):
    assert bar.verdict(figure) == verdict


def test_a_ratio_is_judged_before_a_value():
    result = Result(
        group="g", name="run", value=1500, unit="tiles/s", ratio=0.5, against="of it", bar=Bar(0.6)
    )
    assert result.missed
    assert "1,500 tiles/s" in str(result)
    assert str(result).endswith("missed by 0.100")
    assert "0.500 of it" in str(result)


def test_a_history_grows_line_by_line(tmp_path):
    path = tmp_path / "history.jsonl"
    result = Result(group="g", name="n", value=1.0, unit="s", bar=Bar(2, at_most=True))
    append_record(path, [result], {"M": "m.svs"})
    append_record(path, [result, result], {})
    first, second = (json.loads(line) for line in path.read_text("utf-8").splitlines())
    assert first["slides"] == {"M": "m.svs"}
    assert first["cpus"] >= 1
    assert first["results"][0]["value"] == 1.0
    assert first["results"][0]["missed"] is False
    assert len(second["results"]) == 2
