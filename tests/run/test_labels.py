"""Labels of tiles in whole runs: what is stored, renewed, told and refused."""

from __future__ import annotations

import json
import pickle
import shutil
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import shapely
import zarr
from label_runs import GRID, LABELS, SQUARE, asap, faults, of_class, read, square
from run_checks import states

from microtome.__main__ import main
from microtome.errors import ConfigError, MissingDependencyError
from microtome.run.inputs.annotated import read_annotations
from microtome.run.labelling import LabelSettings
from microtome.run.settings import RunConfig
from microtome.slide.groups import group_key
from microtome.slide.labels import LabelRule, is_area, label_tiles


def test_labels_lie_beside_the_coordinates_in_every_store(label, ann, tmp_path):
    result = label(task="coords", writer=["hdf5", "zarr"])
    assert states(result) == ["done"]
    assert result.statuses[0].labels == {"normal": 39, "tumor": 9}
    labels, attributes = read(tmp_path / "out/patches/one.h5")
    assert of_class(labels) == square(256, 256, 1024, 1024)
    assert json.loads(attributes["classes"]) == ["normal", "tumor"]
    assert attributes["annotation_path"] == str(ann / "one.xml")
    group = zarr.open_group(tmp_path / "out/patches/one.zarr", mode="r")
    np.testing.assert_array_equal(group["columns/label"][:], [*labels.values()])
    assert group.attrs["labels_identity"] == attributes["labels_identity"]
    assert faults(tmp_path / "out") == []


def test_a_second_run_reuses_and_reads_no_outline(label, ann, monkeypatch):
    label()
    (ann / "one.xml").touch()
    monkeypatch.setattr("microtome.run.slides.labels.read_annotations", None)
    result = label()
    assert states(result) == ["reused"]
    assert result.statuses[0].labels == {"normal": 39, "tumor": 9}
    assert states(label(labels={**LABELS, "missing": "fail"})) == ["reused"]


def test_a_changed_file_renews_the_columns_alone(label, ann, tmp_path, monkeypatch):
    options = {
        "writer": ["hdf5", "zarr"],
        "encoder": ["mean"],
        "inspector": {"blur": {}},
    }
    label(**options)
    out = tmp_path / "out/patches"
    with h5py.File(out / "one.h5") as file:
        before = {name: file[name][:] for name in ("coords", "features/mean", "columns/reason")}
        scores = {n: c[:] for n, c in file["columns"].items() if n.startswith("blur")}
    token = zarr.open_group(out / "one.zarr")["features/mean"].attrs["microtome_token"]
    asap(ann / "one.xml", ("Tumor", (0, 0, 512, 256)))
    monkeypatch.setattr("microtome.run.slides.pixels.BatchReader", None)
    result = label(**options)
    (status,) = result.statuses
    assert (status.state, status.labels) == ("done", {"normal": 46, "tumor": 2})
    assert status.warnings == (f"labels made anew, all else kept: {ann / 'one.xml'} has changed",)
    assert of_class(read(out / "one.h5")[0]) == square(0, 0, 512, 256)
    with h5py.File(out / "one.h5") as file:
        for name, values in before.items():
            np.testing.assert_array_equal(file[name][:], values)
        assert scores
        for name, values in scores.items():
            np.testing.assert_array_equal(file[f"columns/{name}"][:], values)
    group = zarr.open_group(out / "one.zarr")
    assert group["features/mean"].attrs["microtome_token"] == token
    assert group["columns/label"][:].sum() == 2
    assert faults(tmp_path / "out") == []
    assert states(label(**options)) == ["reused"]


def test_another_rule_renews_them_and_says_what_was_changed(label, ann):
    label(task="coords")
    (status,) = label(task="coords", labels={**LABELS, "rule": "fraction"}).statuses
    assert status.state == "done"
    (told,) = status.warnings
    assert told.endswith(
        "kept: labels.rule was 'centre' and is 'fraction'; labels.min_fraction was its default "
        "and is 0.5"
    )


def test_a_file_that_comes_or_goes_is_told(label, ann):
    label(task="coords")
    (ann / "one.xml").rename(ann / "away.txt")
    (status,) = label(task="coords").statuses
    assert status.labels == {"normal": 48, "tumor": 0}
    assert status.warnings == (
        "labels made anew, all else kept: it has no file of outlines any more",
    )
    (ann / "away.txt").rename(ann / "one.xml")
    (status,) = label(task="coords").statuses
    assert status.labels == {"normal": 39, "tumor": 9}
    assert status.warnings == (f"labels made anew, all else kept: {ann / 'one.xml'} is new",)


