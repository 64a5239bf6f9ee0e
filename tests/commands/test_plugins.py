"""``microtome plugins``."""

from __future__ import annotations

import json

import pytest
from config_standins import encoder, fill, module

from microtome.__main__ import main
from microtome.commands import plugins
from microtome.plugin.registry import Broken, Registry
from microtome.plugin.specs import SPECS


@pytest.fixture
def listed(monkeypatch) -> Registry:
    registry = fill(Registry())
    needy = [
        encoder("far", requires=("no_such_module",), install="pip install far-away"),
        encoder("bare", requires=("no_such_module", "nor_this")),
    ]
    registry.add(module("far", encoders=needy), "far", "far-dist")
    registry.broken.append(Broken("ruin", "ruin-dist", "ImportError: no ruin"))
    monkeypatch.setattr(plugins, "get_registry", lambda: registry)
    return registry


def test_listing(listed, capsys):
    assert main(["plugins"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines if line.startswith("  ")}
    assert "microtome-acme" in rows["acme"]
    assert "available" in rows["acme"]
    assert rows["far"].split("  ")[-1] == "pip install far-away"
    assert "needs no_such_module  " in rows["far"]
    assert rows["acme"] == rows["acme"].rstrip()
    assert "pip install no_such_module nor_this" in rows["bare"]
    assert "ruin-dist" in rows["ruin"]
    assert "ImportError: no ruin" in rows["ruin"]
    titles = [line.split()[0] for line in lines if line and not line.startswith(" ")]
    assert titles == [*SPECS, "broken"]


def test_one_kind(listed, capsys):
    assert main(["plugins", "tiler"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("tiler (2)\n  bare ")
    assert "acme" not in out


def test_json(listed, capsys):
    assert main(["plugins", "--json", "encoder"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert set(record) == {"encoder", "broken"}
    by_name = {row["name"]: row for row in record["encoder"]}
    assert by_name["acme"] == {
        "name": "acme",
        "distribution": "microtome-acme",
        "summary": "acme it is",
        "available": True,
        "missing": [],
        "install": None,
    }
    assert by_name["bare"]["missing"] == ["no_such_module", "nor_this"]
    assert record["broken"][0]["distribution"] == "ruin-dist"


def test_no_plugins_at_all(monkeypatch, capsys):
    monkeypatch.setattr(plugins, "get_registry", Registry)
    assert main(["plugins", "encoder"]) == 0
    assert capsys.readouterr().out == "encoder (0)\n"
