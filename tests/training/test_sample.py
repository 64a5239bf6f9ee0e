"""Samples: which tiles are drawn, what is left of it, and runs on a sample's tiles."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_checks import files
from tile_tables import make_tiles

from microtome.__main__ import main
from microtome.errors import (
    ConfigError,
    GeometryError,
    IdentityError,
    InputError,
    StoreError,
    TaskError,
)
from microtome.plugin.options import configure
from microtome.plugin.registry import get_registry
from microtome.slide.types import SlideRef
from microtome.store.folders import aside_path
from microtome.testing import make_info
from microtome_training.options.sample import SampleConfig
from microtome_training.sampling.drawing import draw
from microtome_training.sampling.files import read_sample
from microtome_training.sampling.task import SampleTask, name_sample
from microtome_training.stores import read_tiles

TUMOUR = {"slide_01", "slide_02", "slide_04", "test_01"}


def drawn(tiles, hard=(), **options):
    """Give the keys that are drawn."""
    keys = tiles.keys()
    mask = np.isin(np.array(keys), list(hard))
    return [keys[row] for row in draw(tiles, SampleConfig(**options), mask)]


def counts(keys, tiles):
    """Count drawn keys by slide and label."""
    label = dict(zip(tiles.keys(), tiles.label.tolist(), strict=True))
    return Counter((key.split("_x")[0], label[key]) for key in keys)


def sampled(job, name):
    return read_sample(job, name).tiles(job)


def test_the_background_is_drawn_in_proportion():
    tiles = make_tiles({"a": (40, 5), "b": (60, 0)})
    found = counts(drawn(tiles, negatives_per_positive=3.0), tiles)
    assert found["a", 1] == 5
    assert found["a", 0] + found["b", 0] == 15
    assert len(drawn(tiles, negatives_per_positive=None)) == 105
    assert len(drawn(tiles, negatives_per_positive=100.0)) == 105


def test_all_but_the_background_is_positive():
    tiles = make_tiles({"a": (50, 3, 4)}, classes=("normal", "tumor", "necrosis"))
    assert counts(drawn(tiles, negatives_per_positive=1.0), tiles) == {
        ("a", 0): 7,
        ("a", 1): 3,
        ("a", 2): 4,
    }


def test_caps_are_of_each_class_in_each_group():
    names = {("a", "p"): (9, 6), ("b", "p"): (9, 6), ("c", "q"): (9, 1)}
    tiles = make_tiles(names)
    slide = counts(drawn(tiles, per_slide=4, negatives_per_positive=None), tiles)
    assert slide == {(s, label): n for s in "abc" for label, n in ((0, 4), (1, 4))} | {("c", 1): 1}
    patient = counts(drawn(tiles, per_patient=5, negatives_per_positive=None), tiles)
    assert patient["a", 1] + patient["b", 1] == patient["a", 0] + patient["b", 0] == 5
    assert (patient["c", 0], patient["c", 1]) == (5, 1)
    of_class = counts(drawn(tiles, per_class=8, negatives_per_positive=None), tiles)
    assert sum(n for (_, label), n in of_class.items() if label) == 8
    assert of_class.total() == 16


def test_tiles_without_a_label_or_of_little_are_never_drawn():
    tiles = make_tiles({"a": (4, 4)})
    tiles.label[:2], tiles.fraction[5] = -1, 0.4
    found = drawn(tiles, negatives_per_positive=None, min_fraction=0.5)
    assert found == [tiles.keys()[row] for row in (2, 3, 4, 6, 7)]


def test_a_cap_favours_no_slide_in_what_comes_after():
    """Were all rules to rank alike, what is left of the large slide would win the ratio."""
    tiles = make_tiles({"large": (4000, 0), "small": (200, 100)})
    found = counts(drawn(tiles, per_slide=100, negatives_per_positive=1.0), tiles)
    assert 30 < found["small", 0] < 70
    assert found["small", 0] + found["large", 0] == 100


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.permutations(["a", "b", "c"]), st.integers(1, 20))
def test_within_a_slide_no_other_slide_has_a_say(seed, order, most):
    sizes = {"a": (30, 10), "b": (7, 0), "c": (15, 15)}
    rules = {"seed": seed, "per_slide": most, "negatives_per_positive": None}
    together = drawn(make_tiles({name: sizes[name] for name in order}), **rules)
    apart = [key for name in "abc" for key in drawn(make_tiles({name: sizes[name]}), **rules)]
    assert together == apart


def test_another_seed_draws_others():
    tiles = make_tiles({"a": (200, 20)})
    assert drawn(tiles) == drawn(tiles)
    assert set(drawn(tiles, seed=1)) != set(drawn(tiles))


def test_hard_tiles_come_first_up_to_their_share():
    tiles = make_tiles({"a": (100, 10)})
    hard = tiles.keys()[:20]

    def share(**options):
        found = drawn(tiles, hard, **options)
        return len(found) - 10, len(set(hard) & set(found))

    assert share(negatives_per_positive=2.0) == (20, 20)
    assert share(negatives_per_positive=2.0, hard_share=0.5) == (20, 10)
    assert share(negatives_per_positive=2.0, hard_share=0) == (20, 0)
    # Of 95, 80 are others: the rest are hard ones, whatever their share.
    assert share(negatives_per_positive=9.5, hard_share=0.1) == (95, 15)


@pytest.fixture
def sample(output, make_job):
    """Draw a sample in this process: `sample(*slides, force=True, name=…)`; gives its file."""

    def draw_one(*slides, force=False, **options):
        task = SampleTask(SampleConfig(**options))
        return Path(task.run(make_job(output, *slides, force=force)).record["sample"])

    return draw_one


def test_the_task_writes_a_sample_and_leaves_the_index(output, cohort, make_job, capsys):
    before = files(output)
    words = ("task=sample", f"output={output}", "name=few", "negatives_per_positive=1")
    assert main([str(cohort.manifest), *words]) == 0
    told = capsys.readouterr().out
    after = files(output)
    made = {path.as_posix() for path in after.keys() - before.keys()}
    assert made == {"samples/few.parquet", "samples/few.json"}
    assert {path: after[path] for path in before} == before
    table = pq.read_table(output / "samples" / "few.parquet").to_pydict()
    record = json.loads((output / "samples" / "few.json").read_text())
    tumour = record["classes"]["tumor"]
    assert tumour["tiles"] == tumour["drawn"] == record["classes"]["normal"]["drawn"] > 0
    assert tumour["slides"] == len(TUMOUR)
    assert record["unlabelled"] > 0
    assert record["patients"] == 4
    assert f"{len(table['key'])} tiles, written" in told
    everything = read_tiles(make_job(output))
    labels = dict(zip(everything.keys(), everything.label.tolist(), strict=True))
    assert [labels[key] for key in table["key"]] == table["label"]
    assert set(np.array(table["slide_id"])[np.array(table["class"]) == "tumor"]) == TUMOUR
    patients = {s.slide_id: s.patient_id for s in cohort.slides}
    assert [patients[name] for name in table["slide_id"]] == table["patient_id"]


def test_a_sample_is_read_as_tiles_of_its_stores(output, cohort, make_job, sample):
    path = sample(cohort.manifest, name="few", per_slide=3)
    assert path == output / "samples" / "few.parquet"
    tiles, everything = sampled(make_job(output), "few"), read_tiles(make_job(output))
    keys = tiles.keys()
    assert keys == pq.read_table(path)["key"].to_pylist()
    assert keys == [key for key in list(everything.keys()) if key in set(keys)]
    assert [s.patient_id for s in tiles.slides] == [s.patient_id for s in cohort.slides]
    assert tiles.sample["name"] == "few"
    one = sampled(make_job(output, cohort.slides[1].path), "few")
    assert [slide.slide_id for slide in one.slides] == ["slide_02"]
    assert sampled(make_job(output), str(path)).keys() == keys
    with pytest.raises(InputError, match=r"other\.parquet is not there\. There are few\."):
        sampled(make_job(output), "other")


def test_the_same_sample_is_reused_and_another_is_refused(output, sample, make_job, monkeypatch):
    sample()
    first = files(output)
    again = SampleTask(SampleConfig()).run(make_job(output))
    assert again.record["reused"]
    assert "is there already" in again.lines[-1]
    with pytest.raises(IdentityError, match=r"sample\.seed was its default and is 1"):
        sample(seed=1)
    assert files(output) == first
    sample(seed=1, force=True)
    assert files(output) != first
    # Killed between the two files of another one, which was forced: drawn again.
    with monkeypatch.context() as patch:
        patch.setattr("microtome_training.sampling.task.write_json", None)
        with pytest.raises(TypeError):
            sample(seed=1, force=True)
    assert files(output) != first
    sample()
    assert files(output) == first
    # Killed between its two files, or the record spoilt: drawn again.
    record = output / "samples" / "sample.json"
    for spoil in (Path.unlink, lambda path: path.write_text("{")):
        spoil(record)
        sample()
        assert files(output) == first


def test_a_store_that_lies_aside_is_put_back_before_it_is_looked_for(cohort, tmp_path):
    """As a process leaves it that was killed where a file system cannot exchange two names."""
    index = ("task=index", "labels.classes.tumor=[Tumor]", "tiler.size=128", "tiler.mpp=0.5",
             "writer=zarr", "tiler.name=fine", "engine=inline")  # fmt: skip
    assert main([str(cohort.manifest), f"output={tmp_path}", *index]) == 0
    first = tmp_path / "fine/patches/slide_01.zarr"
    first.rename(aside_path(first))
    assert main(["task=sample", f"output={tmp_path}"]) == 0
    drawn = pq.read_table(tmp_path / "fine/samples/sample.parquet")
    assert "slide_01" in drawn.column("slide_id").to_pylist()
    assert first.is_dir()


def test_a_sweep_names_its_samples(output):
    assert main(["-m", "task=sample", f"output={output}", "sample.seed=1,2"]) == 0
    assert {path.name for path in (output / "samples").glob("*.parquet")} == {
        "seed=1.parquet",
        "seed=2.parquet",
    }


def relabel(path, change):
    """Change the labels of a store in place."""
    with h5py.File(path, "r+") as file:
        file["columns/label"][:] = change(file["columns/label"][:])


def test_a_sample_of_other_labels_is_stale(output, make_job, sample):
    sample()
    relabel(output / "patches/slide_01.h5", lambda label: np.where(label == 1, 0, label))
    with pytest.raises(TaskError, match=r"labels of slide_01 have changed.*sample\.name=sample"):
        sampled(make_job(output), "sample")
    with pytest.raises(IdentityError, match="drawn otherwise"):
        sample()


def test_a_sample_of_other_tiles_is_stale(output, make_job, sample):
    sample()
    with h5py.File(output / "patches/slide_01.h5", "r+") as file:
        file.attrs["identity"] = "0" * 64
    with pytest.raises(TaskError, match="drawn from other tiles of slide_01"):
        sampled(make_job(output), "sample")
    (output / "patches/slide_01.h5").unlink()
    with pytest.raises(TaskError, match="holds no tiles of slide_01"):
        sampled(make_job(output), "sample")


def test_what_cannot_be_drawn_is_refused(output, cohort, sample):
    with pytest.raises(TaskError, match="no tile of the class tumor on 1 slides"):
        sample(cohort["slide_03"].path)
    for path in (output / "patches").glob("*.h5"):
        with h5py.File(path, "r+") as file:
            file.attrs["patient_id"] = ""
    with pytest.raises(TaskError, match=r"per_patient caps patients.*column patient_id"):
        sample(per_patient=3)
    for path in (output / "patches").glob("*.h5"):
        with h5py.File(path, "r+") as file:
            file["columns/label_fraction"][:] = 0.5
    with pytest.raises(TaskError, match=r"class normal with sample\.min_fraction=0\.9"):
        sample(min_fraction=0.9)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"negatives_per_positive": 0.0}, "must be above 0"),
        ({"per_slide": 0}, "per_slide=0 must be at least 1"),
        ({"hard_share": 1.5}, "hard_share=1.5 is a share"),
        ({"hard_share": 0.5}, r"there is no list: name it with sample\.hard_file=FILE"),
        ({"min_fraction": -0.1}, "is a share"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, told):
    with pytest.raises(ConfigError, match=told):
        SampleTask(SampleConfig(**options))


def test_a_name_names_a_file():
    assert name_sample("auto", "") == "sample"
    assert name_sample("auto", "sample.seed=1,sample.per_slide=3") == "seed=1,per_slide=3"
    with pytest.raises(ConfigError, match="cannot name a file"):
        name_sample("../x", "")


@pytest.mark.parametrize("kind", ["keys.csv", "places.csv", "places.parquet"])
def test_a_list_of_hard_tiles_is_taken_first(output, make_job, sample, tmp_path, kind):
    tiles = read_tiles(make_job(output))
    hard = tiles.take(np.flatnonzero(tiles.label == 0)[:7])
    names = [tiles.slides[number].slide_id for number in hard.slide]
    places = {"slide_id": names, "x": hard.coords[:, 0], "y": hard.coords[:, 1]}
    columns = {"key": hard.keys()} if kind == "keys.csv" else places
    path = tmp_path / kind
    if kind.endswith(".csv"):
        rows = [",".join(map(str, row)) for row in zip(*columns.values(), strict=True)]
        path.write_text("\n".join([",".join(columns), *rows]))
    else:
        pq.write_table(pa.table(columns), path)
    made = sample(hard_file=str(path), negatives_per_positive=0.3, name="hard")
    found = pq.read_table(made)["key"].to_pylist()
    assert set(hard.keys()) <= set(found)
    assert json.loads((output / "samples/hard.json").read_text())["hard"] == 7


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("key\nslide_01_x1_y1\n", "1 of its 1 tiles are not there, slide_01_x1_y1 for one"),
        ("name\na\n", "no column 'key' .*columns are name"),
        ("slide_id,x\na,1\n", "has the columns slide_id, x; a list"),
        ("key\na,b\n", "line 2: 2 fields for 1 columns"),
        (None, "is not there"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(sample, tmp_path, text, told):
    path = tmp_path / "hard.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=told):
        sample(hard_file=str(path))


def test_a_sample_is_given_by_its_path(output, cohort, capsys):
    assert place(output, "sample", cohort.manifest) == 2
    told = capsys.readouterr().err
    assert "tiler.sample_file=" in told
    assert "OUTPUT/samples/sample.parquet" in told


def place(output, path, *words):
    """Run on the tiles of a sample."""
    tiler = ("tiler=sampled", f"tiler.sample_file={path}", "tiler.name=balanced")
    return main([*map(str, words), f"output={output}", *tiler, "encoder=[]", "engine=inline"])


def test_a_run_places_the_tiles_of_a_sample(output, cohort, make_job, sample, capsys):
    path = sample(cohort.manifest, per_slide=4, negatives_per_positive=1.0)
    assert place(output, path, cohort.manifest, "writer=[hdf5,patches]") == 0
    assert "not looked at" not in capsys.readouterr().err
    there = read_tiles(make_job(output, tiling="balanced"))
    drawn = sampled(make_job(output), "sample")
    assert there.keys() == drawn.keys()
    assert there.label.tolist() == drawn.label.tolist()
    assert there.fraction.tolist() == drawn.fraction.tolist()
    assert there.classes == drawn.classes
    first = files(output / "balanced")
    assert len([name for name in first if name.stem == "slide_01"]) == 2
    assert main(["verify", str(output)]) == 0
    other = sample(cohort.manifest, per_slide=3, name="other")
    capsys.readouterr()
    assert place(output, other, cohort.slides[0].path, "mpp=0.5") == 3
    assert "made by another configuration: tiles.sample changed" in capsys.readouterr().err
    assert files(output / "balanced") == first


def test_a_tiler_is_given_a_sample_of_its_slides(sample, cohort, tmp_path):
    def plan(ref, path):
        spec = get_registry().find("tiler", "sampled").spec
        tiler = get_registry().create("tiler", "sampled", configure(spec, sample_file=str(path)))
        return tiler.for_slide(ref).plan(make_info(size=(1024, 896), levels=(1, 4)), None)

    first, second = (SlideRef(path=s.path, slide_id=s.slide_id) for s in cohort.slides[:2])
    path = sample(first.path)
    assert len(plan(first, path)) > 0
    with pytest.raises(GeometryError, match="was drawn without slide_02"):
        plan(second, path)
    with pytest.raises(GeometryError, match="drawn from another slide named slide_01"):
        plan(replace(second, slide_id="slide_01"), path)
    with pytest.raises(ConfigError, match=r"is given no tiler\.sample_file"):
        plan(first, "")
    with pytest.raises(ConfigError, match=r"no\.parquet is not there"):
        plan(first, tmp_path / "no.parquet")
    plain = tmp_path / "plain.parquet"
    pq.write_table(pq.read_table(path).replace_schema_metadata({}), plain)
    with pytest.raises(StoreError, match="is not a sample that task=sample wrote"):
        plan(first, plain)