def test_labels_come_to_features_and_features_to_labels(label, go, slide, tmp_path):
    path = tmp_path / "out/patches/one.h5"
    plain = {"segmenter": "none", "tiler": GRID}
    assert states(go(slide, **plain)) == ["done"]
    with h5py.File(path) as file:
        features = file["features/mean"][:]
    assert states(label()) == ["done"]
    labels, attributes = read(path)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["features/mean"][:], features)
    assert states(go(slide, **plain, encoder=["mean", "handcrafted"])) == ["done"]
    assert read(path)[0] == labels
    assert states(go(slide, **plain)) == ["reused"]
    shutil.rmtree(tmp_path / "out")
    label(task="coords")
    assert states(go(slide, **plain)) == ["done"]
    assert read(path)[0] == labels
    assert read(path)[1]["labels_identity"] == attributes["labels_identity"]


def test_labels_are_of_the_tiles_that_a_filter_kept(label, ann, tmp_path):
    filtered = {"filter": {"enabled": True, "white_drop_from": 0.5}}
    (status,) = label(**filtered).statuses
    labels, _ = read(tmp_path / "out/patches/one.h5")
    assert 0 < len(labels) < 48
    assert of_class(labels) == square(256, 256, 1024, 1024) & labels.keys()
    assert status.labels == {"normal": len(labels) - status.labels["tumor"],
                             "tumor": len(of_class(labels))}  # fmt: skip
    asap(ann / "one.xml", ("Tumor", (0, 0, 2048, 1536)))
    (status,) = label(**filtered).statuses
    assert status.labels == {"normal": 0, "tumor": len(labels)}
    assert set(read(tmp_path / "out/patches/one.h5")[0].values()) == {1}


def test_force_makes_all_anew(label, tmp_path):
    label()
    assert states(label(force=True)) == ["done"]
    assert len(of_class(read(tmp_path / "out/patches/one.h5")[0])) == 9


def test_groups_that_nothing_names_are_told(label, ann):
    asap(ann / "one.xml", SQUARE, ("Fat", (0, 0, 256, 256)), ("", (0, 0, 9, 9)))
    (status,) = label(task="coords").statuses
    assert status.warnings == (
        "outlines left aside, of groups that no class names: 1 of no group, 1 of 'Fat'",
    )
    (status,) = label(task="coords", labels={**LABELS, "others": "exclude"}).statuses
    assert status.labels == {"normal": 38, "tumor": 9, "unlabelled": 1}
    (status,) = label(task="coords", labels={**LABELS, "others": "fail"}).statuses
    assert (status.state, status.stage) == ("failed", "labels")
    assert "outlines of groups that no class names: 1 of no group, 1 of 'Fat'." in status.message


def test_a_misspelt_group_is_told(label, ann):
    asap(ann / "one.xml", ("Tumour", (0, 0, 256, 256)))
    (status,) = label(task="coords").statuses
    assert status.warnings == (
        "one.xml has no outline of 'Tumor', 'metastases': it has 1 of 'Tumour'",
    )
    assert status.labels == {"normal": 48, "tumor": 0}


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda path: path.write_text("<ASAP_Annotations><Annotations>"), "one.xml"),
        (lambda path: asap(path, ("Tumor", (9000, 0, 9500, 90))), "lies outside of the slide"),
    ],
)
def test_a_bad_file_fails_its_slide_alone(label, slide, ann, tmp_path, spoil, told):
    shutil.copy(slide, slide.with_name("two.svs"))
    asap(ann / "two.xml", SQUARE)
    spoil(ann / "one.xml")
    result = label(slide.parent, task="coords")
    assert states(result) == ["failed", "done"]
    assert result.statuses[0].stage == "labels"
    assert told in result.statuses[0].message
    assert not (tmp_path / "out/patches/one.h5").exists()


