"""The tiles of an output as one table."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest
from tile_tables import make_tiles, of_slide, tiled

from microtome.__main__ import main
from microtome.errors import InputError, TaskError
from microtome.plugin.registry import get_registry
from microtome_training.reading import require_features
from microtome_training.stores import read_stores, read_tiles, root
from microtome_training.tiles import join


def test_the_table_is_what_the_stores_hold(labelled, cohort, make_job):
    tiles = read_tiles(make_job(labelled))
    assert [slide.slide_id for slide in tiles.slides] == [s.slide_id for s in cohort.slides]
    assert tiles.classes == ("normal", "tumor")
    for number, slide in enumerate(tiles.slides):
        mine = tiles.slide == number
        with h5py.File(slide.store) as file:
            assert np.array_equal(tiles.coords[mine], file["coords"][:])
            assert np.array_equal(tiles.label[mine], file["columns/label"][:])
            assert np.array_equal(tiles.fraction[mine], file["columns/label_fraction"][:])
            assert slide.identity == file.attrs["identity"]
        assert np.array_equal(tiles.row[mine], np.arange(mine.sum()))
        assert slide.mpp == 0.5
        assert slide.ref.path == cohort.slides[number].path
        assert slide.fingerprint
    assert {s.slide_id for s, n in zip(tiles.slides, tiles.positives(), strict=True) if n} == {
        s.slide_id for s in cohort.slides if s.tumour
    }


def test_patients_are_those_that_the_run_of_the_tiles_was_told(labelled, cohort, make_job):
    whose = [slide.patient_id for slide in cohort.slides]
    for named in ((), (cohort.manifest,), (cohort.slides_folder,)):
        tiles = read_tiles(make_job(labelled, *named))
        assert [slide.patient_id for slide in tiles.slides] == whose


def test_a_manifest_says_better_whose_slides_are(labelled, cohort, make_job, tmp_path):
    rows = cohort.manifest.read_text("utf-8").replace("patient_01", "somebody")
    corrected = tmp_path / "cohort.csv"
    corrected.write_text(rows.replace("slides/", f"{cohort.slides_folder}/"), "utf-8")
    corrected.write_text(
        corrected.read_text("utf-8").replace("annotations/", f"{cohort.folder}/annotations/"),
        "utf-8",
    )
    tiles = read_tiles(make_job(labelled, corrected))
    assert [slide.patient_id for slide in tiles.slides][:2] == ["somebody"] * 2


def test_slides_that_are_named_are_taken_alone(labelled, cohort, make_job):
    one, two = cohort.slides[3].path, cohort.slides[0].path
    tiles = read_tiles(make_job(labelled, one, two))
    assert [slide.slide_id for slide in tiles.slides] == ["slide_01", "slide_04"]
    with pytest.raises(InputError, match="no file or folder"):
        read_tiles(make_job(labelled, labelled / "missing.svs"))


def test_keys_and_parts_keep_to_their_slides():
    tiles = make_tiles({"b": (2, 1), "a": (1, 1)})
    assert tiles.keys() == ["a_x0_y0", "a_x256_y0", "b_x0_y0", "b_x256_y0", "b_x512_y0"]
    part = tiles.take(tiles.of_slides(["b"]))
    assert part.keys() == ["b_x0_y0", "b_x256_y0", "b_x512_y0"]
    assert part.positives().tolist() == [0, 1]
    assert tiles.take(np.array([4, 0])).keys() == ["b_x512_y0", "a_x0_y0"]


def test_features_are_read_from_the_store_of_a_slide(output, cohort, make_job):
    words = (str(cohort.slides[0].path), f"output={output}", "encoder=handcrafted", "mpp=0.5")
    assert main([*words, "tiler.size=128", "tiler.mpp=0.5", "engine=inline"]) == 0
    slides = read_tiles(make_job(output)).slides
    assert [slide.features for slide in slides[:2]] == [("handcrafted",), ()]
    with slides[0].open(get_registry()) as stored:
        assert len(stored.features("handcrafted")) == len(stored.coords)


def test_features_that_a_slide_lacks_are_told_with_those_that_it_has(labelled, make_job):
    slide = read_tiles(make_job(labelled)).slides[0]
    with pytest.raises(TaskError, match=r"slide_01 holds no features of 'uni'\. Make them first"):
        require_features(slide, "uni")
    slide = replace(slide, features=("handcrafted", "uni"))
    told = r"holds features of handcrafted, uni, and none of 'handcraftd'\. "
    with pytest.raises(TaskError, match=told + "Did you mean 'handcrafted'"):
        require_features(slide, "handcraftd")
    with pytest.raises(TaskError, match=r"none of 'conch'\. Make them first"):
        require_features(slide, "conch")


def test_slides_without_labels_are_left_out_or_refused(output, cohort, make_job, tmp_path):
    bare = tmp_path / "bare"
    slide = str(cohort.slides[0].path)
    assert main([slide, f"output={bare}", "task=coords", "tiler.size=128", "engine=inline"]) == 0
    with pytest.raises(TaskError, match=r"no tiles are labelled\. Label them first: .*task=index"):
        read_tiles(make_job(bare))
    with pytest.raises(TaskError, match="no tiles of the slides that are named are labelled"):
        read_tiles(make_job(bare, slide))
    tiles = join([*read_stores(make_job(bare), bare, None)])
    assert tiles.classes == ()
    assert set(tiles.label) == {-1}
    (bare / "patches" / "slide_01.h5").rename(output / "patches" / "other.h5")
    assert "other" not in {slide.slide_id for slide in read_tiles(make_job(output)).slides}


def test_a_tiling_is_named_or_the_only_one(labelled, cohort, make_job, tmp_path):
    assert root(make_job(labelled)) == labelled
    with pytest.raises(TaskError, match="holds no tiles"):
        root(make_job(labelled, tiling="20x"))
    with pytest.raises(TaskError, match="holds no tiles"):
        root(make_job(tmp_path / "nowhere"))
    out = tmp_path / "out"
    words = (str(cohort.slides[0].path), f"output={out}", "task=coords", "engine=inline")
    assert main([*words, "tiler.mpp=0.5", "tiler.name=fine"]) == 0
    assert root(make_job(out)) == out / "fine"
    assert main([*words, "tiler.mpp=1", "tiler.name=coarse"]) == 0
    assert root(make_job(out, tiling="coarse")) == out / "coarse"
    with pytest.raises(TaskError, match=r"choose one with tiler\.name=, of coarse, fine"):
        root(make_job(out))


def test_images_alone_are_no_tiles_and_the_ways_out_are_told(labelled, make_job, tmp_path):
    out = tmp_path / "out"
    for folder in (out, out / "balanced"):
        (folder / "lmdb").mkdir(parents=True)
        (folder / "lmdb" / "a.lmdb").touch()
    (out / "status").mkdir()
    told = r"(holds tiles as images alone \(lmdb\)).*sample=NAME.*writer=\[hdf5,lmdb\]"
    for name, place in (("balanced", out / "balanced"), ("", out)):
        with pytest.raises(TaskError, match=f"^{place} {told}"):
            root(make_job(out, tiling=name))
    shutil.copytree(labelled / "patches", out / "balanced" / "patches")
    assert root(make_job(out, tiling="balanced")) == out / "balanced"


def test_slides_that_do_not_go_together_are_refused():
    one = of_slide(tiled("a"), [0, 1])
    with pytest.raises(TaskError, match="differ in size: a of 256 px and b of 512 px"):
        join([one, of_slide(tiled("b", size=512), [0, 1])])
    with pytest.raises(TaskError, match=r"differ in resolution: a has 0\.5 .*, b 1\."):
        join([one, of_slide(tiled("b", mpp=1.0), [0, 1])])
    with pytest.raises(TaskError, match="Of b nothing says"):
        join([one, of_slide(tiled("b", mpp=None), [0, 1])])
    with pytest.raises(TaskError, match="a is labelled with the classes normal, tumor, b with"):
        join([one, of_slide(tiled("b"), [0, 1], classes=("normal", "cancer"))])
    with pytest.raises(TaskError, match="There are no tiles"):
        join([])
    together = join([one, of_slide(tiled("b", mpp=0.54), [0])])
    assert together.keys() == ["a_x0_y0", "a_x256_y0", "b_x0_y0"]
    assert len(join([one, of_slide(tiled("b", mpp=1.0), [0])], mpp_ratio=math.inf)) == 3


def test_what_has_no_label_takes_the_classes_of_the_others():
    bare = replace(of_slide(tiled("b"), [-1]), classes=())
    assert join([bare, of_slide(tiled("a"), [0])]).classes == ("normal", "tumor")
