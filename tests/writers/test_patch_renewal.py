"""Patch stores over several runs: found again, made anew, told of where they are left."""

from __future__ import annotations

import json
import shutil

import pytest
from writers.patch_runs import (
    ALL,
    CLASSES,
    DRAWN,
    STORES,
    TILING,
    draw,
    labels_of,
    make,
    open_patches,
    outline,
    place,
    run,
)

from microtome.__main__ import main


def test_a_second_run_reuses_all_and_verify_finds_nothing(written, capsys):
    before = {path: path.stat().st_mtime_ns for path in (written / "out").rglob("*.*")}
    assert run(written, written / "out", writer=f"{ALL[:-1]},png]") == 0
    assert "2 reused" in capsys.readouterr().out
    kept = {
        path: time for path, time in before.items() if path.is_file() and "status" not in path.parts
    }
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert main(["verify", str(written / "out")]) == 0


@pytest.mark.parametrize("store", STORES)
def test_it_is_known_again_without_the_other_writers(slide, store, capsys):
    words = {"writer": f"writer={store}"}
    for state in ("done", "reused"):
        assert run(slide, slide / "out", **words) == 0
        said = capsys.readouterr()
        assert f"1 {state}" in said.out
    assert "have no label" not in said.err
    record = json.loads((slide / "out/status/a.svs.json").read_text())
    assert "tiles by label: normal " in said.out
    assert record["labels"]["unlabelled"] == 2
    assert record["tiles"] == len(open_patches(slide / "out", store)) + 2  # two are excluded
    assert main(["verify", str(slide / "out")]) == 0


def test_reused_slides_are_counted_by_label_beside_those_that_are_done(tmp_path, capsys):
    out = make(tmp_path) / "out"
    counted = []
    for _ in range(2):
        assert run(tmp_path, out, writer="writer=lmdb") == 0
        told = capsys.readouterr().out
        counted.append(next(line for line in told.splitlines() if line.startswith("tiles by")))
        place(out, "lmdb").unlink()
    assert "1 done, 1 reused" in told
    assert counted[0] == counted[1]


def test_where_labels_are_stored_nowhere_it_is_said_of_how_many_slides(tmp_path, capsys):
    out = make(tmp_path) / "out"
    assert run(tmp_path, out, writer="writer=png") == 0
    assert "tiles by label: normal" in capsys.readouterr().out
    shutil.rmtree(place(out, "png"))
    assert run(tmp_path, out, writer="writer=png") == 0
    assert "tiles by label (1 of 2 slides): normal" in capsys.readouterr().out


def test_tiles_without_a_label_are_left_out_and_told(slide, capsys):
    assert run(slide, slide / "out") == 0
    assert "tiles have no label and are not in imagefolder, lmdb, patches, webdataset" in (
        capsys.readouterr().err
    )


def test_an_edited_annotation_renews_the_stores(slide, capsys):
    out = slide / "out"
    assert run(slide, out) == 0
    assert (out / "imagefolder/images/tumor/a.svs").is_dir()
    draw(slide / "drawn", "a.svs", outline("Necrosis", 120, 120, 200, 100))
    capsys.readouterr()
    assert run(slide, out) == 0
    assert "1 done" in capsys.readouterr().out
    labels = labels_of(out, "a.svs")
    for store in STORES:
        patches = open_patches(out, store)
        assert patches.labels.tolist() == list(labels.values())
        assert set(labels.values()) == {0, 2}
    assert sorted(p.name for p in (out / "imagefolder/images").iterdir()) == ["necrosis", "normal"]
    assert main(["verify", str(out)]) == 0


def test_an_annotation_that_labels_no_tile_otherwise_renews_nothing(slide):
    out = slide / "out"
    assert run(slide, out) == 0
    before = {store: place(out, store).stat().st_mtime_ns for store in STORES}
    draw(slide / "drawn", "a.svs", *DRAWN["a.svs"], outline("Tumor", 130, 130, 9, 9))
    assert run(slide, out) == 0
    assert {store: place(out, store).stat().st_mtime_ns for store in STORES} == before