def test_tiles_that_are_there_are_labelled_as_well(label, slide, tmp_path):
    label(task="coords")
    stored = {"stored": {"folder": str(tmp_path / "out/patches")}}
    bare = label(tiler=stored, output=tmp_path / "bare", annotations=None, labels={})
    assert bare.statuses[0].labels == {}  # those labels are the other output's, and may change
    (status,) = label(tiler=stored, output=tmp_path / "new").statuses
    assert status.labels == {"normal": 39, "tumor": 9}
    for name in ("bare", "new"):
        assert faults(tmp_path / name) == []


def shares(path):
    with h5py.File(path) as file:
        return file["columns/label_fraction"][:].tolist()


def test_tiles_that_are_read_above_level_0_have_their_size_there(label, ann, tmp_path):
    asap(ann / "one.xml", ("Tumor", (200, 200, 1024, 1024)))
    label(task="coords", tiler={"grid": {"magnification": 10, "size": 128}})
    path = tmp_path / "out/patches/one.h5"
    with h5py.File(path) as file:
        assert set(map(tuple, file["coords"][:, 2:].tolist())) == {(128, 128, 1)}
    assert of_class(read(path)[0]) == {(0, 0), (512, 0), (0, 512), (512, 512)}
    assert shares(path)[0] == pytest.approx((312 / 512) ** 2)


@pytest.mark.parametrize("rule", ["centre", "fraction"])
def test_what_is_off_the_slide_is_no_part_of_a_tile(label, ann, tmp_path, rule):
    asap(ann / "one.xml", ("Tumor", (0, 0, 2048, 1536)))
    grid = {"grid": {"magnification": 20, "size": 300, "edge": "pad", "min_tissue": 0.1}}
    label(task="coords", tiler=grid, labels={**LABELS, "rule": rule})
    path = tmp_path / "out/patches/one.h5"
    labels, _ = read(path)
    assert (1800, 1200) in labels
    assert set(labels.values()) == {1}
    assert set(shares(path)) == {1.0}


@pytest.mark.parametrize("missing", [False, True])
def test_a_tile_that_is_wholly_off_the_slide_has_no_label(label, ann, tmp_path, missing):
    asap(ann / "one.xml", ("Tumor", (0, 0, 2048, 1536)))
    if missing:
        (ann / "one.xml").rename(ann / "another.xml")
    regions = {"magnification": 20, "size": 400, "edge": "pad", "region_tiles": 2}
    label(task="coords", tiler={"grid": regions})
    path = tmp_path / "out/patches/one.h5"
    labels, _ = read(path)
    off = {(x, y) for x, y in labels if x >= 2048 or y >= 1536}
    assert off
    assert of_class(labels, -1) == off
    assert of_class(labels, 0 if missing else 1) == labels.keys() - off
    assert set(shares(path)) == {0.0, 1.0}
    assert faults(tmp_path / "out") == []


@pytest.mark.parametrize("folder", ["asap", "qupath_geojson", "."])
def test_shares_of_real_outlines_add_up_to_their_area(shared_data, folder):
    read_any = False
    for path in sorted((shared_data / "annotations" / folder).glob("*.*")):
        if path.suffix == ".ndpa":  # counts from the centre of a slide that is not there
            continue
        drawn = [each for each in read_annotations(path) if is_area(each)]
        if not drawn:
            continue
        area = shapely.union_all([each.geometry for each in drawn])
        x, y, right, bottom = area.bounds
        corners = np.stack(np.meshgrid(np.arange(50), np.arange(50)), axis=-1).reshape(-1, 2)
        side = np.array([right - x, bottom - y]) / 50
        low = corners * side + np.array([x, y])
        boxes = np.concatenate([low, low + side], axis=1)
        groups = {group_key(each.group): 1 for each in drawn}
        rule = LabelRule(classes=("normal", "any"), groups=groups, centre=False, min_fraction=0)
        labels = label_tiles(boxes, drawn, rule)
        covered = labels.fraction[labels.label == 1].astype(np.float64).sum() * side.prod()
        assert covered == pytest.approx(area.area, rel=1e-5), path
        read_any = True
    assert read_any


# What is refused before a slide is opened.


