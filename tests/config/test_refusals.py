"""Wrong command lines: each is told in one line, and leaves nothing on disk."""

from __future__ import annotations

import errno
import math
import os
import shlex
from pathlib import Path

import pytest

from microtome.__main__ import main
from microtome.errors import ConfigError
from microtome.plugin.specs import RUN_KINDS
from microtome.run.settings import EncoderChoice, FilterSettings, RunConfig, TissueSettings

# The command line behind `microtome`, and what its one sentence must say.
WRONG = {
    "a.svs": "No output folder is given: output=FOLDER",
    "output=out": "No slide is given",
    "nope.svs output=out": "no file or folder 'nope.svs'. Did you mean 'a.svs'?",
    "a.svs output=afile": "afile is a file",
    "a.svs output=afile/x": "afile is a file",
    "a.svs outptu=out": "Did you mean 'output'?",
    "a.svs output=out batchsize=4": "Did you mean 'batch_size'?",
    "a.svs output=out encoder=resnet81": "no encoder named 'resnet81'. Did you mean 'resnet18'?",
    "a.svs output=out encoder=apex": "no encoder named 'apex'. By that name peer means acme. Avail",
    "a.svs output=out quality.drop=true": "there is none: choose some, inspector=[blur,pen",
    "a.svs output=out encodr=acme": "Did you mean 'encoder'?",
    "a.svs output=out reader=openslid": "Did you mean 'openslide'?",
    "a.svs output=out task=coord": "Did you mean 'coords'?",
    "a.svs output=out tiler.sze=256": "no option of tiler named 'sze'. Did you mean 'size'?",
    "a.svs output=out tiler.size=big": "tiler.size=big does not fit: it takes a whole number, or",
    "a.svs output=out tiler.edge=padd": "it takes one of drop, pad",
    "a.svs output=out precision=fp8": "it takes one of auto, fp32, fp16, bf16",
    "a.svs output=out device=gpu": "device=gpu is not auto, cpu, mps, cuda",
    "a.svs output=out encoder=acme encoder.acme.device=cuda:x": "encoder.acme.device=cuda:x is not",
    "a.svs output=out visualize=gird": "Did you mean 'grid'?",
    "a.svs output=out batch_size=0": "microtome: batch_size=0 must be at least 1",
    "a.svs output=out threads=0": "threads=0 must be at least 1",
    "a.svs output=out encoder.handcrafted.batch_size=-2": "handcrafted.batch_size=-2 must be",
    "a.svs output=out mpp=-1": "mpp=-1 is no size",
    "a.svs output=out mpp=nan": "mpp=nan is no size",
    "a.svs output=out tissue.min_region_fraction=2": "tissue.min_region_fraction=2 must be from 0",
    "a.svs output=out filter.white_value_from=-1": "filter.white_value_from=-1 must be from 0",
    "a.svs output=out tiler.name=a/b": "tiler.name=a/b is a folder's name",
    "a.svs output=out tiler.name=Patches": "Patches is a folder in which something else is written",
    "a.svs output=out labels.classes=[Tumor,x]": "for all: labels.classes.tumor=[Tumor,x].",
    "a.svs output=out tiler.origin=[64,0": "'tiler.origin=[64,0' is not a value that can be read",
    "a.svs output=out tiler.size='${nope}'": "Interpolation key 'nope' not found",
    "a.svs output=out tissue=3": "its options: say tissue.min_region_um2=…",
    "a.svs output=out filter=true": "filter=true says nothing of its options: say filter.enabled=",
    "a.svs output=out encoder=[acme,resnet81]": "Did you mean 'resnet18'? Available: acme",
    "a.svs output=out writer=[hdf5,pngg]": "Did you mean 'png'?",
    "a.svs output=out encoder=resnet18 weights=random": "Did you mean encoder.resnet18.weights=…?",
    "a.svs output=out preset=look,clean": "preset=look,clean is a sweep: write preset=[look,clean]",
    "a.svs output=/proc/there": "/proc/there",
    "a.svs output=" + "x" * 300: "is too long for a folder's name",
    "a.svs output=out encoder=acme,handcrafted": "encoder=[acme,handcrafted] for one run with all",
    "a.svs output=out tiler.size=64,128": "tiler.size=64,128 is a sweep: add -m",
    "a.svs output=out encoder.resnet18.weights=random": "add it with encoder=[…,resnet18]",
    "a.svs output=out encoder.handcrafted.devce=cpu": "Did you mean 'device'?",
    "a.svs output=out +encoder.ghost.batch_size=4": "encoder.ghost has options but no plugin",
    "a.svs output=out +tiler.ghost=1": "no option of tiler named 'ghost'",
    "a.svs output=out +ghost=1": "no option named 'ghost'",
    "a.svs output=out +output=x": "output exists already",
    "a.svs output=out encoder=needy": "encoder.needy.url=… must be given",
    "a.svs output=out encoder=3": "Config group override must be a string or a list",
    "a.svs output=out reader=null": "chooses no reader",
    "a.svs output=out preset=nothere": "no preset named 'nothere'",
    "a.svs output=out --config-dir nodir": "nodir' not found",
    "a.svs --output out": "options have no dashes, as in output=",
    "a.svs -x output=out": "There is no flag -x",
    "a.svs output=out --mulitrun": "Did you mean --multirun?",
    "a.svs --cfg jop": "one of job, hydra, all behind it, not jop",
    "a.svs output=out --resolve": "--resolve goes with --cfg job",
    "-m a.svs output=out --cfg job": "--cfg and --multirun exclude each other",
    "-m a.svs output=a,b": "would sweep over the output",
    "a.svs output=out hydra.run.dir=x": "hydra.run.dir cannot be set",
    "a.svs output='${x}'": "which Hydra would replace",
    "-m a.svs output=out tiler.siez=1,2": "no option of tiler named 'siez'. Did you mean 'size'?",
    "-m a.svs output=out tiler.size=big,huge": "tiler.size=big does not fit",
    "-m a.svs nope.svs output=out encoder=acme,handcrafted": "no file or folder 'nope.svs'",
    "-m a.svs output=out segmenter=classic,file": "tiler.name='${segmenter.plugin}'",
    "-m a.svs output=out tissue.min_hole_um2=1,2": "tiler.name='${tissue.min_hole_um2}'",
    "-m a.svs output=out filter.enabled=true,false tiler.size=1,2": "would write the same files",
    "-m a.svs output=afile encoder=acme,handcrafted": "afile is a file",
    "a.svs output=out tiler.origin=3": "it takes a list of whole numbers",
    "a.svs output=out force=maybe": "it takes true or false",
    "a.svs output=out mpp=fine": "it takes a number, or null for the default",
    "a.svs output=out tiler.name=" + "x" * 300: "tiler.name=xxx",
    "plugin": "Did you mean 'microtome plugins'?",
    "plugins encodr": "Did you mean 'encoder'?",
    "plugins encoder reader": "plugins: unrecognized arguments: reader",
    "doctor foo": "doctor: unrecognized arguments: foo",
}


