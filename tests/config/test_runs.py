"""Command lines that compose runs, sweeps and presets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from config_standins import NetOptions
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import OmegaConf

from microtome.__main__ import main
from microtome.errors import InputError, StoreError
from microtome.run.settings import FilterSettings, RunConfig, TissueSettings


def files(folder: str) -> set[str]:
    return {str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file()}


def test_defaults_are_those_of_run_config(runs):
    assert main(["a.svs", "output=out"]) == 0
    (run,) = runs
    default = RunConfig(slides=("a.svs",), output=Path("out"))
    ours = {k: v for k, v in vars(run).items() if k not in ("run_dir", "resolved")}
    theirs = {k: v for k, v in vars(default).items() if k in ours}
    for settings in (ours, theirs):  # the configurations are compared by their plugins' names
        settings["tiler"] = settings["tiler"].plugin
        settings["segmenter"] = settings["segmenter"].plugin
        settings["engine"] = settings["engine"].plugin
        settings["encoders"] = [(e.name, e.device, e.batch_size) for e in settings["encoders"]]
        settings["writers"] = [w.name for w in settings["writers"]]
    # Python has its own process by default, where its debugger and its plugins are.
    assert (ours.pop("engine"), theirs.pop("engine")) == ("local", "inline")
    assert ours == theirs
    assert run.resolved["encoder"]["handcrafted"]["device"] == "auto"


def test_nothing_is_left_outside_the_output(runs):
    main(["a.svs", "output=out"])
    assert sorted(p.name for p in Path().iterdir()) == ["a.svs", "out"]
    assert runs[0].run_dir.parent == Path("out/runs").absolute()
    left = files("out")
    assert {Path(name).name for name in left} == {
        "config.yaml", "hydra.yaml", "overrides.yaml", "outcome.json",
    }  # fmt: skip


def test_hydra_composes_a_plain_run_once_and_like_its_own_command_line(runs, monkeypatch):
    composed = []
    compose = ConfigLoaderImpl.load_configuration

    def spy(self, *args, **kwargs):
        composed.append(args)
        return compose(self, *args, **kwargs)

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", spy)
    line = ["a.svs", "output=out", "encoder=[acme,resnet18]", "tiler.size=64"]
    assert main(line) == 0
    assert len(composed) == 1
    assert main([*line, "--run"]) == 0
    assert runs[0].resolved == runs[1].resolved
    kept = [OmegaConf.load(run.run_dir / ".hydra/hydra.yaml").hydra for run in runs]
    for key in ("mode", "job.name", "job.chdir", "runtime.choices", "runtime.config_sources"):
        assert OmegaConf.select(kept[0], key) == OmegaConf.select(kept[1], key), key


def test_options_reach_their_places(runs):
    line = """a.svs output=out encoder=[ResNet18,uni_v2,acme] writer=[hdf5,png]
    encoder.ResNet18.weights=random encoder.uni_v2.batch_size=8 encoder.acme.device=cuda:1
    device=cpu precision=bf16 batch_size=16 threads=2 mpp=0.25 visualize=[mask,grid] task=tissue
    tiler.size=128 tiler.edge=pad tiler.origin=[64,0] tissue.min_region_um2=5 filter.enabled=true
    feature_dtype=float16 recursive=true formats=all slide_id=relpath force=true"""
    assert main(line.split()) == 0
    (run,) = runs
    assert [(e.name, e.device, e.precision, e.batch_size) for e in run.encoders] == [
        ("resnet18", "cpu", "bf16", 16),
        ("uni_v2", "cpu", "bf16", 8),
        ("acme", "cuda:1", "bf16", 16),
    ]  # fmt: skip
    assert run.encoders[0].config == NetOptions(weights="random")
    assert run.encoders[1].config == NetOptions()
    assert [w.name for w in run.writers] == ["hdf5", "png"]
    assert run.visualize == ("grid", "mask")
    tiler = run.tiler.config
    assert (tiler.size, tiler.edge.name, tiler.origin) == (128, "pad", [64, 0])
    assert run.tissue == TissueSettings(min_region_um2=5)
    assert run.filter == FilterSettings(enabled=True)
    assert (run.task, run.feature_dtype, run.mpp, run.threads) == ("tissue", "float16", 0.25, 2)
    assert (run.recursive, run.formats, run.slide_id, run.force) == (True, "all", "relpath", True)


@pytest.mark.parametrize("none", ["encoder=[]", "encoder=null", "encoder="])
def test_no_encoder(none, runs):
    assert main(["a.svs", "output=out", none]) == 0
    assert runs[0].encoders == ()


def test_second_instance_of_one_plugin(runs):
    line = "a.svs output=out encoder=resnet18 +encoder@encoder.seeded=resnet18"
    assert main([*line.split(), "encoder.seeded.seed=7"]) == 0
    first, second = runs[0].encoders
    assert (first.name, first.config.seed) == ("resnet18", 0)
    assert (second.name, second.plugin, second.config.seed) == ("seeded", "resnet18", 7)


def test_tiler_without_a_name_of_its_own_still_has_a_tiling(runs):
    assert main(["a.svs", "output=out", "tiler=bare", "tiler.name=mine"]) == 0
    assert (runs[0].tiler.plugin, runs[0].tiling) == ("bare", "mine")


def test_sweep(runs, capsys):
    line = "-m a.svs output=out encoder=acme,handcrafted tiler.magnification=10,20"
    assert main(line.split()) == 0
    assert [(r.encoders[0].name, r.tiler.config.magnification, r.tiling) for r in runs] == [
        ("acme", 10, "auto"), ("acme", 20, "auto"),
        ("handcrafted", 10, "auto"), ("handcrafted", 20, "auto"),
    ]  # fmt: skip
    assert len({run.run_dir for run in runs}) == 4
    assert len({run.run_dir.parent for run in runs}) == 1
    assert {run.output for run in runs} == {Path("out")}
    assert sorted(p.name for p in Path().iterdir()) == ["a.svs", "out"]
    assert "tiler.magnification sets tiler.name=auto" in capsys.readouterr().err


def test_sweep_keeps_a_tiling_that_was_named(runs, capsys):
    assert main(["-m", "a.svs", "output=out", "tiler.size=64,128", "tiler.name=mine"]) == 0
    assert {run.tiling for run in runs} == {"mine"}
    assert capsys.readouterr().err == ""


def test_options_of_an_encoder_that_only_some_jobs_of_a_sweep_have(runs):
    line = "-m a.svs output=out encoder=acme,resnet18 encoder.resnet18.weights=random"
    assert main([*line.split(), "encoder.resnet18.model=${x}", "encoder.resnet18.seed=4"]) == 2
    runs.clear()
    assert main([*line.split(), "encoder.resnet18.seed=4"]) == 0
    assert [[e.name for e in run.encoders] for run in runs] == [["acme"], ["resnet18"]]
    assert runs[1].encoders[0].config == NetOptions(weights="random", seed=4)
    assert "resnet18" not in runs[0].resolved["encoder"]


def test_wrong_option_of_a_swept_encoder_is_told_in_its_job(runs, capsys):
    line = "-m a.svs output=out encoder=acme,resnet18 encoder.resnet18.wieghts=random"
    assert main(line.split()) == 2
    assert [run.encoders[0].name for run in runs] == ["acme"]
    assert "Did you mean 'weights'?" in capsys.readouterr().err


def test_bad_jobs_do_not_stop_a_sweep(runs, capsys):
    runs.answers = [3, StoreError("the disk is full"), 0]
    assert main(["-m", "a.svs", "output=out", "tiler.size=big,64,128,256", "tiler.name=x"]) == 2
    assert len(runs) == 3
    outcomes = {
        int(path.parent.name): json.loads(path.read_text())
        for path in Path("out").rglob("outcome.json")
    }
    assert {job: outcome["exit_code"] for job, outcome in outcomes.items()} == {
        0: 2, 1: 3, 2: 1, 3: 0,
    }  # fmt: skip
    assert outcomes[2]["error"] == "the disk is full"
    errors = capsys.readouterr().err.splitlines()
    assert [line.split(" (")[0] for line in errors] == ["microtome: job 0", "microtome: job 2"]


@pytest.mark.parametrize(
    ("answer", "code"),
    [(0, 0), (3, 3), (InputError("two slides of one name"), 1), (KeyboardInterrupt(), 130)],
)
def test_exit_codes(answer, code, runs):
    runs.answers = [answer]
    assert main(["a.svs", "output=out"]) == code
    (outcome,) = Path("out").rglob("outcome.json")
    assert json.loads(outcome.read_text())["exit_code"] == code


def test_interrupt_stops_a_sweep(runs):
    runs.answers = [0, KeyboardInterrupt(), 0]
    assert main(["-m", "a.svs", "output=out", "tiler.size=1,2,3", "tiler.name=x"]) == 130
    assert len(runs) == 2


def test_a_mistake_in_the_program_is_not_put_into_a_sentence(runs):
    runs.answers = [ValueError("a bug")]
    with pytest.raises(ValueError, match="a bug"):
        main(["a.svs", "output=out"])


def test_presets_of_the_house(runs):
    assert main(["a.svs", "output=out", "preset=look"]) == 0
    assert main(["a.svs", "output=out", "+preset=[clean,look]", "visualize=grid"]) == 0
    assert (runs[0].task, runs[0].visualize) == ("coords", ("grid", "mask", "contours"))
    assert runs[0].filter == FilterSettings()
    assert runs[1].filter.enabled
    assert runs[1].visualize == ("grid",)


def test_compositions_of_ones_own(runs, tmp_path):
    mine = tmp_path / "mine"
    (mine / "preset").mkdir(parents=True)
    (mine / "encoder").mkdir()
    (mine / "preset" / "pair.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /encoder: [acme, resnet18]\n"
        "encoder:\n  resnet18:\n    seed: 3\n"
    )
    (mine / "encoder" / "tuned.yaml").write_text(
        "# @package encoder.tuned\nplugin: resnet18\nseed: 9\n"
    )
    line = ["a.svs", "output=out", "--config-dir", "mine"]
    assert main([*line, "preset=pair"]) == 0
    assert main([*line, "encoder=tuned", "batch_size=5"]) == 0
    assert [e.name for e in runs[0].encoders] == ["acme", "resnet18"]
    assert runs[0].encoders[1].config.seed == 3
    (tuned,) = runs[1].encoders
    assert (tuned.plugin, tuned.config.seed, tuned.batch_size) == ("resnet18", 9, 5)


def test_yaml_that_a_plugin_package_brings(runs, registry, tmp_path, monkeypatch):
    package = tmp_path / "acme_room"
    (package / "conf" / "preset").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "conf" / "__init__.py").touch()
    (package / "conf" / "preset" / "acme_way.yaml").write_text(
        "# @package _global_\nbatch_size: 77\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import acme_room

    registry.add(acme_room, "room", "acme-room")
    assert main(["a.svs", "output=out", "+preset=acme_way"]) == 0
    assert runs[0].batch_size == 77


def test_cfg_shows_and_does_not_run(runs, capsys):
    assert main(["a.svs", "--cfg", "job", "task=coords", "encoder=uni_v2"]) == 0
    shown = capsys.readouterr().out
    assert runs == []
    assert [p.name for p in Path().iterdir()] == ["a.svs"]
    assert "task: coords" in shown
    assert "plugin: uni_v2" in shown


def test_traceback_on_request(runs, monkeypatch, capsys):
    monkeypatch.setenv("MICROTOME_DEBUG", "1")
    runs.answers = [InputError("no such slide")]
    main(["a.svs", "output=out"])
    assert "Traceback" in capsys.readouterr().err


def test_process_leaves_with_the_exit_code(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "microtome", "nope.svs", "output=out", "--frobnicate"],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
