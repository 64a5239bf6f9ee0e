"""Every row of the migration page does what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from gates import shut_gate, until, waiting
from migration.page import (
    BASE,
    OPTIONS,
    PRESET_TILES,
    Ran,
    compose,
    config_of,
    make_mask,
    make_things,
    not_in,
    rows,
    run,
    with_stand_ins,
    words_of,
)
from PIL import Image

from microtome.__main__ import main
from microtome.plugin.registry import get_registry
from microtome_segmenters.files import FileSegmenter

ROWS = rows()
ITEMS = {
    f"{letter}{number}"
    for letter, last in zip("ABCDEFG", (10, 22, 11, 10, 5, 8, 3), strict=True)
    for number in range(1, last + 1)
}
AGAIN = ("B19",)
"""Rows whose options are of a second run in one output."""


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """The files that the page's commands name."""
    folder = tmp_path_factory.mktemp("things")
    make_things(folder)
    return folder


@pytest.fixture
def ran(things, tmp_path, monkeypatch):
    for thing in things.iterdir():
        (tmp_path / thing.name).symlink_to(thing)
    monkeypatch.chdir(tmp_path)
    found = Ran(tmp_path)
    segment = FileSegmenter.segment

    def counted(self, views):
        found.masks += len(views)
        return segment(self, views)

    monkeypatch.setattr(FileSegmenter, "segment", counted)
    return found


def test_every_item_has_a_row():
    assert sorted(item for row in ROWS for item in row.items) == sorted(ITEMS)


def test_every_row_is_checked():
    """By a check below, or because its options must be in the run's configuration."""
    options = [row.items[0] for row in ROWS if any(OPTIONS.fullmatch(s.text) for s in row.here)]
    composed = [row.items[0] for row in ROWS if row.here and all(s.composed for s in row.here)]
    assert {row.items[0] for row in ROWS} == {*CHECKS, *options, *composed}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(row.items))
def test_a_row_does_what_it_says(row, ran, capsys):
    again = row.items[0] in AGAIN
    if again:
        assert run(words_of(BASE, "out")) == 0
    for number, said in enumerate(row.here):
        output = "out" if again else f"out{number}"
        assert said.text.startswith("microtome ") or OPTIONS.fullmatch(said.text), said.text
        capsys.readouterr()
        words = words_of(said.text, output)
        code = compose(words) if said.composed else run(words)
        printed = capsys.readouterr()
        assert code == 0, (said.text, printed)
        ran.said.append(printed.out + printed.err)
        if OPTIONS.fullmatch(said.text) and not again:
            found = yaml.safe_load(printed.out) if said.composed else config_of(ran.folder / output)
            assert not_in(found, said.text) == []
        elif said.composed:
            assert not_in(yaml.safe_load(printed.out), said.text) == []
    for text in row.beside:
        assert compose(words_of(text, "out")) == 0, (text, capsys.readouterr())
        assert not_in(yaml.safe_load(capsys.readouterr().out), text) == []
    if check := CHECKS.get(row.items[0]):
        check(ran)


def leaves(where, wanted):
    def check(ran):
        assert ran.names(where) == wanted

    return check


def has_features(output, wanted):
    def check(ran):
        assert ran.features(output) == wanted

    return check


def says(**wanted):
    def check(ran):
        found = ran.attributes()
        assert {name: np.asarray(found[name]).tolist() for name in wanted} == wanted

    return check


def tells(*wanted, number=0):
    def check(ran):
        for words in wanted:
            assert words in ran.said[number]

    return check


def both(*checks):
    def check(ran):
        for each in checks:
            each(ran)

    return check


def tissue_is_kept(ran):
    assert ran.names("out/visualization") == ["slide_mask.png"]
    (path,) = (ran.folder / "out" / "tissue").glob("*.png")
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image) > 0, make_mask() > 0)


def has_the_presets_tiles(output):
    def check(ran):
        coords = ran.read(output)
        assert coords.dtype == np.int32
        assert coords.shape == (len(PRESET_TILES), 5)
        assert ran.tiles(output) == PRESET_TILES
        assert coords[:, 1::-1].tolist() == sorted(coords[:, 1::-1].tolist())

    return check


def tiles_are_images(output):
    def check(ran):
        wanted = [f"slide_x{x}_y{y}.png" for x, y in ran.read(output)[:, :2].tolist()]
        found = [name for name in ran.names(f"{output}/images/slide") if not name.startswith(".")]
        assert found == sorted(wanted)
        with Image.open(ran.folder / output / "images" / "slide" / found[0]) as image:
            assert image.size == (256, 256)

    return check


def tissue_is_found_once(ran):
    assert [": done" in said for said in ran.said] == [True] * 3
    assert ran.masks == 1
    assert ran.features("out") == ["resnet18"]


