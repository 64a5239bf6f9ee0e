"""What records name and is not there, and what workers leave, is told."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from spoiling import ID, edit, h5

from microtome.plugin.registry import get_registry
from microtome.store.atomic import private_path
from microtome.store.claims import Claims
from microtome.store.layout import OutputLayout
from microtome.store.verify import verify_output

# What is missing.


@pytest.mark.parametrize(
    "pattern",
    [
        f"patches/{ID}.h5",
        f"patches/{ID}.zarr",
        f"low/10x/patches/{ID}.h5",
        f"visualization/{ID}_mask.png",
    ],
)
def test_an_output_that_its_record_names(out, only, pattern):
    (path,) = out.glob(pattern)
    listed = "visualization" not in pattern
    edit(
        out / f"status/{ID}.json",
        lambda s: s["outputs"].update({"mask overlay": f"visualization/{ID}_mask.png"}),
    )
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    told = only("missing")
    assert "it is missing, its slide's record says that it is there. Run the same" in told
    assert listed or "visualization" in told


@pytest.mark.parametrize("suffix", [".png", ".geojson"])
def test_tissue_that_is_gone_is_told_of_each_tiling(out, verify, suffix):
    (path,) = out.glob(f"tissue/case 1/*{suffix}")
    path.unlink()
    faults = verify().faults
    assert [(f.kind, f.slide_id, f.tiling) for f in faults] == [
        ("missing", ID, ""),
        ("missing", ID, "low/10x"),
    ]


def test_half_of_a_tissue_that_no_record_names(out, verify):
    (path,) = out.glob("tissue/b.svs.*.geojson")
    shutil.copy(path, path.with_name("b.svs.0123456789ab.geojson"))
    (fault,) = verify().faults
    assert fault.path == "tissue/b.svs.0123456789ab.png"
    assert fault.kind == "missing"


def test_files_without_a_record(out, verify):
    for tiling in ("", "low/10x"):
        (out / tiling / f"status/{ID}.json").unlink()
    faults = verify().faults
    assert [(fault.kind, fault.tiling) for fault in faults] == [
        ("record", ""),
        ("record", "low/10x"),
    ]
    assert "ended before it was written. Run the same command again." in faults[0].message


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s.update(slide_id="other"), "is the record of 'other'"),
        (lambda s: s.update(seconds=3), "is damaged"),
        (lambda s: s.update(outputs={"hdf5": 3}), "is damaged"),
        (lambda s: s.update(tiles="many"), "is damaged"),
        (lambda s: s.pop("path"), "is not a status record"),
        (lambda s: s.update(state="perfect"), "is not a status record"),
    ],
)
def test_a_record_that_is_none(out, verify, change, told):
    edit(out / f"status/{ID}.json", change)
    (fault,) = verify(deep=False).faults
    assert fault.kind == "record"
    assert told in fault.message
    assert f"status/{ID}.json" in fault.message


def test_a_record_that_names_other_tissue(out, verify):
    edit(out / f"status/{ID}.json", lambda s: s["identities"].update(tissue="f" * 64))
    assert any("and has the identity of" in fault.message for fault in verify().faults)


def test_a_record_of_a_run_that_is_damaged(out, only):
    path = sorted(out.glob("runs/*/run.json"))[0]
    path.write_text("{")
    assert "it is no record of a run, or is damaged. Delete it." in only("record", "")


def test_a_failed_slide_is_no_fault(out, verify):
    def fail(status):
        status["state"] = "failed"
        status["outputs"]["png"] = "images/never-written"
        status["identities"]["coords"] = "0" * 64

    edit(out / f"status/{ID}.json", fail)
    assert verify().faults == []


# What dead workers leave, and what living ones do.


def in_a_child(code: str, *words: str) -> None:
    """Run code in a process that then kills itself."""
    script = f"import os, signal, sys\nfrom pathlib import Path\n{code}\nos.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", script, *words], check=False)
    assert done.returncode == -signal.SIGKILL


def test_leftovers_of_the_dead(out, verify):
    in_a_child(
        "from microtome.store.atomic import private_path\n"
        "private_path(Path(sys.argv[1])).write_text('half')\n"
        "(private_path(Path(sys.argv[2])) / 'features').mkdir(parents=True)\n",
        str(h5(out, "low/10x")),
        str(out / f"images/{ID}"),
    )
    private_path(h5(out)).write_text("mine")
    h5(out).with_name(".x.h5.0badcafe-1-00000000.tmp").write_text("another machine's")
    found = verify()
    assert [fault.kind for fault in found.faults] == ["leftover"] * 2
    assert all("Run the same command again" in fault.message for fault in found.faults)
    assert {fault.path.rpartition("/")[0] for fault in found.faults} == {
        "low/10x/patches/case 1",
        "images/case 1",
    }
    (note,) = found.notes
    assert note.startswith("1 private files (.tmp) belong to processes of other machines")


def test_a_claim_of_the_dead(out, only):
    in_a_child(
        "from microtome.store.claims import Claims\n"
        "from microtome.store.layout import OutputLayout\n"
        "claim = Claims(OutputLayout(Path(sys.argv[1])), 60).take(sys.argv[2])\n"
        "claim.begin()\n",
        str(out),
        ID,
    )
    told = only("claim")
    assert "is gone. Run the same command again" in told
    assert "the worker, process " in told


def test_a_claim_that_nobody_renews(out, verify):
    claim = Claims(OutputLayout(out), 60).take("b.svs")
    lease = out / ".claims/b.svs.lease"
    assert verify().running == ["b.svs"]
    old = time.time() - 61
    os.utime(lease, (old, old))
    (fault,) = verify().faults
    assert (fault.kind, fault.slide_id) == ("claim", "b.svs")
    claim.drop()
    assert verify().faults == []


def test_a_slide_in_work_is_left_out(out, verify):
    claim = Claims(OutputLayout(out), 60).take(ID)
    os.truncate(h5(out), 100)
    found = verify()
    assert found.faults == []
    assert found.running == [ID]
    assert found.notes == ["1 slides are being worked on and were left out."]
    claim.drop()
    assert verify().faults


def test_a_slide_that_is_finished_meanwhile_is_looked_at_again(out, monkeypatch):
    """As the file is new and its record old, once."""
    from microtome.store import verify as module

    looks = []
    record = out / f"status/{ID}.json"

    def check(self, view, paths):
        if view.slide_id != ID or view.tiling:
            return iter([])
        looks.append(view)
        if len(looks) > 1:
            return iter([(record, [])])
        os.utime(record, ns=(0, record.stat().st_mtime_ns + 10**9))
        return iter([(record, [self._fault("output", view, record, module.Wrong("half"))])])

    monkeypatch.setattr(module._Verifier, "_check", check)
    assert verify_output(out, get_registry()).faults == []
    assert len(looks) == 2
