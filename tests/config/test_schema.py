"""Composed values into a `RunConfig`, and the tables of options."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
from config_standins import NetOptions, RequiredOptions, TileOptions
from omegaconf import OmegaConf

from microtome.config.nodes import to_run_config
from microtome.config.options import RunOptions, help_of, is_path_key, type_of
from microtome.config.schema import (
    options_node,
    options_table,
    plugin_node,
    typed,
)
from microtome.errors import ConfigError, UnknownPluginError
from microtome.run.settings import FilterSettings, RunConfig


def compose(registry, **changes):
    nodes = {
        kind: plugin_node(registry.find(kind, name).spec)
        for kind, name in (
            *(("reader", "openslide"), ("segmenter", "classic"), ("tiler", "grid")),
            ("engine", "local"),
        )
    }
    values = options_node() | nodes | {"slides": ["a.svs"], "output": "out"} | changes
    return OmegaConf.create(values)


def test_every_option_of_a_run_reaches_it():
    # mpp_csv … slides have the same names; tiling and the plugins have nodes of their own.
    elsewhere = {"run_dir", "tiling", "resolved", "reader", "segmenter", "tiler", "engine"}
    of_run = {f.name for f in fields(RunConfig)} - elsewhere
    of_run -= {"inspectors", "encoders", "slide_encoders", "patient_encoders", "writers"}
    # What only Python gives, and what a run derives.
    of_run -= {"patient_id_map", "derived", "label", "own_task"}
    assert of_run == {f.name for f in fields(RunOptions)}


def test_resolved_is_plain_and_whole(registry):
    cfg = compose(registry, encoder={"acme": plugin_node(registry.find("encoder", "acme").spec)})
    run = to_run_config(cfg, Path("here"), registry)
    assert run.run_dir == Path("here")
    said = {"plugin": "acme", "device": "auto", "precision": "auto", "batch_size": 32}
    assert said.items() <= run.resolved["encoder"]["acme"].items()
    assert "${" not in str(run.resolved)
    assert run.resolved["tiler"]["edge"] == "drop"
    assert pickle.loads(pickle.dumps(run)) == run  # as workers are given it


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"segmenter": {"plugin": "nothing"}}, UnknownPluginError, "no segmenter named 'nothing'"),
        ({"segmenter": None}, ConfigError, "No segmenter is chosen"),
        ({"tiler": {"size": 3}}, ConfigError, "tiler has options but no plugin"),
        ({"encoder": ["acme"]}, ConfigError, "not a mapping of encoders"),
        ({"writer": {"hdf5": "hdf5"}}, ConfigError, "writer.hdf5 has options but no plugin"),
        ({"reader": {"plugin": "auto", "x": 1}}, ConfigError, "no reader has one named 'x'"),
        ({"slides": "a.svs"}, ConfigError, "slides=a.svs does not fit: it takes a list of texts"),
    ],
)
def test_refusals(changes, error, words, registry):
    with pytest.raises(error, match=words):
        to_run_config(compose(registry, **changes), None, registry)


def test_typed_resolves_nothing_twice():
    made = typed(NetOptions, {"weights": "${oc.env:HOME}.pt", "model": "\\${x}"}, "here")
    assert made == NetOptions(weights="${oc.env:HOME}.pt", model="\\${x}")


def test_typed_wants_what_has_no_default():
    with pytest.raises(ConfigError, match=r"here\.url=… must be given"):
        typed(RequiredOptions, {}, "here")
    assert typed(RequiredOptions, {"url": "x"}) == RequiredOptions("x")


def test_typed_converts_frozen_settings():
    assert typed(FilterSettings, {"enabled": "yes", "black_gray_below": "7"}) == FilterSettings(
        enabled=True, black_gray_below=7
    )


def test_types_that_omegaconf_cannot_hold_are_told():
    @dataclass
    class Strange:
        thing: complex = 0j

    with pytest.raises(ConfigError, match="The options of here are declared in a way"):
        typed(Strange, {}, "here")


def test_path_keys():
    paths = ["output", "mpp_csv", "encoder.a.weights", "segmenter.folder", "x.y.model_path"]
    others = ["slide_id", "hydra.run.dir", "encoder.a.model", "tiler.name", "pathology", "weight"]
    assert all(map(is_path_key, paths))
    assert not any(map(is_path_key, others))


def test_phrased_types():
    assert type_of(TileOptions, "size") == "whole number or null"
    assert type_of(TileOptions, "origin") == "list of whole number"
    assert type_of(TileOptions, "edge") == "drop | pad"


def test_every_option_of_a_run_has_help():
    assert [name for name, text in help_of(RunOptions).items() if not text] == []
    assert "saturation" in help_of(FilterSettings)["white_saturation_below"]


def test_table_of_options(registry):
    table = options_table(registry)
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    assert "| `output` | text | required | The output folder. |" in rows
    assert any(row.startswith("| `tiler.edge` | drop \\| pad | `drop` |") for row in rows)
    assert any(row.startswith("| `encoder.NAME.device` |") for row in rows)
    assert any(row.startswith("| `encoder.NAME.weights` | text | `hub` | hub, ran") for row in rows)
    assert any(row.startswith("| `filter.enabled` | true \\| false | `false` |") for row in rows)
    for kind in ("reader", "segmenter", "tiler", "encoder", "writer"):
        for name in registry.names(kind):
            assert f"`{kind}={name}`" in table