def slides_of_one_stem(ran):
    for name, slide in ("xa", "yb"):
        (ran.folder / "twins" / name).mkdir(parents=True)
        link = ran.folder / "twins" / name / "slide.svs"
        link.symlink_to(ran.folder / "slides" / f"{slide}.svs")
    words = words_of(BASE.replace("slide.svs", "twins"), "out")
    words += ["recursive=true", "segmenter=none"]
    assert run([*words, "output=refused"]) == 3
    assert run([*words, "slide_id=relpath"]) == 0
    found = (ran.folder / "out" / "patches").rglob("*.h5")
    assert sorted(path.parent.name for path in found) == ["x", "y"]


def white_is_dropped(output):
    """What lies on glass; another limit keeps more."""

    def check(ran):
        lenient = ran.beside("filter.enabled=true filter.white_saturation_below=1")
        assert set() < ran.tiles(output) < ran.tiles(lenient) == PRESET_TILES

    return check


def black_is_dropped(ran):
    strict = ran.beside("filter.enabled=true filter.black_gray_below=256")
    assert ran.tiles(strict) == set() < ran.tiles()


def filter_is_what_differs(ran):
    assert ran.tiles("out0") == PRESET_TILES
    assert set() < ran.tiles("out1") < PRESET_TILES


def small_pieces_are_left_out(ran):
    assert ran.tiles() == PRESET_TILES - {(3, 3)}


def holes_count(ran):
    """One of the ten largest leaves a tile out; not the eleventh, nor a tiny one."""
    assert ran.tiles() == PRESET_TILES
    assert ran.tiles(ran.beside("tiler.max_holes=0")) == PRESET_TILES | {(0, 0)}
    every = ran.beside("tiler.max_holes=null")
    assert ran.tiles(every) == PRESET_TILES - {(1, 0)}
    tiny = ran.beside("tiler.max_holes=null tiler.min_hole_px=0")
    assert ran.tiles(tiny) == PRESET_TILES - {(1, 0), (2, 0)}


def probes_decide(ran):
    assert ran.tiles() == PRESET_TILES
    other = ran.beside("tiler.rule=fraction tiler.min_tissue=0")
    assert ran.tiles(other) == PRESET_TILES | {(0, 0), (0, 3)}


def strides_are_of_level_0(ran):
    at_15 = "tiler.magnification=15 tiler.lattice"
    for kind, whole in (("slide", True), ("level", False)):
        coords = ran.read(ran.beside(f"{at_15}={kind}"))
        assert set(coords[:, 4]) == {1}
        assert (not (coords[:, :2] % 683).any()) == whole
        assert len(coords) == len({tuple(row) for row in coords[:, :2].tolist()})


def level_is_near(ran):
    assert set(ran.read()[:, 4]) == {1}
    strict = ran.beside("tiler.max_upsample=1.0 tiler.level_tolerance=0")
    assert set(ran.read(strict)[:, 4]) == {0}


def is_reused_then_done(ran):
    assert "slide: reused" in ran.said[0]
    assert "slide: done" in ran.said[1]


def is_empty_for_good(ran):
    assert ran.attributes()["num_patches"] == 0
    assert "slide: empty" in ran.said[0]
    before = (ran.folder / "out0" / "patches" / "slide.h5").stat()
    options = "segmenter=classic segmenter.min_region=1 task=coords"
    assert run(words_of(options, "out0")) == 0
    after = (ran.folder / "out0" / "patches" / "slide.h5").stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)


def damage_is_seen(ran):
    assert main(["verify", str(ran.folder / "out")]) == 0
    with h5py.File(ran.folder / "out" / "patches" / "slide.h5", "r+") as file:
        file["features/resnet18"][0, 0] = np.nan
    assert main(["verify", str(ran.folder / "out")]) == 1


def passports_are_there(ran):
    x, y, width, height, level = ran.read()[0].tolist()
    total = len(ran.read())
    wanted = f"slide__x{x}_y{y}_rw{width}_rh{height}_lv{level}_mag40_tmag20_total{total}"
    assert ran.read(name="passports")[0] == wanted.encode()
    assert main(["verify", str(ran.folder / "out0")]) == 0
    assert main(["verify", str(ran.folder / "out1")]) == 0


def has_precision(ran, wanted):
    assert ran.attributes(name="features/resnet18")["precision"] == wanted


def features_are_float32(ran):
    assert ran.features() == ["resnet18"]
    assert ran.read(name="features/resnet18").dtype == np.float32
    assert {"weights", "precision", "card"} <= {*ran.attributes(name="features/resnet18")}


def processes_share_slides(ran):
    """Each has a slide at once, and each slide is done by one of them."""
    with pytest.MonkeyPatch.context() as patch, shut_gate(ran.folder, patch) as gate:
        words = words_of(BASE.replace("slide.svs", "slides/"), "both")
        words = [*with_stand_ins(words), "encoder=[gated]", "output=both"]
        command = [sys.executable, "-m", "microtome", *words]
        started = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for _ in range(2)
        ]
        try:
            until(lambda: len(waiting(gate)) == 2)
            gate.unlink()
            printed = "".join(process.communicate(timeout=60)[0] for process in started)
            assert main(["verify", str(ran.folder / "both")]) == 0
        finally:
            for process in started:
                process.kill()
    assert [process.returncode for process in started] == [0, 0], printed
    found = re.findall(r"\] (\w): (\w+)", printed)
    assert sorted(state for state in found if state[1] == "done") == [("a", "done"), ("b", "done")]


