"""Embeddings of patients: whose slides, in which order, without which, stored where."""

from __future__ import annotations

import json
import shutil

import bag_standins
import h5py
import numpy as np
import pytest
import zarr
from run_checks import states

from microtome.errors import ConfigError, InputError
from microtome.run.progress import SilentReporter
from microtome.testing import make_slide


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Make three slides, one of them broken, and a manifest of five of three patients."""
    folder = tmp_path_factory.mktemp("cohort")
    for number in range(3):
        make_slide(folder / f"s{number}.svs", size=(900, 700), seed=number)
    (folder / "bad.svs").write_bytes(b"II*\0 and nothing more")
    rows = ["P2,s1.svs", "P1,s0.svs", "P2,bad.svs", "P1,s2.svs", "P0,gone.svs"]
    (folder / "m.csv").write_text("\n".join(["case_id,slide_path", *rows]))
    (folder / "good.csv").write_text("patient_id,slide\nP1,s0.svs\nP1,s2.svs\n")
    return folder


@pytest.fixture(autouse=True)
def bags(plugins):
    """Register the stand-ins."""
    plugins.add(bag_standins.Plugins, "bag_standins", "microtome-bag-standins")


@pytest.fixture
def embed(go, cohort):
    """Run a manifest with nothing said of encoders and tiles."""

    def run(patient_encoder, manifest="good.csv", **options):
        given = {"tiler": {"grid": {}}, "encoder": []} | options
        return go(cohort / manifest, patient_encoder=patient_encoder, **given)

    return run


@pytest.fixture
def out(tmp_path):
    """Name the output."""
    return tmp_path / "out"


def _patient(out, name, encoder):
    with h5py.File(out / "patient_embeddings" / f"{name}.h5") as file:
        array = file[f"patient_features/{encoder}"]
        return array[:], dict(array.attrs)


class Told(SilentReporter):
    """Remembers notes."""

    def __init__(self):
        self.notes = []

    def note(self, text):
        """Remember it."""
        self.notes.append(text)


def test_patients_come_in_order_of_first_appearance_without_what_failed(embed, out):
    told = Told()
    result = embed(["of_nominal"], manifest="m.csv", reporter=told)
    assert [p.patient_id for p in result.patients] == ["P2", "P1", "P0"]
    second, first, none = result.patients
    assert (second.state, second.slides) == ("done", ("s1",))
    assert list(second.left_out) == ["bad"]
    assert (first.state, first.slides) == ("done", ("s0", "s2"))
    assert none.state == "failed"
    assert "there is no file" in none.error["message"]
    assert result.exit_code == 3
    assert any(note.startswith("patient P1: done, 2 slides in") for note in told.notes)
    embedding, attributes = _patient(out, "P2", "of_nominal")
    assert embedding.shape == (3,)
    assert json.loads(attributes["slides"]) == ["s1"]
    assert "bad" in json.loads(attributes["left_out"])
    record = json.loads(result.record.read_text())
    assert [p["patient_id"] for p in record["patients"]] == ["P2", "P1", "P0"]
    assert not (out / "patient_embeddings/P0.h5").exists()


def test_a_failed_slide_is_fatal_by_choice(embed):
    result = embed(["of_nominal"], manifest="m.csv", patient_failures="fail")
    assert [p.state for p in result.patients] == ["failed", "done", "failed"]
    assert "patient_failures=leave_out" in result.patients[0].error["message"]
    assert result.exit_code == 3


def test_the_embedding_is_what_the_encoder_makes_of_the_slides(embed, out):
    names = ["of_nominal", "of_tiles", "by_nominal", "over_slides"]
    assert embed(names).exit_code == 0
    features, sums = [], []
    for slide in ("s0", "s2"):
        with h5py.File(out / f"patches/{slide}.h5") as file:
            features.append(file["features/mean"][:])
            sums.append(file["slide_features/nominal"][:])
    for name in ("of_nominal", "by_nominal-nominal", "over_slides-nominal"):
        np.testing.assert_allclose(_patient(out, "P1", name)[0], np.mean(sums, 0), rtol=1e-6)
    tiles = np.concatenate(features).mean(0)
    np.testing.assert_allclose(_patient(out, "P1", "of_tiles")[0], tiles, rtol=1e-6)


def test_a_second_run_makes_nothing_and_another_encoder_is_added(embed, out):
    embed(["of_nominal"], writer=["hdf5", "zarr"])
    result = embed(["of_nominal"], writer=["hdf5", "zarr"])
    assert [p.state for p in result.patients] == ["reused"]
    assert states(result) == ["reused", "reused"]
    embed(["of_nominal", "of_tiles"], writer=["hdf5", "zarr"])
    stored = zarr.open_group(out / "patient_embeddings/P1.zarr", mode="r")["patient_features"]
    assert set(stored) == {"of_nominal", "of_tiles"}
    for name in ("of_nominal", "of_tiles"):
        np.testing.assert_array_equal(stored[name][:], _patient(out, "P1", name)[0])


def test_a_patient_with_another_slide_is_made_anew(embed, cohort, out):
    (cohort / "one.csv").write_text("patient_id,slide\nP1,s0.svs\n")
    embed(["of_nominal", "of_tiles"], manifest="one.csv")
    before, _ = _patient(out, "P1", "of_tiles")
    (patient,) = embed(["of_tiles"]).patients
    assert patient.state == "done"
    assert "its slides are others than before" in patient.warnings[0]
    after, attributes = _patient(out, "P1", "of_tiles")
    assert attributes["num_slides"] == 2
    assert not np.array_equal(before, after)
    assert _patient(out, "P1", "of_nominal")[1]["num_slides"] == 1  # nobody asked for it


def test_a_map_wins_over_the_manifest_and_names_no_stranger(embed):
    result = embed(["of_nominal"], patient_id_map={"s2": "P9"})
    assert [(p.patient_id, p.slides) for p in result.patients] == [("P1", ("s0",)), ("P9", ("s2",))]
    with pytest.raises(InputError, match="'s7'"):
        embed(["of_nominal"], patient_id_map={"s7": "P9"})


def test_slides_of_nobody_are_refused_before_work(go, cohort, out):
    with pytest.raises(InputError, match="patient_id"):
        go(cohort / "s0.svs", patient_encoder=["of_nominal"], encoder=[], tiler={"grid": {}})
    (cohort / "odd.csv").write_text("patient_id,slide\n../P1,s0.svs\n")
    with pytest.raises(ConfigError, match="patient_id"):
        go(cohort / "odd.csv", patient_encoder=["of_nominal"], encoder=[], tiler={"grid": {}})
    assert not list(out.rglob("*.h5"))


def test_one_bad_patient_does_not_stop_the_others(embed, monkeypatch):
    def encode(self, patient):
        if patient.patient_id == "P2":
            raise ZeroDivisionError("in a plugin")
        return np.ones(3, np.float32)

    monkeypatch.setattr(bag_standins.Together, "encode", encode)
    result = embed(["of_nominal"], manifest="m.csv")
    assert [p.state for p in result.patients] == ["failed", "done", "failed"]
    assert "ZeroDivisionError: in a plugin" in result.patients[0].error["message"]


def test_an_embedding_that_is_no_number_fails_the_patient(embed, monkeypatch):
    bad = np.array([1, np.nan, 3], np.float32)
    monkeypatch.setattr(bag_standins.Together, "encode", lambda self, patient: bad)
    (patient,) = embed(["of_nominal"]).patients
    assert "not finite" in patient.error["message"]


def test_an_interrupt_ends_the_run_and_keeps_what_is_done(embed, monkeypatch, out):
    def encode(self, patient):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bag_standins.Together, "encode", encode)
        with pytest.raises(KeyboardInterrupt):
            embed(["of_nominal"])
    assert not (out / "patient_embeddings").exists()
    (patient,) = embed(["of_nominal"]).patients
    assert patient.state == "done"


def test_too_many_tiles_for_the_memory_are_refused(embed):
    (patient,) = embed(["of_tiles"], bag_memory_gb=1e-9).patients
    assert "bag_memory_gb allows" in patient.error["message"]


def test_another_configuration_under_the_same_key_is_refused(embed, plugins, out):
    embed(["of_tiles"])
    path = out / "patient_embeddings/P1.h5"
    with h5py.File(path, "r+") as file:
        attributes = file["patient_features/of_tiles"].attrs
        fields = json.loads(attributes["identity_fields"])
        fields["patient_encoder"]["output_version"] = 0
        attributes["identity_fields"], attributes["identity"] = json.dumps(fields), "0" * 64
    (patient,) = embed(["of_tiles"]).patients
    assert "patient_encoder.output_version was 0 and is 1" in patient.error["message"]
    (patient,) = embed(["of_tiles"], force=True).patients
    assert patient.state == "done"


def test_verify_finds_a_damaged_patient(embed, out, capsys):
    from microtome.__main__ import main

    embed(["of_nominal"])
    assert main(["verify", str(out)]) == 0
    path = out / "patient_embeddings/P1.h5"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert main(["verify", str(out)]) != 0
    assert "P1.h5" in capsys.readouterr().out
    shutil.rmtree(out)
