"""What a run tells on the command line: each thing once, and at the end all passes together."""

from __future__ import annotations

import shutil

import pytest

from microtome.__main__ import main

SUMS = """
from microtome.plugin import EncoderCard, SlideEncoderSpec, TileNeed, hookimpl
from microtome.plugin.protocols import SlideOutput

class Sum:
    def __init__(self, config, value=1.0):
        self.value = value

    def load(self, device, precision):
        pass

    def encode(self, bag):
        (features,) = bag.features.values()
        return SlideOutput(embedding=features.sum(0, dtype="float32")[:3] * 0 + self.value)

@hookimpl
def microtome_slide_encoders():
    for name, scale, value in (("near", 20, 1.0), ("far", 10, 1.0), ("void", 20, float("nan"))):
        need = TileNeed(encoder="handcrafted", patch_size=128, magnification=scale)
        yield SlideEncoderSpec(name=name, target=":Sum", summary="Sums", needs=(need,),
                               card=EncoderCard(dim=3), fixed={"value": value})
"""


@pytest.fixture(autouse=True)
def folder(synthetic, tmp_path, monkeypatch):
    """Work in a folder with a slide, one that is none, a manifest and a plugin."""
    shutil.copy(synthetic.path, tmp_path / "one.svs")
    (tmp_path / "bad.svs").write_bytes(b"not a slide")
    (tmp_path / "m.csv").write_text("case_id,slide_path\nP1,one.svs\nP1,bad.svs\n")
    (tmp_path / "sums.py").write_text(SUMS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words):
    return main([*words, "output=out", "encoder_plugin=sums.py", "engine=inline"])


def test_several_passes_tell_what_is_common_once_and_end_with_all(folder, capsys):
    assert run("one.svs", "slide_encoder=[near,far]") == 0
    said = capsys.readouterr()
    assert said.err.count("Needed are 2 tilings") == 1
    assert said.err.count("one.svs") <= 1
    last = said.out.splitlines()[-1]
    assert last.startswith("2 passes, 1 slide: 1 done; ")
    assert main(["status", "out"]) == 0
    assert "1 slide in 2 tilings, 2 rows: 2 done" in capsys.readouterr().err


def test_why_a_slide_failed_is_told_once_and_then_its_name(folder, capsys):
    words = ("m.csv", "slide_encoder=mean", "patient_encoder=mean", "tiler.magnification=20")
    assert run(*words) == 3
    said = capsys.readouterr()
    (line,) = (each for each in said.err.splitlines() if "bad: failed at open: " in each)
    why = line.partition("bad: failed at open: ")[2]
    assert (said.err + said.out).count(why) == 1
    assert "(without bad)" in said.err
    assert "failed at open: bad" in said.out
    assert "run.json" in said.out


def test_what_an_earlier_run_left_is_told_of_a_patient_that_fails(folder, capsys):
    words = ("m.csv", "slide_encoder=mean", "patient_encoder=mean", "tiler.magnification=20")
    assert run(*words, "patient_failures=fail") == 3
    said = capsys.readouterr()
    assert "stays" not in said.err
    assert "failed: P1\n" in said.out
    assert run(*words) == 3
    capsys.readouterr()
    assert run(*words, "patient_failures=fail") == 3
    said = capsys.readouterr().err
    assert "patient P1: failed: its slide bad failed" in said
    assert "P1.h5, which an earlier run made of 1 of its 2 slides, stays: delete it" in said
    assert (folder / "out/patient_embeddings/P1.h5").is_file()


def test_values_that_are_not_finite_in_fp32_send_nobody_to_fp32(folder, capsys):
    assert run("one.svs", "slide_encoder=void", "slide_encoder.void.precision=fp32") == 3
    said = capsys.readouterr().err
    assert "not finite, computed in fp32: are its weights, and what it was given, sound?" in said


def test_devices_for_tiles_that_nothing_uses_are_noted(folder, capsys):
    line = ("one.svs", "task=process", "tiler.magnification=20", "tile_devices=[cpu,cpu]")
    assert run(*line) == 0
    assert "tile_devices=[cpu,cpu] changes nothing" in capsys.readouterr().err