def test_another_tiling_is_refused_as_ever_and_replaced_by_force(slide, capsys):
    out, words = slide / "out", {"writer": "writer=imagefolder"}
    assert run(slide, out, **words) == 0
    assert run(slide, out, "tiler.step=32", **words) == 3
    assert "was made by another configuration: " in capsys.readouterr().err
    assert run(slide, out, "tiler.size=128", "force=true", **words) == 0
    with open_patches(out, "imagefolder") as patches:
        assert patches.read([0]).shape == (1, 128, 128, 3)
        there = list((out / "imagefolder/images").rglob("*.png"))
        assert len(there) == len(patches)
    assert main(["verify", str(out)]) == 0


def test_without_labels_it_is_refused_before_any_work(slide, capsys):
    words = [str(slide / "slides"), f"output={slide / 'out'}", "engine=inline", *TILING]
    assert main([*words, "writer=lmdb"]) == 2
    told = capsys.readouterr().err
    assert "writer=lmdb stores tiles with their labels, and labels.classes is not given" in told
    assert "annotation_path, also where the output is labelled already" in told
    assert not (slide / "out").exists()
    assert main([*words, *CLASSES, "writer=lmdb"]) == 2
    assert "annotations=FOLDER" in capsys.readouterr().err


def test_tiles_that_were_stored_without_labels_fail_their_slide(slide, capsys):
    assert main([str(slide / "slides"), f"output={slide / 'out'}", "engine=inline", *TILING]) == 0
    again = ["tiler=stored", f"tiler.folder={slide / 'out/patches'}", "encoder=[]", "writer=lmdb"]
    words = [str(slide / "slides"), f"output={slide / 'new'}", "engine=inline", *again]
    assert main(words) == 3
    assert "nothing labels those of a" in capsys.readouterr().err
    assert not (slide / "new/lmdb/a.lmdb").exists()


def test_a_class_of_another_name_renews_the_stores(slide):
    out = slide / "out"
    assert run(slide, out) == 0
    before = open_patches(out, "lmdb").labels.tolist()
    assert run(slide, out, classes=["labels.classes.cancer=[Tumor]", *CLASSES[1:]]) == 0
    for store in STORES:
        assert "cancer" in open_patches(out, store).classes
    assert main(["verify", str(out)]) == 0
    assert open_patches(out, "lmdb").labels.tolist() == before


STALE = {
    "an outline": ([outline("Necrosis", 120, 120, 200, 100)], CLASSES, "tiles have another label"),
    "a name": (DRAWN["a.svs"], ["labels.classes.cancer=[Tumor]", *CLASSES[1:]], "its classes are"),
}


@pytest.mark.parametrize("what", STALE)
def test_stores_that_a_run_leaves_with_labels_of_before_are_told(slide, capsys, what):
    drawn, classes, told = STALE[what]
    out = slide / "out"
    assert run(slide, out, writer="writer=[hdf5,imagefolder,lmdb]") == 0
    given = [str(slide / "slides"), f"output={out}", "engine=inline", *TILING]
    given += ["slide_id=relpath", f"annotations={slide / 'drawn'}", *classes]
    draw(slide / "drawn", "a.svs", *drawn)
    capsys.readouterr()
    for _ in range(2):  # also where the labels are those that are there
        assert main([*given, "task=coords"]) == 0
        said = "".join(capsys.readouterr())
        for store in ("imagefolder", "lmdb"):
            path = place(out, store)
            assert f"{path} was left with labels of before: renew it with writer={store}" in said
    assert main(["verify", str(out)]) == 1
    said = capsys.readouterr().out
    assert said.count("its labels are not those of") == 2
    assert told in said
    assert "Run again with writer=lmdb and the same annotations" in said
    assert main([*given, "encoder=[]", "writer=[hdf5,imagefolder,lmdb]"]) == 0
    assert "labels of before" not in "".join(capsys.readouterr())
    assert main(["verify", str(out)]) == 0


def test_what_the_last_run_wrote_is_right_and_the_tiles_that_it_left_are_not(slide, capsys):
    out = slide / "out"
    assert run(slide, out, writer="writer=[hdf5,lmdb]") == 0
    draw(slide / "drawn", "a.svs", outline("Necrosis", 120, 120, 200, 100))
    capsys.readouterr()
    assert run(slide, out, writer="writer=lmdb") == 0
    assert "renew it with writer=hdf5" in "".join(capsys.readouterr())
    assert main(["verify", str(out)]) == 1
    assert "Run again with writer=hdf5" in capsys.readouterr().out
