"""Whose a slide is: what a store says follows what runs say."""

from __future__ import annotations

import h5py
import pytest
import zarr
from label_runs import faults

from microtome.run.slides.production import Production

READ = {
    "hdf5": (lambda out: out / "patches/one.h5", h5py.File),
    "zarr": (lambda out: out / "patches/one.zarr", zarr.open_group),
}


@pytest.fixture
def manifest(tmp_path, slide):
    def write(patient):
        path = tmp_path / "slides.csv"
        path.write_text(f"slide,patient_id\n{slide},{patient}\n")
        return path

    return write


def stored(out, writer):
    path, opened = READ[writer]
    file = opened(path(out), mode="r")
    features = file["features/mean"][:]
    return file.attrs.get("patient_id"), features.tobytes(), dict(file.attrs)["identity"]


@pytest.mark.parametrize("writer", READ)
def test_a_corrected_patient_is_written_and_all_else_kept(go, manifest, tmp_path, writer):
    go(manifest("P1"), writer=writer)
    before = stored(tmp_path / "out", writer)
    assert before[0] == "P1"
    again = go(manifest("P1"), writer=writer)
    assert again.statuses[0].state == "reused"
    result = go(manifest("P2"), writer=writer)
    assert result.statuses[0].state == "done"
    assert result.statuses[0].warnings == ("of patient P2 now, and no longer of P1; all else kept",)
    assert stored(tmp_path / "out", writer) == ("P2", *before[1:])
    assert faults(tmp_path / "out") == []
    assert go(manifest("P2"), writer=writer).statuses[0].state == "reused"


def test_a_run_that_knows_no_patient_takes_none_away(go, slide, manifest, tmp_path):
    go(slide)
    assert stored(tmp_path / "out", "hdf5")[0] is None
    told = go(manifest("P1")).statuses[0]
    assert (told.state, told.warnings) == ("done", ())  # which is no correction
    assert go(slide).statuses[0].state == "reused"
    assert stored(tmp_path / "out", "hdf5")[0] == "P1"


def test_what_others_published_meanwhile_is_corrected_too(go, manifest, tmp_path, monkeypatch):
    go(manifest("P1"))
    plain = Production._publish

    def later(self, holding, content):
        with h5py.File(holding.path, "r+") as file:
            file.attrs["patient_id"] = "P3"
        plain(self, holding, content)

    monkeypatch.setattr(Production, "_publish", later)
    go(manifest("P2"))
    assert stored(tmp_path / "out", "hdf5")[0] == "P2"
