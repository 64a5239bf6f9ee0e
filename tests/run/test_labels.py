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
from run_checks import states

from microtome.__main__ import main
from microtome.errors import ConfigError, InputError, MissingDependencyError
from microtome.plugin.registry import get_registry
from microtome.run.inputs.annotated import read_annotations
from microtome.run.inputs.tables import read_manifest
from microtome.run.labelling import LabelSettings
from microtome.run.planning.labels import label_fields
from microtome.run.settings import RunConfig
from microtome.slide.labels import LabelRule, group_key, is_area, label_tiles
from microtome.slide.types import SlideInfo
from microtome.store.verify import verify_output

GRID = {"grid": {"magnification": 20, "size": 128}}
LABELS = {"classes": {"tumor": ["Tumor", "metastases"]}}
SQUARE = ("Tumor", (256, 256, 1024, 1024))  # 3 × 3 tiles of 256 px at level 0, of 8 × 6


def asap(path, *objects):
    """Write rectangles as ASAP does: a group, and x, y, x, y."""
    path.parent.mkdir(exist_ok=True)
    lines = []
    for number, (group, (x, y, right, bottom)) in enumerate(objects):
        points = enumerate([(x, y), (right, y), (right, bottom), (x, bottom)])
        corners = "".join(f'<Coordinate Order="{i}" X="{a}" Y="{b}"/>' for i, (a, b) in points)
        lines.append(
            f'<Annotation Name="no. {number}" Type="Polygon" PartOfGroup="{group}">'
            f"<Coordinates>{corners}</Coordinates></Annotation>"
        )
    body = "".join(lines)
    path.write_text(
        f"<?xml version='1.0'?><ASAP_Annotations><Annotations>{body}</Annotations>"
        "</ASAP_Annotations>"
    )
    return path


@pytest.fixture
def ann(tmp_path):
    """Give a folder with the outlines of the slide."""
    asap(tmp_path / "ann/one.xml", SQUARE)
    return tmp_path / "ann"


@pytest.fixture
def label(go, slide, ann):
    """Run the slide with labels by the folder ``ann``."""

    def run(slides=slide, **options):
        given = {"segmenter": "none", "tiler": GRID, "annotations": ann}
        return go(slides, **(given | {"labels": LABELS} | options))

    return run


def read(path):
    """Give the labels of a stored slide by the place of its tiles, and its attributes."""
    with h5py.File(path) as file:
        label, share = file["columns/label"][:], file["columns/label_fraction"][:]
        assert (label.dtype, share.dtype) == (np.int16, np.float32)
        places = map(tuple, file["coords"][:, :2].tolist())
        return dict(zip(places, label.tolist(), strict=True)), dict(file.attrs)


def faults(out):
    """Verify an output to the last value."""
    return [str(fault.message) for fault in verify_output(out, get_registry()).faults]


def of_class(labels, number=1):
    return {place for place, label in labels.items() if label == number}


def square(x, y, right, bottom):
    return {(a, b) for a in range(x, right, 256) for b in range(y, bottom, 256)}


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


@pytest.mark.parametrize(
    ("missing", "wanted"), [("background", {0}), ("unlabelled", {-1}), ("fail", None)]
)
def test_a_slide_without_a_file(label, slide, tmp_path, missing, wanted, capsys):
    shutil.copy(slide, slide.with_name("two.svs"))
    result = label(slide.parent, task="coords", labels={**LABELS, "missing": missing})
    told = {
        "background": "all tiles of the others are normal",
        "unlabelled": "the others have no labels",
        "fail": "the others fail, as labels.missing=fail says",
    }
    assert f"labels normal, tumor: 1 of 2 slides have outlines; {told[missing]}" in result.notes
    assert len(of_class(read(tmp_path / "out/patches/one.h5")[0])) == 9
    if wanted is None:
        assert states(result) == ["done", "failed"]
        assert "two has no file of outlines in" in result.statuses[1].message
    else:
        labels, attributes = read(tmp_path / "out/patches/two.h5")
        assert set(labels.values()) == wanted
        assert attributes["annotation_path"] == ""
        assert faults(tmp_path / "out") == []