def embedding_says_what_it_is_of(ran):
    told = ran.attributes("out", "slide_features/mean-handcrafted")
    assert told["encoder_name"] == "mean"
    assert told["source_patch_encoder"] == "handcrafted"
    assert told["num_patches"] == len(ran.read("out"))
    assert (told["patch_size"], told["patch_size_level0"]) == (256, 512)
    assert told["target_magnification"] == 20


def slide_is_embedded(ran):
    for pooling in ("mean", "max"):
        features = ran.read("out", "features/handcrafted")
        embedding = ran.read("out", f"slide_features/{pooling}-handcrafted")
        wanted = getattr(np, pooling)(features.astype(np.float64), axis=0)
        np.testing.assert_allclose(embedding, wanted, rtol=1e-5)


def patient_is_embedded(ran):
    name = "patient_features/mean-mean-handcrafted"
    with h5py.File(ran.folder / "out" / "patient_embeddings" / "P1.h5") as file:
        assert file[name].attrs["num_slides"] == 2
        assert file[name].shape == (67,)


def licences_are_named(ran):
    assert "Apache License" in (Path(__file__).parents[2] / "LICENSE").read_text("utf-8")
    cards = {entry.spec.name: entry.spec.card for entry in get_registry().entries("encoder")}
    published = {name: card for name, card in cards.items() if card and card.hub_id}
    assert len(published) > 60
    assert [name for name, card in published.items() if not card.licence] == []


def tissue_is_found(ran):
    (path,) = (ran.folder / "out1" / "tissue").glob("*.png")
    with Image.open(path) as image:
        assert 0 < (np.asarray(image) > 0).mean() < 1
    assert ran.masks == 0


CHECKS = {
    "A1": tissue_is_kept,
    "A2": both(has_the_presets_tiles("out"), has_the_presets_tiles("out1")),
    "A3": has_features("out", ["handcrafted", "resnet18"]),
    "A4": both(tiles_are_images("out"), tiles_are_images("out1")),
    "A5": tissue_is_found_once,
    "A6": leaves("out/patches", ["a.h5", "b.h5"]),
    "A7": leaves("out/patches", ["plain.h5"]),
    "A8": slides_of_one_stem,
    "A9": tells("openslide"),
    "A10": tells("done\tslide", number=1),
    "B1": says(overlap=128),
    "B5": tells("--max-open-slides has no effect"),
    "B9": lambda ran: has_precision(ran, "bf16"),
    "B10": has_features("out0", ["my_encoder", "resnet18"]),
    "B11": filter_is_what_differs,
    "B12": small_pieces_are_left_out,
    "B13": white_is_dropped("out0"),
    "B14": black_is_dropped,
    "B15": leaves("out0/visualization", ["slide.png", "slide_contours.png", "slide_mask.png"]),
    "B16": tiles_are_images("out0"),
    "B17": leaves("out/patches", ["a.h5", "b.h5", "c.h5"]),
    "B18": says(mpp=0.5, mpp_source="mpp_csv", patch_size_level0=256),
    "B19": is_reused_then_done,
    "B20": tells("the pass over the pixels"),
    "B21": tells("--write-batch has no effect"),
    "C1": has_the_presets_tiles("out0"),
    "C2": features_are_float32,
    "C3": says(
        patch_size=256, patch_size_level0=512, target_magnification=20, filename="slide.svs"
    ),
    "C4": passports_are_there,
    "C5": tiles_are_images("out0"),
    "C6": says(patch_size_level0=683, patch_size_level0_exact=[683, 683]),
    "C7": has_features("out", ["handcrafted", "resnet18"]),
    "C8": damage_is_seen,
    "C9": is_empty_for_good,
    "C10": embedding_says_what_it_is_of,
    "C11": tells("stamp"),
    "D1": tissue_is_found,
    "D3": holes_count,
    "D4": probes_decide,
    "D5": strides_are_of_level_0,
    "D6": level_is_near,
    "D8": says(mpp=0.25, mpp_source="override"),
    "D10": has_the_presets_tiles("out0"),
    "E1": processes_share_slides,
    "E3": has_features("out0", ["handcrafted", "resnet18"]),
    "F1": tells("resnet50", "uni_v2"),
    "F2": both(
        has_features("out0", ["resnet18"]), has_features("out", ["handcrafted", "resnet18"])
    ),
    "F7": licences_are_named,
    "F8": tells("titan", "gigapath"),
    "G1": slide_is_embedded,
    "G2": patient_is_embedded,
    "G3": tells(".svs", "Outputs"),
}
