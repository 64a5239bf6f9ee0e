"""The commands that a stranger runs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from bench.__main__ import main
from bench.groups import GROUPS, about
from bench.peers.compare import FOLDER, RUNNERS


def run(root, *words):
    return subprocess.run(
        [sys.executable, "-m", *map(str, words)], cwd=root, capture_output=True, text=True
    )


def test_every_group_says_what_it_measures():
    assert all(about(group).endswith(".") for group in GROUPS)


def test_every_tool_has_a_runner():
    assert {f"run_{name}" for name in RUNNERS} == {path.stem for path in FOLDER.glob("run_*.py")}


@pytest.mark.parametrize(
    "words",
    [["--only", "path,nothing"], ["--slide", "M=/nowhere.svs"], ["--slide", "M"]],
)
def test_a_slip_is_told_before_anything_is_measured(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    told = f"{stopped.value.code} {capsys.readouterr().err}"
    assert any(name in told for name in ("none of start", "the names are S, M", "NAME=PATH"))


@pytest.mark.slow
@pytest.mark.timeout(900)  # it starts processes and imports torch
def test_the_benchmarks_run(root, tmp_path):
    history = tmp_path / "history.jsonl"
    done = run(
        root,
        *("bench", "--quick", "--only", "start,coords,native,write"),
        *("--cache", tmp_path / "cache", "--json", history),
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(history.read_text("utf-8"))
    results = {result["name"].strip(): result for result in record["results"]}
    assert {"microtome --help", "task=coords, whole process"} <= set(results)
    run_of_m2 = next(result for name, result in results.items() if name.startswith("run, auto"))
    assert run_of_m2["ratio"] > 0
    assert all(result["value"] > 0 for result in results.values())
    shown = done.stdout.splitlines()
    assert all(any(line.strip().startswith(name) for line in shown) for name in results)


@pytest.mark.slow
@pytest.mark.timeout(600)  # torch and timm in two processes
def test_heavy_models_are_fed_and_timed(root, tmp_path, mosaic):
    pytest.importorskip("timm")
    history = tmp_path / "gpu.jsonl"
    model = ("--models", "vit_tiny_patch16_224", "--batch", "8", "--precision", "fp32")
    done = run(
        root,
        *("bench.gpu", "--slide", mosaic, "--device", "cpu", *model),
        *("--peak-tflops", "1", "--json", history, "--tile-devices", "cpu,cpu"),
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(history.read_text("utf-8"))["results"]
    alone, fed, shared, busy, *mfu = results
    assert alone["value"] > 0
    assert fed["value"] > 0
    assert shared["ratio"] == pytest.approx(shared["value"] / fed["value"])
    assert 0 < busy["value"] <= 100
    assert len(mfu) == 2
    # Two operations a multiplication with its sum, 1.26 G of which an image costs ViT-Ti/16.
    assert mfu[0]["value"] == pytest.approx(100 * alone["value"] * 2.5e9 / 1e12, rel=0.05)