def test_groups_that_nothing_names_are_told(label, ann):
    asap(ann / "one.xml", SQUARE, ("Fat", (0, 0, 256, 256)), ("", (0, 0, 9, 9)))
    (status,) = label(task="coords").statuses
    assert status.warnings == (
        "outlines left aside, of groups that no class names: no group 1, Fat 1",
    )
    (status,) = label(task="coords", labels={**LABELS, "others": "exclude"}).statuses
    assert status.labels == {"normal": 38, "tumor": 9, "unlabelled": 1}
    (status,) = label(task="coords", labels={**LABELS, "others": "fail"}).statuses
    assert (status.state, status.stage) == ("failed", "labels")
    assert "outlines of groups that no class names: no group 1, Fat 1." in status.message


def test_a_misspelt_group_is_told(label, ann):
    asap(ann / "one.xml", ("Tumour", (0, 0, 256, 256)))
    (status,) = label(task="coords").statuses
    assert status.warnings == ("one.xml has no outline of Tumor, metastases: it has Tumour 1",)
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


def test_outlines_that_count_from_the_slide_s_bounds(label, tmp_path, ann, monkeypatch):
    monkeypatch.setattr(SlideInfo, "bounds", property(lambda _: (512, 256, 100, 100)))
    label(task="coords", labels={**LABELS, "origin": "bounds"})
    assert of_class(read(tmp_path / "out/patches/one.h5")[0]) == square(768, 512, 1536, 1280)


def test_a_manifest_names_the_file(label, slide, tmp_path):
    asap(tmp_path / "ann/other name.xml", SQUARE)
    table = tmp_path / "cohort.csv"
    table.write_text("slide,annotation_path\nslides/one.svs,ann/other name.xml\n")
    (entry,) = read_manifest(table)
    assert entry.annotation_path == tmp_path / "ann/other name.xml"
    (status,) = label(table, task="coords", annotations=None).statuses
    assert status.labels == {"normal": 39, "tumor": 9}
    result = label(table, task="coords", annotations=None, labels={}, force=True)
    assert any("1 annotation_path given are not looked at" in note for note in result.notes)
    assert states(result) == ["done"]
    table.write_text("slide,annotation\nslides/one.svs,ann/gone.xml\n")
    (status,) = label(table, task="coords", annotations=None, force=True).statuses
    assert status.state == "failed"
    assert f"There is no file annotation_path={tmp_path}/ann/gone.xml" in status.message


@pytest.mark.parametrize("name", ["one.XML", "one.svs.xml"])
def test_a_file_is_named_as_its_slide(label, ann, name):
    (ann / "one.xml").rename(ann / name)
    (status,) = label(task="coords").statuses
    assert status.labels["tumor"] == 9


def test_two_files_of_one_slide_and_files_of_none(label, ann):
    asap(ann / "another.xml", SQUARE)
    (ann / "one.xml").unlink()
    result = label(task="coords")
    assert f"{ann}: another.xml is named as no slide of this run." in result.notes
    for name in ("one.xml", "one.svs.xml"):
        asap(ann / name, SQUARE)
    (status,) = label(task="coords", force=True).statuses
    assert "one has several files of outlines, one.xml and one.svs.xml in" in status.message


def test_tiles_that_are_there_are_labelled_as_well(label, slide, tmp_path):
    label(task="coords")
    stored = {"stored": {"folder": str(tmp_path / "out/patches")}}
    bare = label(tiler=stored, output=tmp_path / "bare", annotations=None, labels={})
    assert bare.statuses[0].labels == {}  # those labels are the other output's, and may change
    (status,) = label(tiler=stored, output=tmp_path / "new").statuses
    assert status.labels == {"normal": 39, "tumor": 9}
    for name in ("bare", "new"):
        assert faults(tmp_path / name) == []


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


def test_what_labels_depend_on(tmp_path):
    file, registry = asap(tmp_path / "a.xml", SQUARE), get_registry()

    def fields(path=file, **options):
        settings = LabelSettings(classes=LABELS["classes"], **options)
        return label_fields(settings, path, registry)

    assert fields() == fields(missing="fail", required=True, min_fraction=0.7)
    assert fields() != fields(exclude=["Fat"])
    assert fields(rule="fraction") != fields(rule="fraction", min_fraction=0.7)
    assert fields(None) == fields(None, rule="fraction")
    assert fields(None) != fields(None, missing="unlabelled")
    with pytest.raises(InputError, match="cannot be read"):
        fields(tmp_path)


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
