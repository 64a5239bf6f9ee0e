"""An encoder that stands still while a file is there, so that a test may act meanwhile."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from microtome.plugin import EncoderCard, EncoderSpec, hookimpl, registry
from microtome.plugin.protocols import EncoderOutput
from microtome.run.progress import SilentReporter
from microtome.store.status import read_status


class Gated:
    """Says that it is there, and waits until the gate is open."""

    card = EncoderCard(dim=1)

    def __init__(self, config):
        self.gate = Path(os.environ["GATE"])

    def load(self, device, precision):
        """Load nothing."""

    def encode(self, batch):
        """Wait, then give the mean of every tile."""
        while self.gate.exists():
            (self.gate.parent / f"waiting-{os.getpid()}").touch()
            time.sleep(0.02)
        return EncoderOutput(batch.pixels.mean((1, 2, 3), dtype=np.float64)[:, None].astype("f4"))


@hookimpl
def microtome_encoders():
    """Register the encoder."""
    yield EncoderSpec(name="gated", target="gates:Gated", summary="Waits", card=Gated.card)


@contextmanager
def shut_gate(folder, monkeypatch):
    """Install the encoder, here and for children; give its gate, which is shut."""
    site, here = folder / "site", str(Path(__file__).parent)
    info = site / "gates-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gates\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[microtome]\ngates = gates\n")
    paths = [str(site), here]
    for path in paths:
        monkeypatch.syspath_prepend(path)
    known = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [*paths, known])))
    gate = folder / "gate"
    gate.touch()
    monkeypatch.setenv("GATE", str(gate))
    registry.get_registry.cache_clear()
    try:
        yield gate
    finally:
        gate.unlink(missing_ok=True)
        registry.get_registry.cache_clear()


def waiting(gate):
    """Give the processes that have come to the gate."""
    return sorted(gate.parent.glob("waiting-*"))


def share_pids(output):
    """Give the processes of a run's shares, by their logs."""
    logs = output.glob("runs/*/shares/*.jsonl")
    return [int(log.stem.rpartition("-")[2]) for log in sorted(logs)]


def until(condition, seconds=60):
    """Wait for something that happens in another process."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)
    return found


@contextmanager
def meanwhile(act):
    """Act in a thread while a block runs; what it raises is raised at the end."""
    with ThreadPoolExecutor(1) as pool:
        acting = pool.submit(act)
        yield
        acting.result(60)


class Listener(SilentReporter):
    """Remembers what a driver is told."""

    def __init__(self):
        self.texts, self.entered = [], set()

    def note(self, text):
        """Remember it."""
        self.texts.append(text)

    def stage(self, slide_id, stage, tiles=0):
        """Remember the slide."""
        self.entered.add(slide_id)


def content(output):
    """Give coordinates, features and state by slide."""
    found = {}
    for path in sorted(output.glob("patches/*.h5")):
        with h5py.File(path) as file:
            features = {name: file["features"][name][:] for name in file["features"]}
            state = read_status(output / f"status/{path.stem}.json").state
            found[path.stem] = (file["coords"][:], features, state)
    return found


def assert_same(one, other):
    """Compare two outputs, bit by bit."""
    assert one
    assert set(one) == set(other)
    for name, (coords, features, state) in one.items():
        np.testing.assert_array_equal(coords, other[name][0])
        assert state == other[name][2]
        assert set(features) == set(other[name][1])
        for encoder, values in features.items():
            np.testing.assert_array_equal(values, other[name][1][encoder])
