"""`microtome plan`: what a run would do, whatever is not installed; nothing is left anywhere."""

from __future__ import annotations

import shutil

import pytest

from microtome.__main__ import main
from microtome.config.app import compose
from microtome.plugin.registry import get_registry
from microtome.run.preview import preview
from microtome.run.runner import plan_passes

FAR = """
from microtome.plugin import EncoderCard, SlideEncoderSpec, TileNeed, hookimpl

@hookimpl
def microtome_slide_encoders():
    need = TileNeed(encoder="handcrafted", patch_size=128, magnification=20, dim=67)
    card = EncoderCard(dim=3, licence="MIT", hub_id="owner/far", gated=True)
    yield SlideEncoderSpec(name="far", target=":Far", summary="Far away", needs=(need,),
                           requires=("no_such_package",), install="pip install far", card=card)
"""


@pytest.fixture(autouse=True)
def folder(synthetic, tmp_path, monkeypatch):
    """Work in a folder with a slide, a manifest and a plugin that misses a package."""
    shutil.copy(synthetic.path, tmp_path / "one.svs")
    (tmp_path / "m.csv").write_text("case_id,slide_path\nP1,one.svs\n")
    (tmp_path / "far.py").write_text(FAR)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_plan_needs_no_package_and_leaves_nothing(folder, capsys):
    before = sorted(folder.rglob("*"))
    words = ["m.csv", "output=out", "encoder_plugin=far.py", "slide_encoder=[far,mean]"]
    assert main(["plan", *words, "patient_encoder=mean"]) == 0
    said = capsys.readouterr().out
    assert "1 slide of 1 patient, 1 pass over it." in said
    assert "Added the encoder handcrafted, 128 px at 20x, for far." in said
    (line,) = (line for line in said.splitlines() if "  far  " in line)
    assert line.split() == [
        "slide", "encoder", "far", "of", "handcrafted", "3", "columns", "MIT", "gated",
        "packages", "missing:", "no_such_package",
    ]  # fmt: skip
    assert "mean-handcrafted" in said
    assert "mean-mean-handcrafted  of mean-handcrafted" in said
    assert "→ out" in said
    assert "patches/<slide>.h5" in said
    assert "patient_embeddings/<patient>.h5" in said
    assert "  pip install far\n" in said
    assert "encoders show far --level slide" in said
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("verb", [["plan"], []])
def test_a_contradiction_is_told_before_a_missing_package(verb, folder, capsys):
    words = ["one.svs", "output=out", "encoder_plugin=far.py", "slide_encoder=far"]
    assert main([*verb, *words, "tiler.size=256"]) == 2
    said = capsys.readouterr().err
    assert "slide_encoder=far needs handcrafted on tiles of 128 px at 20x" in said
    assert "tiler.size=256" in said
    if not verb:
        assert main(words) == 1
        assert "The slide_encoder 'far' needs no_such_package" in capsys.readouterr().err
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    "more",
    [
        ["slide_encoder=[mean,max]", "patient_encoder=[mean,concat]"],
        ["encoder=[handcrafted,resnet18]", "encoder.resnet18.weights=random", "slide_encoder=mean"],
        ["task=coords", "tiler.name=auto"],
        ["encoder=resnet18", "encoder.resnet18.weights=random", "tiler.size=128"],
    ],
)
def test_what_is_shown_is_what_the_run_plans(more, folder):
    words = ["m.csv", "output=out", *more]
    shown = preview(compose(words), get_registry())
    plans = plan_passes(compose(words), get_registry())
    assert len(shown.passes) == len(plans)
    for each, plan in zip(shown.passes, plans, strict=True):
        for kind in ("encoder", "slide_encoder", "patient_encoder"):
            found = [model.name for model in each.models[kind]]
            assert found == [model.name for model in getattr(plan, f"{kind}s")]
        places = [str(plan.layout.slide(w.spec, "<slide>")) for w in plan.writers]
        assert [*each.places[: len(places)]] == places
        assert each.tiles in plan.first_line
        notes = {note for note in plan.notes if "runs on the CPU" not in note}
        assert notes <= set(shown.notes)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["one.svs", "patient_encoder=concat"], "Whose slide is"),
        (["gone.svs"], "gone.svs"),
        (["one.svs", "-m", "tiler.size=128,256"], "Of one run alone"),
        (["one.svs", "encoder=nonsense"], "nonsense"),
        (["tiler.size=128"], "No slide is given"),
    ],
)
def test_what_the_run_would_be_refused_for_is_refused(words, told, folder, capsys):
    assert main(["plan", *words, "output=out"]) != 0
    assert told in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_of_a_task_no_tiling_is_told(folder, capsys):
    assert main(["plan", "one.svs", "task=sample", "output=out"]) == 0
    assert capsys.readouterr().out == (
        "task=sample: Draw a balanced sample of labelled tiles. 1 slide named. What it does goes "
        "by what out holds, and shows as it is done.\n"
    )
    assert main(["plan", "task=sample", "output=out", "negatives_per_positive=-1"]) == 2
    assert "sample.negatives_per_positive=-1 must be above 0" in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_without_an_output_folders_are_those_below_it(folder, capsys):
    assert main(["plan", "one.svs", "tiler.name=auto", "tiler.size=128"]) == 0
    assert "→ 20x_128px_0px/patches/<slide>.h5" in capsys.readouterr().out
    assert not (folder / "runs").exists()


def test_presets_of_a_folder_are_found(folder, capsys):
    (folder / "conf/preset").mkdir(parents=True)
    (folder / "conf/preset/mine.yaml").write_text(
        "# @package _global_\ntiler:\n  size: 224\n  mpp: 0.5\n"
    )
    assert main(["plan", "one.svs", "preset=mine", "--config-dir", "conf"]) == 0
    assert "224 px at 0.5 µm/px" in capsys.readouterr().out
