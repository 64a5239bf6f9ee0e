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

from microtome.errors import ConfigError, EncoderError, InputError, OutputError
from microtome.run.patients import stage, work
from microtome.run.progress import SilentReporter
from microtome.store.claims import Claims
from microtome.store.layout import OutputLayout
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


@pytest.fixture
def changing(cohort, tmp_path):
    """Give a copy of P1's slides that may be spoilt, with a manifest."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in ("s0.svs", "s2.svs", "good.csv"):
        shutil.copy(cohort / name, folder / name)
    return folder


def _same_bytes(out, go_on):
    before = (out / "patient_embeddings/P1.h5").read_bytes()
    result = go_on()
    assert (out / "patient_embeddings/P1.h5").read_bytes() == before
    return result


@pytest.mark.parametrize("policy", ["stem", "relpath"])
def test_a_patient_gets_no_namesake_of_a_missing_slide(embed, cohort, policy):
    (cohort / "sub").mkdir(exist_ok=True)
    shutil.copy(cohort / "s1.svs", cohort / "sub/a.svs")
    rows = ["P1,gone/a.svs", "P1,s0.svs", "P2,sub/a.svs"]
    (cohort / "namesake.csv").write_text("\n".join(["patient_id,slide", *rows]))
    result = embed(["of_nominal"], manifest="namesake.csv", slide_id=policy)
    first, second = result.patients
    if policy == "stem":
        assert (first.slides, list(first.left_out)) == (("s0",), ["a"])
        assert second.state == "failed"
        assert "gone/a.svs" in second.error["message"]
        assert "Use slide_id=relpath" in second.error["message"]
    else:
        assert (first.slides, list(first.left_out)) == (("s0.svs",), ["gone/a.svs"])
        assert (second.state, second.slides) == ("done", ("sub/a.svs",))


def test_patients_whose_slides_are_missing_keep_their_place(embed, cohort):
    rows = ["P3,gone.svs", "P1,s0.svs", "P2,s2.svs", "P1,lost.svs"]
    (cohort / "late.csv").write_text("\n".join(["patient_id,slide", *rows]))
    result = embed(["of_nominal"], manifest="late.csv")
    assert [p.patient_id for p in result.patients] == ["P3", "P1", "P2"]


def test_rows_in_another_order_are_the_same_patient(embed, cohort, out):
    embed(["of_nominal", "of_tiles"])
    (cohort / "turned.csv").write_text("patient_id,slide\nP1,s2.svs\nP1,s0.svs\n")
    run = lambda: embed(["of_nominal", "of_tiles"], manifest="turned.csv")  # noqa: E731
    (patient,) = _same_bytes(out, run).patients
    assert (patient.state, patient.slides, patient.warnings) == ("reused", ("s0", "s2"), ())


@pytest.mark.parametrize("how", ["unreadable", "not asked for"])
def test_an_embedding_is_not_replaced_by_one_of_fewer_slides(embed, changing, out, how):
    manifest = changing / "good.csv"
    embed(["of_nominal"], manifest=manifest)
    if how == "unreadable":
        (changing / "s2.svs").write_bytes(b"II*\0 and nothing more")
    else:
        manifest.write_text("patient_id,slide\nP1,s0.svs\n")
    result = _same_bytes(out, lambda: embed(["of_nominal"], manifest=manifest))
    (patient,) = result.patients
    assert (patient.state, result.exit_code) == ("failed", 3)
    assert "is of 2 slides, and would lose s2" in patient.error["message"]
    assert "force=true" in patient.error["message"]
    (patient,) = embed(["of_nominal"], manifest=manifest, force=True).patients
    assert (patient.state, patient.slides) == ("done", ("s0",))


def test_another_name_of_a_slide_is_no_loss(embed, changing, cohort):
    embed(["of_nominal"], manifest=changing / "good.csv")
    shutil.copy(cohort / "s1.svs", changing / "s1.svs")
    rows = ["P1,s0.svs,first", "P1,s2.svs,second", "P1,s1.svs,third"]
    (changing / "named.csv").write_text("\n".join(["patient_id,slide,slide_id", *rows]))
    (patient,) = embed(["of_nominal"], manifest=changing / "named.csv").patients
    assert (patient.state, patient.slides) == ("done", ("first", "second", "third"))


def test_a_slide_that_is_gone_is_taken_from_before(embed, changing, out):
    manifest = changing / "good.csv"
    embed(["of_nominal", "of_tiles"], manifest=manifest)
    (changing / "s2.svs").unlink()
    again = lambda: embed(["of_nominal", "of_tiles"], manifest=manifest)  # noqa: E731
    result = _same_bytes(out, again)
    assert states(result) == ["reused", "failed"]
    (patient,) = result.patients
    assert (patient.state, patient.slides, dict(patient.left_out)) == ("reused", ("s0", "s2"), {})
    (patient,) = embed(["over_slides"], slide_encoder=["nominal"], manifest=manifest).patients
    assert (patient.state, patient.slides) == ("done", ("s0", "s2"))


@pytest.mark.parametrize("what", ["tiles", "tissue", "features", "embedding", "slide"])
def test_what_is_there_of_something_else_is_not_taken(embed, changing, out, what):
    manifest = changing / "good.csv"
    embed(["of_nominal"], manifest=manifest)
    shutil.rmtree(out / "patient_embeddings")
    (changing / "s2.svs").unlink()
    options = {}
    if what == "tiles":
        options = {"tiler": {"grid": {"min_tissue": 0.9}}}
    elif what == "tissue":
        options = {"tissue": {"min_region_um2": 5000}}
    elif what == "features":
        options = {"feature_dtype": "float16"}
    elif what == "embedding":
        options = {"slide_encoder": {"nominal": {"times": 2.0}}}
    else:
        (changing / "sub").mkdir()
        manifest.write_text("patient_id,slide\nP1,s0.svs\nP1,sub/s2.svs\n")
    name = "over_slides" if what == "embedding" else "of_nominal"
    (patient,) = embed([name], manifest=manifest, **options).patients
    assert "s2" not in patient.slides
    assert "there is no file" in patient.left_out["s2"]


def test_a_slide_counts_by_what_is_stored_of_it(embed, out):
    """Of one whose slide encoder failed the tiles are there."""
    result = embed(["of_tiles", "over_slides"], slide_encoder=["raises"])
    assert states(result) == ["failed", "failed"]
    (patient,) = result.patients
    assert patient.state == "failed"
    assert "none of its slides has an embedding (s0: " in patient.error["message"]
    assert list(patient.identities) == ["of_tiles"]
    assert _patient(out, "P1", "of_tiles")[1]["num_slides"] == 2


def test_a_patient_encoder_that_fails_keeps_no_other_from_its_work(embed, monkeypatch, out):
    def encode(self, patient):
        if patient.slide_embeddings is not None:
            raise ZeroDivisionError("in a plugin")
        return np.ones(3, np.float32)

    monkeypatch.setattr(bag_standins.Together, "encode", encode)
    (patient,) = embed(["of_nominal", "of_tiles"]).patients
    assert patient.state == "failed"
    assert "in a plugin" in patient.error["message"]
    assert _patient(out, "P1", "of_tiles")[0].tolist() == [1, 1, 1]


def test_a_full_disk_ends_the_run(embed, monkeypatch):
    def publish(*_, **__):
        raise OutputError("The output is full.")

    monkeypatch.setattr(work, "publish_slide", publish)
    with pytest.raises(OutputError, match="is full"):
        embed(["of_nominal"])


def test_the_identity_holds_the_contract_and_what_embeds(embed, out):
    embed(["of_tiles", "by_nominal"])
    of_tiles, by_nominal = (
        json.loads(_patient(out, "P1", name)[1]["identity_fields"])
        for name in ("of_tiles", "by_nominal-nominal")
    )
    wanted = {"encoder": "mean", "patch_size": 128, "magnification": 20, "dim": 3}
    assert [wanted.items() <= need.items() for need in of_tiles["contract"]] == [True]
    assert by_nominal["contract"] == [of_tiles["contract"][0] | {"coords": "level0"}]
    assert by_nominal["patient_encoder"]["slide_encoder"]["plugin"] == "nominal"


def test_a_patient_that_another_worker_embeds_is_left_to_it(embed, out):
    claims = Claims(OutputLayout(out, "patient_embeddings"), 60)
    claim = claims.take("P1")
    result = embed(["of_nominal"], claims={"wait": False, "seconds": 60})
    assert [p.state for p in result.patients] == ["held"]
    assert result.exit_code == 4
    assert not (out / "patient_embeddings/P1.h5").exists()
    claim.end()
    (patient,) = embed(["of_nominal"], claims={"wait": False, "seconds": 60}).patients
    assert patient.state == "done"
    assert not [path for path in out.rglob(".claims/**/*") if path.is_file()]


def test_a_patient_of_another_worker_is_waited_for(embed, out, monkeypatch, cohort):
    claims = Claims(OutputLayout(out, "patient_embeddings"), 60)
    claim = claims.take("P1")
    monkeypatch.setattr(stage.time, "sleep", lambda seconds: claim.end())
    (cohort / "two.csv").write_text("patient_id,slide\nP1,s0.svs\nP2,s2.svs\n")
    told = Told()
    options = {"manifest": "two.csv", "claims": {"seconds": 60}, "reporter": told}
    result = embed(["of_nominal"], **options)
    assert [(p.patient_id, p.state) for p in result.patients] == [("P1", "done"), ("P2", "done")]
    assert [note[:10] for note in told.notes if note.startswith("patient")] == [
        "patient P2",
        "patient P1",
    ]


@pytest.mark.parametrize("whose", ["of_nominal", "by_nominal"])
def test_missing_weights_are_told_before_any_slide_is_opened(embed, monkeypatch, out, whose):
    def load(self, device, precision):
        raise EncoderError("There are no weights.")

    owner = bag_standins.Sum if whose == "by_nominal" else bag_standins.Together
    monkeypatch.setattr(owner, "load", load)
    with pytest.raises(EncoderError, match="no weights"):
        embed([whose])
    assert not (out / "status").exists()


def test_no_weights_are_needed_where_all_is_there(embed, monkeypatch):
    def load(self, device, precision):
        raise EncoderError("There are no weights.")

    embed(["of_tiles"])
    monkeypatch.setattr(bag_standins.Together, "load", load)
    assert embed(["of_tiles"]).patients[0].state == "reused"
    with pytest.raises(EncoderError, match="no weights"):
        embed(["of_tiles"], force=True)


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
    assert not [path for path in (out / "patient_embeddings").rglob("*") if path.is_file()]
    (patient,) = embed(["of_nominal"]).patients
    assert patient.state == "done"


def test_too_many_tiles_for_the_memory_are_refused(embed):
    (patient,) = embed(["of_tiles"], bag_memory_gb=1e-9).patients
    assert "bag_memory_gb allows" in patient.error["message"]


def _tiles(out):
    counts = []
    for slide in ("s0", "s2"):
        with h5py.File(out / f"patches/{slide}.h5") as file:
            counts.append(len(file["coords"]))
    return counts


def test_memory_is_what_an_encoder_says_of_all_slides(embed, monkeypatch, out):
    asked = []

    def memory(self, slides):
        asked.append(slides)
        return sum(tiles for tiles, _ in slides) << 30

    monkeypatch.setattr(bag_standins.Together, "memory", memory, raising=False)
    embed(["of_tiles"], bag_memory_gb=1.0)
    counts = _tiles(out)
    assert [tiles for tiles, _ in asked[0]] == counts
    assert all(len(extent) == 2 and min(extent) > 1 for _, extent in asked[0])
    (patient,) = embed(["of_tiles"], bag_memory_gb=sum(counts) - 0.1).patients
    assert f"{sum(counts)} tiles of 2 slides" in patient.error["message"]
    assert embed(["of_tiles"], bag_memory_gb=sum(counts) + 0.1).patients[0].state == "done"


def test_a_slide_encoder_is_asked_for_the_bag_that_it_is_given(embed, monkeypatch, out):
    memory = lambda self, tiles, extent: tiles << 30  # noqa: E731
    monkeypatch.setattr(bag_standins.Sum, "memory", memory, raising=False)
    monkeypatch.setattr(bag_standins.Together, "memory", lambda self, slides: 0, raising=False)
    embed(["by_nominal"], bag_memory_gb=1.0)
    largest = max(_tiles(out))
    (patient,) = embed(["by_nominal"], bag_memory_gb=largest - 0.1).patients
    assert f"{largest} tiles in a box" in patient.error["message"]
    (patient,) = embed(["by_nominal"], bag_memory_gb=largest + 0.1).patients
    assert patient.state == "done"


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