@pytest.mark.parametrize("line", WRONG)
def test_one_sentence_and_nothing_on_disk(line, runs, capsys):
    Path("afile").touch()
    assert main(shlex.split(line)) in (1, 2)
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("microtome: ")
    assert told.err.count("\n") == 1
    assert WRONG[line] in told.err
    assert sorted(p.name for p in Path().iterdir()) == ["a.svs", "afile"]
    assert runs == []


@pytest.mark.parametrize(
    ("words", "made"),
    [
        ("batch_size=0", lambda: RunConfig(slides=(), output=Path(), batch_size=0)),
        ("threads=-1", lambda: RunConfig(slides=(), output=Path(), threads=-1)),
        ("mpp=inf", lambda: RunConfig(slides=(), output=Path(), mpp=math.inf)),
        ("tissue.min_hole_um2=-3", lambda: TissueSettings(min_hole_um2=-3)),
        ("filter.black_drop_from=1.5", lambda: FilterSettings(black_drop_from=1.5)),
        ("device=tpu", lambda: EncoderChoice(plugin="handcrafted", device="tpu")),
        (
            "encoder=acme encoder.acme.batch_size=0",
            lambda: EncoderChoice(plugin="acme", batch_size=0),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_both_faces_refuse_in_the_same_words(words, made, runs, capsys):
    with pytest.raises(ConfigError) as refused:
        made()
    assert main(["a.svs", "output=out", *words.split()]) == 2
    assert capsys.readouterr().err == f"microtome: {refused.value}\n"
    assert runs == []


@pytest.mark.parametrize("line", ["", "-m encoder=acme,handcrafted"], ids=["run", "sweep"])
@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOENT, errno.ENOSPC, errno.EROFS])
def test_a_folder_that_the_system_refuses_is_one_sentence(line, code, runs, monkeypatch, capsys):
    def refuse(path, *args, **kwargs):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(os, "makedirs", refuse)
    assert main([*line.split(), "a.svs", "output=out"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("microtome: ")
    assert told.count("\n") == 1
    assert f"cannot be used: {os.strerror(code)}. Choose another output" in told
    assert runs == []


@pytest.mark.parametrize("command", ["foo=1", "+foo=1"])
def test_a_key_that_is_not_there_lists_all_that_are(command, runs, capsys):
    assert main(["a.svs", "output=out", command]) == 2
    available = capsys.readouterr().err.partition("Available: ")[2].rstrip(".\n").split(", ")
    assert {*RUN_KINDS, "preset", "output", "tissue"} <= set(available)


@pytest.mark.parametrize("device", ["auto", "cpu", "mps", "cuda", "cuda:3"])
def test_devices(device, runs):
    assert main(["a.svs", "output=out", f"device={device}"]) == 0
    assert runs[0].encoders[0].device == device


def test_unknown_plugin_in_a_sweep_stops_it_before_its_first_job(runs, capsys):
    assert main("-m a.svs output=out encoder=acme,nope".split()) == 2  # noqa: SIM905
    assert "There is no encoder named 'nope'" in capsys.readouterr().err
    assert runs == []


def test_many_plugins_are_not_listed_in_a_sentence(runs, registry, capsys):
    from config_standins import encoder, module

    registry.add(module("many", encoders=[encoder(f"net_{i}") for i in range(50)]), "many", "many")
    assert main(["a.svs", "output=out", "encoder=net5"]) == 2
    assert "Available: 55, listed by `microtome plugins encoder`" in capsys.readouterr().err


def test_a_plugin_whose_options_cannot_be_held_is_broken_and_the_rest_works(runs, registry, capsys):
    from dataclasses import dataclass, field

    from config_standins import encoder, module

    @dataclass
    class Strange:
        thing: object = field(default_factory=lambda: {1, 2})

    registry.add(module("odd", encoders=[encoder("odd", config=Strange)]), "odd", "odd-dist")
    assert main(["a.svs", "output=out"]) == 0
    assert main(["a.svs", "output=out", "encoder=odd"]) == 2
    assert "odd-dist is broken: its options cannot be held" in capsys.readouterr().err
