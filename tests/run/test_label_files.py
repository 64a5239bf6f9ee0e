"""Files of outlines in whole runs: which is whose, what is read of them, what they are told by."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import ModuleType

import pytest
from label_runs import LABELS, SQUARE, asap, faults, of_class, read, square
from run_checks import states

from microtome.__main__ import main
from microtome.errors import AnnotationError, InputError
from microtome.plugin import AnnotationSpec, hookimpl
from microtome.plugin.registry import get_registry
from microtome.run.inputs import annotated
from microtome.run.inputs.annotated import list_annotations, read_annotations
from microtome.run.inputs.tables import read_manifest
from microtome.run.labelling import LabelSettings
from microtome.run.planning.labels import label_fields
from microtome.slide.types import SlideInfo


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


# One file, one slide.


@pytest.fixture
def twins(slide):
    """Give a folder with two slides of one name in folders of their own."""
    for folder in "ab":
        (slide.parent / folder).mkdir()
        shutil.copy(slide, slide.parent / folder / "x.svs")
    slide.unlink()
    return slide.parent


NESTED = {"task": "coords", "slide_id": "relpath", "recursive": True}


def test_a_file_that_is_named_as_two_slides_is_refused(label, twins, ann, tmp_path):
    (ann / "one.xml").rename(ann / "x.xml")
    with pytest.raises(InputError) as caught:
        label(twins, **NESTED)
    assert str(caught.value).startswith(f"{ann}/x.xml is named as both a/x.svs and b/x.svs, and")
    assert f"by its slide id ({ann}/b/x.svs.xml), or in a manifest" in str(caught.value)
    assert not (tmp_path / "out/patches").exists()


def test_files_by_slide_id_are_each_slide_s_own(label, twins, ann):
    asap(ann / "a/x.xml", SQUARE)
    asap(ann / "x.xml", ("Tumor", (0, 0, 512, 256)))  # of b/x, since a/x has its own
    first, second = label(twins, **NESTED).statuses
    assert (first.labels["tumor"], second.labels["tumor"]) == (9, 2)


def test_a_manifest_may_give_two_slides_one_file(label, twins, ann, tmp_path):
    (tmp_path / "cohort.csv").write_text(
        "slide,slide_id,annotation_path\n"
        "slides/a/x.svs,a,ann/one.xml\nslides/b/x.svs,b,ann/one.xml\n"
    )
    result = label(tmp_path / "cohort.csv", task="coords", annotations=None)
    assert [status.labels["tumor"] for status in result.statuses] == [9, 9]


# A file that changes.


def test_a_file_that_is_changed_before_it_is_read_fails_its_slide(label, ann, tmp_path):
    def change_first(path, *rest):
        asap(ann / "one.xml", ("Tumor", (0, 0, 512, 256)))
        return read_annotations(path, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("microtome.run.slides.labels.read_annotations", change_first)
        (status,) = label(task="coords").statuses
    assert (status.state, status.stage) == ("failed", "labels")
    assert status.message.startswith(f"{ann}/one.xml was changed while its slide was worked on.")
    assert not (tmp_path / "out/patches/one.h5").exists()
    (status,) = label(task="coords").statuses
    assert (status.state, status.labels["tumor"]) == ("done", 2)
    assert faults(tmp_path / "out") == []


@pytest.mark.usefixtures("quick_cache")
def test_a_slide_that_is_far_away_is_fetched_again_for_its_labels(label, slide, ann, tmp_path):
    pytest.importorskip("fsspec")
    url, near = slide.as_uri(), tmp_path / "near"
    options = {"task": "coords", "staging": {"cache": str(near)}}
    assert states(label(url, **options)) == ["done"]
    shutil.rmtree(near)
    assert states(label(url, **options)) == ["reused"]
    assert not [*near.glob("*/*.svs")]
    asap(ann / "one.xml", ("Tumor", (0, 0, 512, 256)))
    (status,) = label(url, **options).statuses
    assert (status.state, status.labels) == ("done", {"normal": 46, "tumor": 2})


# Which format reads it.


def fields_of(path, registry=None):
    settings = LabelSettings(classes=LABELS["classes"])
    return label_fields(settings, path, registry or get_registry())


def test_the_format_that_recognises_a_file_is_part_of_its_identity(tmp_path):
    for name in ("a.xml", "a.txt"):  # whatever its name
        fields = fields_of(asap(tmp_path / "ann" / name, SQUARE))
        assert fields["format"] == {"plugin": "asap", "output_version": 1}
    (tmp_path / "b.xml").write_text("<svg/>")
    with pytest.raises(AnnotationError, match="is no file of annotations"):
        fields_of(tmp_path / "b.xml")


class Other:
    def recognises(self, head):
        return False

    def read(self, path, slide=None):
        raise AssertionError(path)


def test_another_format_of_the_same_extension_renews_no_label(plugins, tmp_path, monkeypatch):
    @hookimpl
    def microtome_annotations():
        yield AnnotationSpec(
            name="aaa",
            target=":Other",
            summary="Another's",
            extensions=(".xml",),
            tool="Another",
        )

    path = asap(tmp_path / "ann/a.xml", SQUARE)
    before = fields_of(path)
    module = ModuleType("another_format")
    module.microtome_annotations, module.Other = microtome_annotations, Other
    monkeypatch.setitem(sys.modules, "another_format", module)
    plugins.add(module, "another_format", "another")
    assert not plugins.broken
    assert "aaa" in [entry.spec.name for entry in plugins.entries("annotation")]
    assert fields_of(path, plugins) == before


def test_a_format_that_reads_otherwise_renews_the_labels(label, monkeypatch):
    label(task="coords")
    real = annotated.recognise_format
    monkeypatch.setattr(
        "microtome.run.planning.labels.recognise_format",
        lambda *given: replace(real(*given), output_version=2),
    )
    (status,) = label(task="coords").statuses
    assert status.state == "done"
    assert status.warnings == (
        "labels made anew, all else kept: format.output_version was 1 and is 2",
    )


# Bounds, repairs, writers.


def test_bounds_that_no_reader_names_are_told(label, tmp_path):
    counted = {"task": "coords", "labels": {**LABELS, "origin": "bounds"}}
    (status,) = label(**counted).statuses
    (told,) = status.warnings
    assert told.startswith(f"labels.origin=bounds: the reader {status.reader} names no bounds")
    assert of_class(read(tmp_path / "out/patches/one.h5")[0]) == square(256, 256, 1024, 1024)


def test_the_shift_is_part_of_the_labels_identity(label, tmp_path, monkeypatch):
    counted = {"task": "coords", "labels": {**LABELS, "origin": "bounds"}}
    label(**counted)
    monkeypatch.setattr(SlideInfo, "bounds", property(lambda _: (512, 256, 100, 100)))
    (status,) = label(**counted).statuses
    assert status.state == "done"
    (told,) = status.warnings
    assert told.startswith("labels made anew, all else kept: shift was ")
    labels, attributes = read(tmp_path / "out/patches/one.h5")
    assert json.loads(attributes["labels_fields"])["shift"] == [512, 256]
    assert of_class(labels) == square(768, 512, 1536, 1280)


def test_outlines_that_were_repaired_are_told(label, ann):
    asap(ann / "one.xml", SQUARE, ("Fat", (0, 0, 9, 9)), *[SQUARE] * 4)
    text = (ann / "one.xml").read_text()
    # Two corners change places: the outline crosses itself.
    crossed = text.replace('Order="1"', 'Order="?"').replace('Order="2"', 'Order="1"')
    (ann / "one.xml").write_text(crossed.replace('Order="?"', 'Order="2"'))
    told = [w for w in label(task="coords").statuses[0].warnings if "repaired" in w]
    assert len(told) == 1
    assert told[0].startswith("5 outlines repaired (line 1: Self-intersection")
    assert told[0].endswith("; and 2 more)")


def test_labels_that_no_writer_keeps_are_told(label):
    told = "labels are counted and stored nowhere: writer=[png] keeps none."
    result = label(encoder=[], writer=["png"])
    assert sum(note.startswith(told) for note in result.notes) == 1
    for writers in (["png", "hdf5"], ["imagefolder"]):
        result = label(encoder=[], writer=writers, force=True)
        assert not any("stored nowhere" in note for note in result.notes)


# The folder.


@pytest.mark.parametrize("call", ["stat", "scandir"])
def test_a_folder_that_cannot_be_looked_into_is_told(slide, ann, monkeypatch, capsys, call):
    monkeypatch.chdir(ann.parent)
    owner, real = (Path, Path.stat) if call == "stat" else (os, os.scandir)

    def refuse(path, *given, **named):
        if Path(path).name == "ann":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *given, **named)

    monkeypatch.setattr(owner, call, refuse)
    words = ["task=index", "output=out", "annotations=ann", "labels.classes.tumor=[Tumor]"]
    assert main([str(slide), *words, "engine=inline"]) in (1, 2)
    err = capsys.readouterr().err
    assert re.search(r"ann cannot be (read|listed): Permission denied\.", err)
    assert "interpolation" not in err
    assert not (ann.parent / "out/patches").exists()


@pytest.fixture
def listed(monkeypatch):
    """Count the folders that are listed."""
    listed, real = [], annotated._list

    def counting(folder, extensions):
        listed.append(folder)
        return real(folder, extensions)

    monkeypatch.setattr(annotated, "_listed", {})
    monkeypatch.setattr(annotated, "_list", counting)
    return listed


def make_old(folder, seconds=100):
    then = time.time() - seconds
    os.utime(folder, (then, then))


def test_a_folder_is_listed_once_for_all_slides(label, slide, ann, listed):
    for name in "abcd":
        shutil.copy(slide, slide.with_name(f"{name}.svs"))
    make_old(ann)
    assert states(label(slide.parent, task="coords")) == ["done"] * 5
    assert listed == [ann]


def test_a_folder_that_has_changed_is_listed_anew(ann, listed, monkeypatch):
    def there():
        return sorted(list_annotations(ann, get_registry()))

    make_old(ann)
    assert there() == there() == ["one"]
    asap(ann / "two.xml", SQUARE)
    make_old(ann, 50)
    assert there() == there() == ["one", "two"]
    assert len(listed) == 2
    # Some file systems tell of no change.
    asap(ann / "three.xml", SQUARE)
    before = ann.stat()
    (ann / "one.xml").unlink()
    os.utime(ann, ns=(before.st_atime_ns, before.st_mtime_ns))
    make_old(ann, 50)
    clock = count(time.monotonic() + 3600)
    monkeypatch.setattr(annotated.time, "monotonic", lambda: next(clock))
    assert there() == ["three", "two"]


def test_a_folder_that_changed_just_now_may_change_again(ann, listed):
    assert sorted(list_annotations(ann, get_registry())) == ["one"]
    before = ann.stat()
    asap(ann / "two.xml", SQUARE)
    os.utime(ann, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert sorted(list_annotations(ann, get_registry())) == ["one", "two"]


def test_a_folder_that_is_not_there_holds_nothing(tmp_path):
    assert list_annotations(tmp_path / "gone", get_registry()) == {}
