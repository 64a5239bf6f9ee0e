"""What a worker is lost by costs one slide, and the driver says what it was."""

from __future__ import annotations

import mmap
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from microtome.errors import MicrotomeError
from microtome.run.progress import SilentReporter
from microtome.store.claims import read_attempts
from microtome.store.status import read_status
from microtome.testing import make_slide
from microtome_engines import memory
from microtome_engines.process import environment

pytestmark = pytest.mark.usefixtures("hazards")


def by_name(result):
    return {status.slide_id: status for status in result.statuses}


def features(output, slide, name="handcrafted"):
    with h5py.File(output / f"patches/{slide}.h5") as file:
        return file["coords"][:], file[f"features/{name}"][:]


class Notes(SilentReporter):
    def __init__(self):
        self.texts = []

    def note(self, text):
        self.texts.append(text)


def test_two_workers_give_what_one_process_gives(go, slides, tmp_path):
    folder = slides("a", "b", "c", "d")
    result = go(folder, workers={"workers": 2})
    assert {name: s.state for name, s in by_name(result).items()} == dict.fromkeys("abcd", "done")
    go(folder, engine="inline", output="alone")
    for name in "abcd":
        for one, other in zip(
            features(tmp_path / "out", name), features(tmp_path / "alone", name), strict=True
        ):
            np.testing.assert_array_equal(one, other)


def test_a_native_crash_costs_one_slide(go, slides, tmp_path):
    notes = Notes()
    folder = slides("good", "segfault", "other")
    result = go(folder, reader="hazardous", reporter=notes)
    lost = by_name(result)["segfault"]
    assert result.exit_code == 3
    assert {name for name, s in by_name(result).items() if s.state == "done"} == {"good", "other"}
    assert lost.state == "quarantined"
    assert "3 workers died" in lost.message
    assert "was killed by SIGSEGV at tissue with reader hazardous" in lost.message
    assert "claims.retry=true" in lost.message
    assert sum("segfault: its worker was killed by SIGSEGV" in text for text in notes.texts) == 2
    assert read_status(tmp_path / "out/status/segfault.json") == lost
    assert not list((tmp_path / "out").rglob("*.lease"))
    assert not list((tmp_path / "out").rglob(".*.tmp"))


def test_what_is_quarantined_is_left_alone_until_it_is_asked_for(go, slides, tmp_path):
    folder = slides("segfault")
    once = {"attempts": 1}
    assert by_name(go(folder, reader="hazardous", claims=once))["segfault"].state == "quarantined"
    attempts = tmp_path / "out/.claims/segfault.attempts.json"
    assert [a.how for a in read_attempts(attempts)] == ["was killed by SIGSEGV"]
    again = go(folder, reader="hazardous", claims=once)
    assert by_name(again)["segfault"].state == "quarantined"
    assert len(read_attempts(attempts)) == 1
    # Another reader would do, if only somebody tried.
    retried = go(folder, reader="openslide", claims=once | {"retry": True})
    assert by_name(retried)["segfault"].state == "done"
    assert not attempts.exists()


def test_auto_takes_another_reader_after_a_crash(go, slides):
    result = go(slides("segfault"))
    status = by_name(result)["segfault"]
    assert status.state == "done"
    assert status.reader == "tiff"
    assert "hazardous brought a worker down on this slide" in status.why


def test_the_second_try_is_milder(go, slides, tmp_path):
    folder = slides("once", "usual")
    result = go(
        folder,
        reader="hazardous",
        encoder={"hungry": {"batch_size": 16}},
        tiler={"grid": {"magnification": 20, "size": 32}},
    )
    assert {s.state for s in result.statuses} == {"done"}
    assert features(tmp_path / "out", "usual", "hungry")[1].max() == 16
    assert features(tmp_path / "out", "once", "hungry")[1].max() == 4


def test_a_hang_is_noticed(go, slides):
    folder = slides("good", "hang")
    result = go(folder, reader="hazardous", workers={"patience": 3.0}, claims={"attempts": 1})
    assert by_name(result)["good"].state == "done"
    assert "made no progress for 3 s (engine.patience)" in by_name(result)["hang"].message


def test_hunger_for_memory_is_stopped(go, slides, tmp_path):
    hungry = tmp_path / "hungry"
    hungry.touch()

    class Fed(SilentReporter):
        def finished(self, status):
            hungry.unlink(missing_ok=True)

    result = go(
        slides("first", "second"),
        encoder="hungry",
        workers={"memory_gb": 0.6},
        claims={"attempts": 1},
        reporter=Fed(),
    )
    assert by_name(result)["second"].state == "done"
    assert "GiB of memory (engine.memory_gb=0.6) at tiles" in by_name(result)["first"].message


def test_weights_that_cannot_be_had_are_told_once(go, slides, tmp_path):
    options = {"resnet18": {"weights": str(tmp_path / "none.safetensors")}}
    with pytest.raises(MicrotomeError, match=r"none\.safetensors"):
        go(slides("a"), encoder=options)
    assert not list((tmp_path / "out").rglob("*.lease"))


def test_a_worker_that_cannot_start_ends_the_run(go, slides, monkeypatch):
    monkeypatch.setattr("microtome_engines.early._START", "import sys; sys.exit(9) # {}")
    with pytest.raises(MicrotomeError, match="cannot start: it ended with exit code 9"):
        go(slides("a"))