def command(*words):
    return main([*map(str, words), "engine=inline", "task=index", "output=out"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "labels.classes names none beside the background"),
        (["annotations=ann"], "labels.classes names none beside the background"),
        (["labels.classes.tumor=[Tumor]"], "labels.classes says what outlines mean"),
        (["labels.classes.tumor=a", "annotations=gone"], "There is no file or folder annot"),
        (["labels.classes.tumor=a", "annotations=ann/one.xml"], "is one slide's file"),
        (["labels.classes.tumor=a", "labels.exclude=[A]"], "The group 'A' is in both"),
        (["labels.classes={a/b: c}"], "'a/b' is no name of a class"),
        (["labels.min_fraction=2"], "labels.min_fraction=2 must be from 0 to 1"),
        (["labels.rule=most"], "labels.rule=most"),
    ],
)
def test_a_run_that_cannot_label_is_refused(slide, ann, monkeypatch, capsys, words, told):
    monkeypatch.chdir(ann.parent)
    shutil.copy(slide, slide.with_name("two.svs"))
    assert command(slide.parent, *words) in (1, 2)
    assert told in capsys.readouterr().err
    assert not (ann.parent / "out/patches").exists()


def test_a_command_labels_and_tells_a_class_of_no_tile(slide, ann, monkeypatch, capsys):
    monkeypatch.chdir(ann.parent)
    words = ["annotations=ann", "segmenter=none", "labels.classes.tumor=[Tumor]"]
    words += ["labels.classes.necrosis=Necrosis", "labels.rule=fraction", "tiler.size=128"]
    idle = [word for word in words if "rule" not in word] + ["labels.min_fraction=0.3"]
    assert main(["plan", str(slide), "output=out", "task=index", *idle]) == 0
    assert "labels.min_fraction=0.3 changes nothing: labels.rule=ce" in capsys.readouterr().out
    assert main(["plan", str(slide), "output=out", "task=index", *words]) == 0
    assert "labels normal, tumor, necrosis: 1 of 1 slides have" in capsys.readouterr().out
    assert command(slide, *words) == 0
    out = capsys.readouterr().out
    assert "tiles by label: normal 39, tumor 9, necrosis 0\nno tile is necrosis\n" in out
    assert json.loads(read("out/patches/one.h5")[1]["classes"]) == ["normal", "tumor", "necrosis"]


def test_a_sweep_over_labels_would_write_the_same_columns(slide, ann, monkeypatch, capsys):
    monkeypatch.chdir(ann.parent)
    words = ["annotations=ann", "labels.classes.tumor=[Tumor]", "labels.rule=centre,fraction"]
    assert command(slide, "-m", *words) == 2
    assert "All jobs of a sweep over labels.rule would write" in capsys.readouterr().err


def test_without_shapely_the_sentence_says_what_to_install(label, ann, monkeypatch):
    monkeypatch.setattr("microtome.run.planning.labels.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'microtome\[annotations\]'"):
        label()


def test_a_run_of_labels_goes_to_other_processes(tmp_path):
    settings = LabelSettings(classes={"tumor": "Tumor", "fat": ["Fat"]}, rule="fraction")
    config = RunConfig(slides=("a.svs",), output=tmp_path, labels=settings)
    assert pickle.loads(pickle.dumps(config)).labels == settings
    assert settings.names == ("normal", "tumor", "fat")
    with pytest.raises(ConfigError, match="rule=most is not one of centre, fraction"):
        LabelSettings(rule="most")


def test_verify_finds_spoilt_labels(label, tmp_path):
    label(task="coords")
    path = tmp_path / "out/patches/one.h5"

    def spoil(change):
        with h5py.File(path, "r+") as file:
            change(SimpleNamespace(columns=file["columns"], attrs=file.attrs))
        told = " ".join(faults(tmp_path / "out"))
        label(task="coords", force=True)
        return told

    def put(name, row, value):
        def change(slide):
            slide.columns[name][row] = value

        return change

    assert "holds labels beyond its 2 classes" in spoil(put("label", 3, 2))
    assert "shares that are not from 0 to 1" in spoil(put("label_fraction", 3, 1.5))
    assert "columns/label is missing" in spoil(lambda s: s.columns.__delitem__("label"))
    assert "does not name the classes" in spoil(lambda s: s.attrs.__delitem__("classes"))
    changed = spoil(lambda s: s.attrs.__setitem__("labels_identity", "0" * 64))
    assert "its labels are not those that its slide's record names" in changed
    assert "its labels_identity is not the hash of its labels_fields" in changed
    assert faults(tmp_path / "out") == []
