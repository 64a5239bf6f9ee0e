"""What a writer cannot keep is refused before anything is computed."""

from __future__ import annotations

from pathlib import Path

import pytest

from microtome.errors import ConfigError
from microtome.plugin.options import configure
from microtome.plugin.registry import get_registry
from microtome.run.planning.writers import plan_writers
from microtome.run.settings import (
    Choice,
    EncoderChoice,
    PatientEncoderChoice,
    RunConfig,
    SlideEncoderChoice,
)
from microtome_writers.hdf5 import Hdf5Writer


def of_regions():
    config = configure(get_registry().find("tiler", "grid").spec, region_tiles=2)
    return Choice(plugin="grid", config=config)


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"slide_encoders": (SlideEncoderChoice(plugin="mean"),)}, "slide_encoder=mean"),
        ({"patient_encoders": (PatientEncoderChoice(plugin="mean"),)}, "patient_encoder=mean"),
        ({"encoders": (EncoderChoice(plugin="a", tokens=True),)}, "encoder.a.tokens=true"),
        ({"encoders": (EncoderChoice(plugin="a", attention=True),)}, "encoder.a.attention=true"),
        ({"region_features": True}, "region_features=true"),
        ({"tiler": of_regions}, "tiler.region_tiles=2"),
    ],
)
def test_a_writer_without_arrays_is_told_before_the_work(monkeypatch, options, asked):
    made = {name: value() if callable(value) else value for name, value in options.items()}
    config = RunConfig(slides=("a.svs",), output=Path("out"), **made)
    assert plan_writers(config, get_registry())[0][0].name == "hdf5"
    monkeypatch.delattr(Hdf5Writer, "add_array")
    with pytest.raises(ConfigError, match=f"writer=hdf5 keeps no arrays .* {asked} asks"):
        plan_writers(config, get_registry())


def test_features_and_columns_need_no_arrays(monkeypatch):
    monkeypatch.delattr(Hdf5Writer, "add_array")
    config = RunConfig(slides=("a.svs",), output=Path("out"))
    assert plan_writers(config, get_registry())[0]
