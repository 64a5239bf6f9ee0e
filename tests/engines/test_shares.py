"""Rounds: what became of a slide in one command holds for all that were started with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from gates import assert_same, content

from microtome.plugin import registry
from microtome.run.planning.plan import make_plan, name_round
from microtome.run.settings import Choice, ClaimSettings, EncoderChoice, RunConfig

CONFIG = RunConfig(slides=("a.svs",), output=Path("out"), claims=ClaimSettings(round="17"))


def states(result):
    return {status.slide_id: status.state for status in result.statuses}


@pytest.mark.parametrize(
    "other",
    [
        replace(CONFIG, threads=3, torch_threads=1, reader_threads=2),
        replace(CONFIG, run_dir=Path("elsewhere"), resolved={"output": "out"}),
        replace(CONFIG, engine=Choice(plugin="local")),
    ],
)
def test_a_round_does_not_depend_on_who_works(other):
    assert name_round(other) == name_round(CONFIG)


@pytest.mark.parametrize(
    "other",
    [
        replace(CONFIG, claims=ClaimSettings(round="18")),
        replace(CONFIG, encoders=(EncoderChoice(plugin="handcrafted", key="second"),)),
        replace(CONFIG, task="coords"),
        replace(CONFIG, force=True),
    ],
)
def test_what_is_asked_for_is_part_of_a_round(other):
    assert name_round(other) != name_round(CONFIG)


def test_a_run_by_itself_is_no_round():
    assert name_round(replace(CONFIG, claims=ClaimSettings())) == ""
    plan = make_plan(replace(CONFIG, claims=ClaimSettings()), registry.get_registry())
    assert plan.round == ""


@pytest.mark.parametrize("engine", ["inline", "local"])
def test_a_round_takes_what_is_done_and_what_failed_as_it_is(go, slides, tmp_path, engine):
    folder = slides("a", "b")
    (folder / "bad.svs").write_bytes(b"II*\0 no slide")
    one = go(folder, engine=engine, force=True, claims={"round": "17"})
    assert states(one) == {"a": "done", "b": "done", "bad": "failed"}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/status").iterdir()}
    two = go(folder, engine=engine, force=True, claims={"round": "17"})
    assert states(two) == states(one)
    assert two.exit_code == 3
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/status").iterdir()}
    assert after == before
    found = content(tmp_path / "out")
    three = go(folder, engine=engine, claims={"round": "18"})
    assert states(three) == {"a": "reused", "b": "reused", "bad": "failed"}
    for name, (coords, features, _) in content(tmp_path / "out").items():
        assert_same({name: (coords, features, "")}, {name: (*found[name][:2], "")})
