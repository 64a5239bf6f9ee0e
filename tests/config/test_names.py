"""Slides and folders whose names Hydra's grammar would refuse or change."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from microtome.__main__ import main
from microtome.config import checks
from microtome.config.argv import literal
from microtome.run.inputs.finding import SlideList

NASTY = [
    "slide (1).svs", "a,b.svs", "x=1.svs", "{b}.svs", "~x.svs", "a'b.svs", 'a"b.svs',
    "naïve 切片.svs", "[c].svs", "$x.svs", "${oc.env:HOME}.svs", "back\\slash.svs", " lead.svs",
    "trail.svs  ", "#h.svs", "%41.svs", "@a.svs", "line\nbreak.svs", "tab\there.svs",
    "a;b&c|d.svs", "<in>.svs", "*star*.svs", "what?.svs", "!bang.svs", "^caret`tick`.svs",
    "+plus.svs", "++force=1.svs", "a=b=c.svs", "encoder=acme", "null", "true", "1e5", "-1",
    "a\\'b.svs", "end\\", "'", '"', "'quoted'", "\\${x}.svs", "\\\\${x}", "${unclosed", "}{",
    "$", "\\", "a: b.svs", "key: [1, 2]", "choice(a,b)", "\u200bzero.svs", "🔬.svs",
    "plugins.svs", "tiler.size=9", "~encoder", "[a,b]", "..svs", "output=elsewhere", "\udcff.svs",
]  # fmt: skip


@pytest.fixture
def unchecked(monkeypatch) -> None:
    """Take every word for a slide: here it is about what arrives, not about what it is."""
    monkeypatch.setattr(checks, "find_slides", lambda config, registry: SlideList((), ()))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("jobs", [[], ["-m", "encoder=acme,handcrafted"]], ids=["run", "sweep"])
def test_names_arrive_as_they_are(jobs, runs, tmp_path):
    for name in NASTY:
        (tmp_path / name).touch()
    assert main([*jobs, *NASTY, "output=out"]) == 0
    assert [run.slides for run in runs] == [tuple(NASTY)] * (2 if jobs else 1)
    assert runs[0].resolved["slides"] == NASTY
    assert {run.output for run in runs} == {Path("out")}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["slide (1).svs", "x=1.svs", "~x.svs", "null", "output=elsewhere"])
def test_name_alone(name, runs, tmp_path):
    (tmp_path / name).touch()
    assert main([name, "output=out"]) == 0
    assert runs[0].slides == (name,)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["-dash.svs", "--help", "-m"])
def test_dashes_behind_two_dashes_or_a_dot(name, runs, tmp_path):
    (tmp_path / name).touch()
    assert main(["output=out", "--", name]) == 0
    assert main([f"./{name}", "output=out"]) == 0
    assert [run.slides for run in runs] == [(name,), (f"./{name}",)]


def test_a_flag_wins_over_a_file_of_its_name(runs, tmp_path):
    (tmp_path / "-m").touch()
    assert main(["-m", "a.svs", "output=out", "encoder=acme,handcrafted"]) == 0
    assert [run.slides for run in runs] == [("a.svs",)] * 2


def test_a_dashed_name_that_is_no_flag_needs_no_dashes(runs, tmp_path):
    (tmp_path / "-dash.svs").touch()
    assert main(["-dash.svs", "output=out"]) == 0
    assert runs[0].slides == ("-dash.svs",)


@pytest.mark.parametrize(
    "name",
    ["out (1)", "a,b", "x=1", "naïve 切片", "a'b", "back\\slash", "[c]", " lead", "$x", "~x"],
)
def test_output_arrives_as_it_is(name, runs):
    assert main(["a.svs", f"output={name}"]) == 0
    assert runs[0].output == Path(name)
    assert runs[0].run_dir.parent == (Path(name) / "runs").absolute()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["a,b/w=1.pt", "${x}.pt", "it's.pt", "\\${x}.pt", "ä.pt", "a b"])
def test_other_paths_arrive_as_they_are(name, runs):
    line = ["a.svs", "output=out", f"mpp_csv={name}", "encoder=resnet18", "segmenter=file"]
    assert main([*line, f"encoder.resnet18.weights={name}", f"segmenter.folder={name}"]) == 0
    assert runs[0].mpp_csv == Path(name)
    assert runs[0].encoders[0].config.weights == name
    assert runs[0].segmenter.config.folder == name


def test_null_and_nothing_mean_no_path(runs):
    assert main(["a.svs", "output=out", "mpp_csv=null"]) == 0
    assert main(["a.svs", "output=out", "mpp_csv="]) == 0
    assert [run.mpp_csv for run in runs] == [None, None]


def test_home_is_expanded_behind_a_key(runs, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert main(["a.svs", "output=~/out"]) == 0
    assert runs[0].output == tmp_path / "home" / "out"


def test_slides_by_key(runs):
    Path("b,c.svs").touch()
    assert main(["slides=b,c.svs", "a.svs", "output=out"]) == 0
    assert main(["slides=[a.svs, 'b.svs']", "b,c.svs", "output=out"]) == 1  # no b.svs
    assert main(["slides=[a.svs, 'a.svs']", "output=out"]) == 0
    assert [run.slides for run in runs] == [("b,c.svs", "a.svs"), ("a.svs", "a.svs")]


def test_patterns_stay_patterns(runs):
    Path("x=1.svs").touch()
    assert main(["*.svs", "x=*.svs", "output=out"]) == 0
    assert runs[0].slides == ("*.svs", "x=*.svs")


def test_non_ascii_values_of_other_keys(runs):
    assert main(["a.svs", "output=out", "tiler.name=Größe", "encoder=resnet18",
                 "encoder.resnet18.model=hf-hub:org/naïve&co"]) == 0  # fmt: skip
    assert runs[0].tiling == "Größe"
    assert runs[0].encoders[0].config.model == "hf-hub:org/naïve&co"


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=())))
def test_literal_survives_both_grammars(text):
    override = OverridesParser.create().parse_override(f"slides=[{literal(text)},'x']")
    again = OverridesParser.create().parse_override(f"slides={override.get_value_element_as_str()}")
    for parsed in (override, again):
        assert OmegaConf.to_container(OmegaConf.create(parsed.value()), resolve=True) == [text, "x"]
