"""One pickle of many slides: what is in it, and that nothing in one is ever run."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from layouts.labelled import label
from layouts.stores import content
from run_checks import leftovers

from microtome.__main__ import main
from microtome.errors import LayoutError
from microtome.run.exchange import exporting
from microtome.slide import GridConfig
from microtome.store.exchange import SlideFacts
from microtome.testing import make_cohort, make_info
from microtome.testing.contracts.layout import make_tiled_slide
from microtome_layouts import IndexPickleConfig, plain_pickle
from microtome_layouts.index_pickle import IndexPickleLayout
from microtome_layouts.plain_pickle import load_plain

INDEX = "index_level_1.pkl"


def load(path):
    """Read a pickle as everybody does: ours may be trusted."""
    return pickle.loads(path.read_bytes())


@pytest.fixture
def labelled(lone):
    """An output whose slide ``a`` is labelled."""
    label(lone / "patches/a.h5", attributes={"annotation_path": "drawn/a.xml"})
    return lone


def export(output, folder, *words):
    return main(["export", str(output), "--to", "index_pickle", str(folder), *words])


def labelled_slide(**shape):
    """Make a slide as an export gives it, labelled by turns."""
    slide = make_tiled_slide(features=False, **shape)
    labels = (np.arange(len(slide.coords)) % 2).astype(np.int16)
    return replace(
        slide,
        columns={"label": labels},
        attributes={"classes": ["normal", "tumor"]},
    )


def test_it_holds_what_is_documented(labelled, tmp_path, capsys):
    assert export(labelled, tmp_path) == 0
    told = capsys.readouterr()
    ours = content(labelled)
    labels, coords = ours["columns"]["label"], ours["coords"][:, :2].tolist()
    assert f"a: {(labels < 0).sum()} tiles without a label are left out" in told.err
    assert "two classes" not in told.err
    assert f"a\texported\t{len(labels)} tiles, label\n" in told.out
    (record,) = load(tmp_path / INDEX).values()
    assert record.pop("microtome")
    kept = [(x, y, int(k > 0)) for (x, y), k in zip(coords, labels, strict=True) if k >= 0]
    assert record == {
        "slide_path": ours["attributes"]["wsi_path"],
        "label": 1,
        "annotation_path": "drawn/a.xml",
        "level": 1,
        "work_level": 7,
        "magnification": 20.0,
        "visualisation_coords": [(y // 128, x // 128, k) for x, y, k in kept],
        "patches": [(y // 2, x // 2, k) for x, y, k in kept],
    }
    assert {0, 1} == {k for _, _, k in kept}


def test_a_slide_without_tumour_says_so(labelled, tmp_path):
    label(labelled / "patches/a.h5", labels=np.zeros(len(content(labelled)["coords"])))
    assert export(labelled, tmp_path, "work_level=5", "base_mag=60") == 0
    (record,) = load(tmp_path / INDEX).values()
    assert (record["label"], record["work_level"], record["magnification"]) == (0, 5, 30)
    assert record["visualisation_coords"][0] == tuple(v // 16 for v in record["patches"][0])


def test_that_classes_become_one_is_told_once(output, labelled, tmp_path, capsys):
    (labelled / "patches/b.h5").write_bytes((output / "patches/a.h5").read_bytes())
    for name in "ab":
        label(labelled / f"patches/{name}.h5", classes=["normal", "tumor", "stroma"])
    assert export(labelled, tmp_path) == 0
    told = "the index knows two classes: tumor, stroma are all is_tumor 1 in it.\n"
    assert capsys.readouterr().err.count(told) == 1


def test_level_4_of_a_slide_of_40x_is_2_5x():
    slide = labelled_slide(options=GridConfig(magnification=2.5))
    (file,) = IndexPickleLayout(IndexPickleConfig()).files(slide)
    assert file.path == "index_level_4.pkl"


def test_several_slides_are_in_one_file_and_it_is_made_anew_only_if_one_changed(
    output, labelled, tmp_path, capsys
):
    for name in ("b/c", "empty"):
        store = labelled / f"patches/{name}.h5"
        store.parent.mkdir(exist_ok=True)
        store.write_bytes((output / f"patches/{'a' if '/' in name else name}.h5").read_bytes())
        label(store)
    assert export(labelled, tmp_path) == 0
    assert "a\texported\t" in (told := capsys.readouterr().out)
    assert told.endswith("3 slides, 0 failed.\n")
    made = (tmp_path / INDEX).read_bytes()
    assert [*load(tmp_path / INDEX)] == ["a", "b/c", "empty"]
    assert load(tmp_path / INDEX)["empty"]["patches"] == []
    assert export(labelled, tmp_path) == 0
    assert "b/c\treused\t" in capsys.readouterr().out
    label(labelled / "patches/a.h5", labels=np.ones(len(content(labelled)["coords"])))
    assert export(labelled, tmp_path) == 3
    assert "was exported from something else: slides.a changed" in capsys.readouterr().out
    assert (tmp_path / INDEX).read_bytes() == made
    assert export(labelled, tmp_path, "--force") == 0
    assert all(patch[2] for patch in load(tmp_path / INDEX)["a"]["patches"])
    assert not leftovers(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"), [("annotation_path", "new/a.xml"), ("wsi_path", "moved/a.svs")]
)
def test_files_that_it_names_are_part_of_what_it_was_made_of(
    labelled, tmp_path, capsys, name, value
):
    assert export(labelled, tmp_path) == 0
    label(labelled / "patches/a.h5", attributes={"annotation_path": "drawn/a.xml", name: value})
    assert export(labelled, tmp_path) == 3
    assert "was exported from something else" in capsys.readouterr().out
    assert export(labelled, tmp_path, "--force") == 0
    assert value in load(tmp_path / INDEX)["a"].values()


def test_a_slide_that_cannot_be_held_is_told_and_the_others_are_there(
    output, labelled, tmp_path, capsys
):
    (labelled / "patches/bare.h5").write_bytes((output / "patches/a.h5").read_bytes())
    assert export(labelled, tmp_path) == 3
    assert "bare\tfailed\tbare cannot be exported: its tiles are not labelled" in (
        capsys.readouterr().out
    )
    assert [*load(tmp_path / INDEX)] == ["a"]


def test_a_slide_that_changes_meanwhile_is_not_mixed_in(labelled, tmp_path, monkeypatch, capsys):
    announce = exporting._Record.announce

    def change_too(record):
        label(labelled / "patches/a.h5", labels=np.ones(len(content(labelled)["coords"])))
        announce(record)

    monkeypatch.setattr(exporting._Record, "announce", change_too)
    assert export(labelled, tmp_path / "there") == 3
    assert "a\tfailed\ta changed while it was exported" in capsys.readouterr().out
    assert not [*(tmp_path / "there").glob("*.pkl")]


def test_an_export_that_is_stopped_leaves_nothing(labelled, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("microtome_layouts.index_pickle._program", stop)
    assert export(labelled, tmp_path / "there") == 130
    assert not [*(tmp_path / "there").glob("*.pkl")]
    assert not leftovers(tmp_path)
    monkeypatch.undo()
    assert export(labelled, tmp_path / "there") == 0


def test_it_comes_back(labelled, tmp_path, imported, capsys):
    assert export(labelled, tmp_path / "there", "sampled=true") == 0
    assert (tmp_path / "there/index_level_1_sampled.pkl").is_file()
    back = imported(tmp_path / "there", "index_pickle")
    theirs, ours = content(back), content(labelled)
    kept = ours["columns"]["label"] >= 0
    assert np.array_equal(theirs["coords"], ours["coords"][kept])
    assert np.array_equal(theirs["columns"]["label"], ours["columns"]["label"][kept])
    assert theirs["columns"]["label"].dtype == np.int16
    assert theirs["attributes"]["classes"] == ours["attributes"]["classes"]
    for name in ("patch_size", "step", "read_size", "level", "effective_mpp", "level0_width"):
        assert theirs["attributes"][name] == ours["attributes"][name], name
    capsys.readouterr()
    assert main(["verify", str(back)]) == 0
    assert "0 faults" in capsys.readouterr().out
    assert export(back, tmp_path / "again", "sampled=true") == 0
    one, two = (load(tmp_path / f / "index_level_1_sampled.pkl")["a"] for f in ("there", "again"))
    assert one == two


def test_what_a_run_labelled_comes_back(tmp_path, imported):
    cohort = make_cohort(tmp_path / "cohort", slides=2, tests=0, size=(1024, 896))
    words = ["task=index", "labels.classes.tumor=[Tumor]", "labels.exclude=[Exclusion]"]
    words += ["tiler.size=64", "tiler.magnification=10", "engine=inline"]
    assert main([str(cohort.manifest), f"output={tmp_path / 'out'}", *words]) == 0
    assert export(tmp_path / "out", tmp_path / "there") == 0
    index = load(tmp_path / "there/index_level_1.pkl")
    slides = {slide.slide_id: slide for slide in cohort.slides}
    assert {*index} == {*slides}
    back = imported(tmp_path / "there", "index_pickle", "--slides", str(cohort.manifest))
    for slide_id, record in index.items():
        ours, theirs = (content(folder, slide_id) for folder in (tmp_path / "out", back))
        kept = ours["columns"]["label"] >= 0
        assert 0 < sum(patch[2] for patch in record["patches"]) < len(record["patches"])
        assert Path(record["annotation_path"]).stem == slide_id
        assert np.array_equal(theirs["coords"], ours["coords"][kept])
        assert np.array_equal(theirs["columns"]["label"], ours["columns"]["label"][kept])
        assert theirs["attributes"]["annotation_path"] == record["annotation_path"]
        assert theirs["attributes"]["bounds"] == "None"  # looked for: the slide was at hand


def foreign(**changes):
    """Give a slide as another program pickles it."""
    record = {
        "slide_path": "slides/x.tif",
        "label": 1,
        "annotation_path": None,
        "level": 4,
        "work_level": 7,
        "magnification": 2.5,
        "visualisation_coords": [(0, 0, False)],
        "patches": [(256, 512, True), (0, 256, False)],
    }
    return {"x": record | changes}


def read(folder, content, *, protocol=4, info=None, **options):
    (folder / "index_level_4.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    layout = IndexPickleLayout(IndexPickleConfig(**options))
    (found,) = layout.find(folder).values()
    return layout.read(found, SlideFacts(info=info))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", ["tuples", "array", "scalars", "by column"])
def test_other_programs_pickles_are_read(protocol, kind, tmp_path):
    patches = foreign()["x"]["patches"]
    made = {
        "tuples": patches,
        "array": np.array(patches, ">i4"),
        "scalars": [(np.int64(y), np.int32(x), np.bool_(k)) for y, x, k in patches],
        "by column": np.asfortranarray(np.array(patches, np.uint16)),
    }[kind]
    slide = read(tmp_path, foreign(patches=made, probs=np.array([0.1, 0.9])), protocol=protocol)
    assert slide.coords.tolist() == [[8192, 4096, 256, 256, 4], [4096, 0, 256, 256, 4]]
    assert slide.columns["label"].tolist() == [1, 0]
    assert slide.attributes["classes"] == ["normal", "tumor"]
    assert slide.info.resolution.magnification == 40
    assert slide.geometry.size_level0 == (4096, 4096)
    assert slide.source == "slides/x.tif"


def test_tiles_are_of_the_size_that_is_said_and_read_where_the_slide_can_be(tmp_path):
    info = make_info(size=(20000, 16000), levels=(1, 4.0005, 64))
    slide = read(tmp_path, foreign(), info=info, patch_size=128, step_size=64)
    assert (slide.geometry.level, slide.geometry.read_size) == (1, (512, 512))
    assert (slide.geometry.size, slide.geometry.step) == (128, 64)
    assert slide.geometry.effective_mpp == (4, 4)


class Evil:
    """Would run a command if it were unpickled as anybody does it."""

    def __init__(self, ran):
        self.ran = ran

    def __reduce__(self):
        return Path.touch, (self.ran,)


class Builtin:
    """Likewise, by what every Python has."""

    def __reduce__(self):
        return eval, ("open('ran', 'w')",)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Builtin(), "builtins.eval"),
        (PurePosixPath("a"), "pathlib.PurePosixPath"),
        (OrderedDict(), "collections.OrderedDict"),
        (np.random.default_rng(0), "numpy.random._pickle.__generator_ctor"),
        (print, "builtins.print"),
        (np.load, "numpy.load"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_that_asks_for_anything_else_is_refused_by_name(
    value, named, protocol, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LayoutError) as caught:
        read(tmp_path, foreign(slide_path=value), protocol=protocol)
    found = (
        str(caught.value).replace("__builtin__", "builtins").replace("numpy.lib._npyio", "numpy")
    )
    assert f"index_level_4.pkl asks for {named}" in found
    assert not (tmp_path / "ran").exists()


def test_nothing_in_it_is_run(tmp_path):
    with pytest.raises(LayoutError, match="asks for"):
        read(tmp_path, foreign(slide_path=Evil(tmp_path / "ran")))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "dtype", [np.dtype([("a", "O")]), np.dtype("O"), np.dtype("M8[s]"), np.dtype("V8")]
)
def test_types_that_could_describe_memory_are_refused(dtype, tmp_path):
    """numpy takes the bytes of such a value for addresses."""
    path = tmp_path / "index_level_0.pkl"
    scalar = (b"cnumpy.core.multiarray\nscalar\n", pickle.dumps(dtype, 2)[2:-1])
    path.write_bytes(b"\x80\x03" + scalar[0] + scalar[1] + b"C\x08AAAAAAAA\x86R.")
    with pytest.raises(LayoutError, match="cannot be read as a pickle of plain values"):
        load_plain(path)


CHANGES = [{"__defaults__": ("x",)}, (None, {"__defaults__": ("x",)}), (None, {"_call": "x"}), ()]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("asked", plain_pickle._ALLOWED)
def test_what_it_is_read_with_cannot_be_changed(asked, change, tmp_path):
    """``b`` sets what a pickle says, on what it has just asked for."""
    path = tmp_path / "index_level_0.pkl"
    state = pickle.dumps(change, 2)[2:-1]
    path.write_bytes(b"\x80\x03c" + "\n".join((*asked, "")).encode() + state + b"b.")
    with pytest.raises(LayoutError, match="cannot be read as a pickle of plain values"):
        load_plain(path)
    assert plain_pickle._encode.__defaults__ == ("latin1",)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"patches": [(1, 2)]}, "its patches are int64 of shape (1, 2)"),
        ({"patches": [(1, 2, 0), (1, 2)]}, "are not all (y, x, is_tumor)"),
        ({"patches": [(1.5, 2, 0)]}, "its patches are float64"),
        ({"patches": [(1, 2, 3)]}, "is neither tumour nor not"),
        ({"patches": [(-1, 2, 0)]}, "a place below 0"),
        ({"patches": "no"}, "its patches are <U2"),
        (
            {"patches": [(3, 2, 0), (9, 8, 1), (9, 8, 0), (3, 2, 0)]},
            "the patch at (y, x) = (9, 8) is there as tumour and as normal, and 0 more",
        ),
        ({"level": "4"}, "its level is '4'"),
        ({"level": 99}, "its level is 99"),
    ],
)
def test_what_is_no_index_is_refused_by_file_and_slide(changes, told, tmp_path):
    with pytest.raises(LayoutError) as caught:
        read(tmp_path, foreign(**changes))
    assert told in str(caught.value)
    assert f"{tmp_path / 'index_level_4.pkl'}, slide x: " in str(caught.value)


def test_a_patch_that_is_there_again_is_one(tmp_path):
    slide = read(tmp_path, foreign(patches=[(256, 512, True), (0, 256, False), (256, 512, 1)]))
    assert slide.coords[:, :2].tolist() == [[8192, 4096], [4096, 0]]
    assert slide.columns["label"].tolist() == [1, 0]
    assert len(slide.columns["label_fraction"]) == 2


def test_a_place_beyond_every_slide_is_named(tmp_path):
    with pytest.raises(LayoutError, match=r"the point \(160, 17179869184\) lies farther out"):
        read(tmp_path, foreign(patches=[(1 << 30, 10, 1)]))


@pytest.mark.parametrize("data", [b"", b"no pickle", pickle.dumps(foreign())[:-20], b"\x80\x04N."])
def test_a_damaged_index_is_refused(data, tmp_path):
    (tmp_path / "index_level_4.pkl").write_bytes(data)
    with pytest.raises(LayoutError, match=r"index_level_4.pkl (cannot be read|holds no dict)"):
        IndexPickleLayout(IndexPickleConfig()).find(tmp_path)


def test_of_several_one_is_chosen(tmp_path):
    for name in ("index_level_4.pkl", "index_level_4_sampled.pkl"):
        (tmp_path / name).write_bytes(pickle.dumps(foreign()))
    with pytest.raises(LayoutError, match=r"several indices: .* index_level_4_sampled.pkl"):
        IndexPickleLayout(IndexPickleConfig()).find(tmp_path)
    chosen = IndexPickleLayout(IndexPickleConfig(file="index_level_4_sampled.pkl"))
    assert chosen.find(tmp_path)["x"].coords == (tmp_path / "index_level_4_sampled.pkl",)


def test_tiles_that_are_no_part_of_a_level_are_refused():
    slide = labelled_slide(options=GridConfig(mpp=2.2))
    with pytest.raises(LayoutError, match=r"show 8\.79688 times as many of level 0"):
        list(IndexPickleLayout(IndexPickleConfig()).files(slide))


def test_tiles_between_the_pixels_of_a_level_are_refused():
    slide = labelled_slide(tiles=3, options=GridConfig(magnification=10))
    off = slide.coords + np.array([[0] * 5, [2, 0, 0, 0, 0], [0, 1, 0, 0, 0]], np.int32)
    place = (
        rf"its tile at \({off[1, 0]}, {off[1, 1]}\), and 1 more, lie between the pixels of level 2"
    )
    with pytest.raises(LayoutError, match=place):
        list(IndexPickleLayout(IndexPickleConfig()).files(replace(slide, coords=off)))