def test_a_profile_is_of_all_workers(go, slides):
    result = go(slides("a", "b"), workers={"workers": 2}, profile=True)
    assert {"decode", "encode"} <= set(result.profile)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_drops_the_slide_and_is_not_its_fault(slides, tmp_path, sent):
    folder = slides("hang")
    run = subprocess.Popen(
        [sys.executable, "-m", "microtome", folder, "output=out", "reader=hazardous"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path[:2])},
        stderr=subprocess.PIPE,
        text=True,
    )
    attempts = tmp_path / "out/.claims/hang.attempts.json"
    deadline = time.monotonic() + 60
    while not any(a.reader for a in read_attempts(attempts)) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    run.send_signal(sent)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 128 + sent, said
    assert said.splitlines()[-1] == "microtome: interrupted; the next run goes on from here."
    assert not [path for path in (tmp_path / "out/.claims").rglob("*") if path.is_file()]
    assert not (tmp_path / "out/status/hang.json").exists()


def test_a_worker_that_is_told_to_end_was_not_the_slides_fault(go, slides, tmp_path):
    """A scheduler signals every process of a job, and a worker may hear it before its driver."""
    result = go(slides("good", "told-once"), reader="hazardous")
    assert {s.state for s in result.statuses} == {"done"}
    assert not list((tmp_path / "out/.claims").glob("*.json"))


def test_all_that_are_suspended_are_excused(go, slides, tmp_path):
    """As a scheduler or a laptop's lid does: nobody's silence counts."""
    folder = slides("a", "b")
    make_slide(folder / "b.svs", size=(4096, 3072), seed=1)
    run = subprocess.Popen(
        [
            *(sys.executable, "-m", "microtome", folder, "output=out", "engine.patience=6"),
            *("claims.attempts=1", "tiler.magnification=40", "tiler.size=64", "reader=openslide"),
        ],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    attempts = tmp_path / "out/.claims/b.attempts.json"
    deadline = time.monotonic() + 60
    while not read_attempts(attempts) and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    workers = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    for pid in (run.pid, *map(int, workers)):
        os.kill(pid, signal.SIGSTOP)
    time.sleep(8)
    for pid in (run.pid, *map(int, workers)):
        os.kill(pid, signal.SIGCONT)
    _, said = run.communicate(timeout=100)
    assert run.returncode == 0, said


def test_a_damaged_record_stops_nobody(go, slides, tmp_path):
    folder = slides("a", "b")
    go(folder)
    (tmp_path / "out/status/a.json").write_text("")
    again = go(folder)
    assert {s.state for s in again.statuses} == {"reused"}
    assert read_status(tmp_path / "out/status/a.json").state == "reused"


def test_a_gpu_that_was_not_granted_is_refused(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    with pytest.raises(MicrotomeError, match="no GPU 2 among those that were granted"):
        environment(2)


def test_a_gpu_is_counted_among_those_that_were_granted(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert environment(1)["CUDA_VISIBLE_DEVICES"] == "6"
    assert environment(None) is None
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert environment(3)["CUDA_VISIBLE_DEVICES"] == "3"


def test_memory_is_shared_out_of_what_was_granted(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.delenv("SLURM_MEM_PER_NODE", raising=False)
    whole = memory.memory_share(1)
    assert memory.memory_share(4) == whole / 4
    monkeypatch.delenv("SLURM_MEM_PER_CPU", raising=False)
    monkeypatch.setattr(memory, "PROC", tmp_path)
    (tmp_path / "self").mkdir()
    (tmp_path / "self/cgroup").write_text("0::/system/run-7\n")
    (tmp_path / "system/run-7").mkdir(parents=True)
    (tmp_path / "system/memory.max").write_text(f"{1 << 29}\n")
    (tmp_path / "system/run-7/memory.max").write_text("max\n")
    assert memory.memory_share(1) == pytest.approx(0.9 * 2**29)
    (tmp_path / "system/memory.max").unlink()
    (tmp_path / "memory.max").write_text(f"{1 << 30}\n")
    assert memory.memory_share(1) == pytest.approx(0.9 * 2**30)
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "512")
    assert memory.memory_share(2) == pytest.approx(0.9 * 2**28)


def test_memory_of_a_process_is_its_own():
    before = memory.memory_of(os.getpid())
    # Not by malloc, which may give again what an earlier run of this process gave back to it.
    with mmap.mmap(-1, 64 << 20) as held:
        held.write(b"\1" * len(held))
        assert memory.memory_of(os.getpid()) - before > 0.9 * len(held)
    assert memory.memory_of(2**30) == 0


@pytest.mark.parametrize(("reader", "state"), [("cucim", "failed"), ("auto", "done")])
def test_a_valid_file_that_kills_cucim_costs_nobody_anything(
    go, slides, tmp_path, shared_data, reader, state
):
    """The file is refused before cuCIM sees it, or read by another reader."""
    shutil.copy(shared_data / "broken/valid_deflate_boxes.tiff", slides("good"))
    result = go(tmp_path / "slides", reader=reader, mpp=0.5, segmenter="none")
    states = {name: status.state for name, status in by_name(result).items()}
    assert states == {"good": "done", "valid_deflate_boxes": state}
    assert result.exit_code == (3 if state == "failed" else 0)
