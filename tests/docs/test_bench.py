"""The benchmarks run and say what they measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(600)  # it starts processes and imports torch
def test_the_benchmarks_run(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "--json", str(tmp_path / "bench.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "bench.json").read_text("utf-8"))
    results = {result["name"]: result for result in record["results"]}
    assert {"microtome --help", "encode, handcrafted"} <= set(results)
    assert any(name.startswith("read 256 px at 20x") for name in results)
    assert all(result["value"] > 0 for result in results.values())
    assert len(done.stdout.splitlines()) == len(results)
