"""From what a user names to the slides of a run."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

import pytest
from run_checks import ids, touch

from microtome.errors import InputError
from microtome.plugin import ReaderSpec, hookimpl
from microtome.plugin.registry import Registry
from microtome.run.inputs.companions import series_uid
from microtome.run.inputs.finding import SlideList, find_slides
from microtome.run.settings import Choice, RunConfig

WSI = (".svs", ".tif", ".tiff", ".ndpi", ".vms", ".mrxs", ".dcm")
PLAIN = (".png", ".jpg")


class ProbingReader:
    @staticmethod
    def probe(path: Path) -> bool:
        return path.read_bytes().startswith(b"SLIDE")


@hookimpl
def microtome_readers():
    yield ReaderSpec(
        name="wsi",
        target=f"{__name__}:ProbingReader",
        summary="",
        extensions=WSI,
    )
    yield ReaderSpec(name="plain", target="nowhere:Reader", summary="", extensions=PLAIN)


@pytest.fixture(scope="module")
def registry():
    registry = Registry()
    registry.add(sys.modules[__name__], "readers", "test")
    assert not registry.broken
    return registry


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def find(registry, tmp_path):
    def find(*words: object, **options: object) -> SlideList:
        config = RunConfig(
            slides=tuple(str(word) for word in words), output=tmp_path / "out", **options
        )
        return find_slides(config, registry)

    return find


NASTY = [
    "slide (1).svs",
    "a,b.svs",
    "x=1.svs",
    "{b}.svs",
    "[c].svs",
    "a'b.svs",
    'a"b.svs',
    "naïve 切片.svs",
    "$x.svs",
    "*.svs",
    "back\\slash.svs",
    " lead.svs",
    "UPPER.SVS",
    "two\nlines.svs",
]


@pytest.mark.parametrize("name", NASTY)
def test_a_name_is_taken_literally(find, tmp_path, name):
    touch(tmp_path / name, tmp_path / "other.svs")
    found = find(tmp_path / name)
    assert [slide.path for slide in found.slides] == [tmp_path / name]
    assert ids(found) == [name[:-4]]


def test_a_folder_is_sorted_and_every_other_file_has_a_note(find, tmp_path):
    folder = tmp_path / "slides"
    slides = [folder / name for name in ("a.SvS", "b.tiff", "c.ndpi")]
    left = [folder / name for name in ("notes.txt", "table.csv", "plain.png", ".hidden.svs")]
    touch(*slides, *left, folder / "sub" / "d.svs")
    (folder / "broken.svs").symlink_to(folder / "nowhere")
    found = find(folder)
    assert [slide.path for slide in found.slides] == slides
    for path in (*left, folder / "sub", folder / "broken.svs"):
        assert sum(note.startswith(f"{path}: ") for note in found.notes) == 1
    assert len(found.notes) == len(left) + 2


def test_all_formats_take_plain_images_too(find, tmp_path):
    touch(tmp_path / "d" / "a.svs", tmp_path / "d" / "b.PNG")
    assert ids(find(tmp_path / "d", formats="all")) == ["a", "b"]


def test_an_explicit_plain_image_is_always_taken(find, tmp_path):
    touch(tmp_path / "b.png")
    assert ids(find(tmp_path / "b.png")) == ["b"]


def test_a_recursive_search_survives_links_that_form_a_loop(find, tmp_path):
    touch(tmp_path / "d" / "sub" / "a.svs")
    (tmp_path / "d" / "sub" / "loop").symlink_to(tmp_path / "d")
    found = find(tmp_path / "d", recursive=True)
    assert ids(found) == ["a"]
    assert any("searched already" in note for note in found.notes)


def test_a_recursive_search_leaves_the_output_out(find, tmp_path):
    touch(tmp_path / "a.svs", tmp_path / "out" / "tissue" / "a.png")
    assert ids(find(tmp_path, recursive=True, formats="all")) == ["a"]


def test_a_recursive_search_leaves_earlier_outputs_out(find, tmp_path):
    touch(tmp_path / "a.svs", tmp_path / "old" / "images" / "a" / "a_x0_y0.png")
    for name in ("runs", "status"):
        (tmp_path / "old" / name).mkdir()
    found = find(tmp_path, recursive=True, formats="all")
    assert ids(found) == ["a"]
    assert any("the output of an earlier run" in note for note in found.notes)


def test_a_pattern_is_one_only_where_no_such_file_exists(find, tmp_path):
    touch(*(tmp_path / f"s{i}.svs" for i in range(12)), tmp_path / "s1.txt")
    found = find("s1*")
    assert ids(found) == ["s1", "s10", "s11"]
    assert any("s1.txt" in note for note in found.notes)
    assert len(find("**/*.svs").slides) == 12


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("slide_9.svs", "no file or folder 'slide_9.svs'. Did you mean 'slide_1.svs'"),
        ("*.ndpi", "fits none"),
        ("", "no file or folder ''"),
        ("x" * 300, "File name too long"),
        ("readme.txt", "no suffix of a slide"),
        ("empty", "no slide in empty"),
    ],
)
def test_what_cannot_be_a_slide_is_refused_with_a_reason(find, tmp_path, word, message):
    touch(tmp_path / "slide_1.svs", tmp_path / "readme.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=message.replace("*", r"\*")):
        find(word)


def test_a_folder_without_slides_says_what_it_left_aside(find, tmp_path):
    touch(tmp_path / "d" / "a.png", tmp_path / "d" / "b.png")
    with pytest.raises(InputError, match=r"a\.png: a plain image; formats=all .*and 1 more"):
        find(tmp_path / "d")


def test_an_unknown_suffix_is_taken_if_a_reader_knows_the_content_or_is_named(find, tmp_path):
    touch(tmp_path / "scan.raw", data=b"SLIDE...")
    touch(tmp_path / "other.raw")
    assert ids(find("scan.raw")) == ["scan"]
    assert ids(find("other.raw", reader=Choice(plugin="wsi"))) == ["other"]


def test_the_same_slide_twice_counts_once(find, tmp_path):
    touch(tmp_path / "d" / "a.svs")
    (tmp_path / "link.svs").symlink_to(tmp_path / "d" / "a.svs")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.svs").symlink_to(tmp_path / "d" / "a.svs")
    assert ids(find("d", "d/a.svs", "d/../d/a.svs", "sub/a.svs")) == ["a"]
    assert ids(find("d", "link.svs")) == ["a", "link"]


def test_a_link_gives_its_own_name(find, tmp_path):
    touch(tmp_path / "store" / "0f3a.svs")
    (tmp_path / "case-7.svs").symlink_to(tmp_path / "store" / "0f3a.svs")
    assert ids(find("case-7.svs")) == ["case-7"]


def test_two_slides_of_one_id_are_refused_and_relpath_is_the_way_out(find, tmp_path):
    touch(tmp_path / "d" / "a" / "x.svs", tmp_path / "d" / "b" / "x.tif")
    touch(tmp_path / "d" / "other.svs")
    found = find("d", recursive=True)
    assert ids(found) == ["other"]
    assert [refused.slide.path.name for refused in found.refused] == ["x.svs", "x.tif"]
    for part in (tmp_path / "d/a/x.svs", tmp_path / "d/b/x.tif", "slide_id=relpath", "manifest"):
        assert all(str(part) in refused.reason for refused in found.refused)
    (tmp_path / "d" / "other.svs").unlink()
    assert ids(find("d", recursive=True, slide_id="relpath")) == ["a/x.svs", "b/x.tif"]


def test_relpath_tells_two_formats_in_one_folder_apart(find, tmp_path):
    touch(tmp_path / "d" / "x.svs", tmp_path / "d" / "x.tif")
    assert "Use slide_id=relpath" in find("d").refused[0].reason
    assert ids(find("d", slide_id="relpath")) == ["x.svs", "x.tif"]


def test_relpath_is_offered_only_where_it_helps(find, tmp_path):
    touch(tmp_path / "d" / "x.svs", tmp_path / "e" / "x.svs")
    assert find("d", "e").refused[0].reason.endswith("Give each its own slide_id in a manifest.")


def test_equal_ids_of_a_manifest_are_told_to_differ(find, tmp_path):
    touch(tmp_path / "a.svs", tmp_path / "b.svs")
    touch(tmp_path / "m.csv", data=b"slide,slide_id\na.svs,x\nb.svs,x\n")
    first, second = find("m.csv").refused
    assert first.reason == (
        f"{tmp_path / 'a.svs'} has the id 'x', and so has {tmp_path / 'b.svs'}. "
        "Give each its own slide_id in a manifest."
    )
    assert second.reason.startswith(str(tmp_path / "b.svs"))


def test_relpath_of_a_file_elsewhere_never_escapes(find, tmp_path, monkeypatch):
    touch(tmp_path / "here" / "a.svs", tmp_path / "there" / "x.svs")
    monkeypatch.chdir(tmp_path / "here")
    found = find("a.svs", "../there/x.svs", slide_id="relpath")
    below_root = str(tmp_path / "there" / "x.svs").removeprefix("/")
    assert ids(found) == ["a.svs", below_root]


def test_a_manifest_keeps_order_ids_as_text_and_other_columns(find, tmp_path):
    touch(*(tmp_path / "data" / f"{n}.svs" for n in "abc"), tmp_path / "data" / "m.png")
    text = (
        "Slide,slide_id,MPP,mask_path,Case ID\n"
        "c.svs,007,,m.png,P1\n\n"
        f"{tmp_path}/data/a.svs,,0.5,,\n"
        'b.svs,"x, y"\n'
    )
    (tmp_path / "data" / "list.csv").write_text(text, encoding="utf-8-sig")
    first, second, third = find("data/list.csv", mpp=0.25).slides
    assert (first.slide_id, second.slide_id, third.slide_id) == ("007", "a", "x, y")
    assert (first.mpp, first.mpp_source) == (0.25, "override")
    assert (second.mpp, second.mpp_source) == (0.5, "manifest")
    assert first.mask_path == tmp_path / "data" / "m.png"
    assert second.mask_path is None
    assert dict(first.extra) == {"case_id": "P1"}


def test_a_manifest_looks_beside_itself_first_and_then_in_the_working_directory(find, tmp_path):
    touch(tmp_path / "lists" / "a.svs", tmp_path / "a.svs", tmp_path / "b.svs")
    touch(tmp_path / "lists" / "m.csv", data=b"wsi_path;site\na.svs;1\nb.svs;2\n")
    paths = [slide.path for slide in find("lists/m.csv").slides]
    assert paths == [tmp_path / "lists" / "a.svs", tmp_path / "b.svs"]


def test_what_a_manifest_says_wins_over_finding_the_file_in_a_folder(find, tmp_path):
    touch(tmp_path / "d" / "a.svs")
    touch(tmp_path / "m.csv", data=b"slide,mpp\nd/a.svs,0.5\n")
    (slide,) = find("d", "m.csv").slides
    assert slide.mpp == 0.5


@pytest.mark.parametrize(("row", "missing"), [(b"z.svs,", "z.svs"), (b"b.svs,m.png", "m.png")])
def test_a_missing_file_of_a_manifest_is_refused_alone(find, tmp_path, row, missing):
    touch(tmp_path / "a.svs", tmp_path / "b.svs")
    touch(tmp_path / "m.csv", data=b"slide,mask_path\na.svs,\n" + row + b"\n")
    found = find("m.csv")
    assert ids(found) == ["a"]
    (refused,) = found.refused
    assert "m.csv line 3: there is no file" in refused.reason
    assert str(tmp_path / missing) in refused.reason


def test_an_id_too_long_for_a_file_name_is_refused_alone(find, tmp_path):
    touch(tmp_path / f"{'x' * 240}.svs", tmp_path / "a.svs")
    found = find(".")
    assert ids(found) == ["a"]
    assert "180 bytes" in found.refused[0].reason


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no rows"),
        (b"slide\n", "no rows"),
        (b"name,mpp\na.svs,1\n", "line 1: no column 'slide'.*its columns are name, mpp"),
        (b"slide,slide\na.svs,b\n", "line 1: the column 'slide' is there twice"),
        (b"slide\na.svs\n\n./a.svs\n", r"line 4: .*a\.svs is already in .*line 2"),
        (b"slide,mpp\na.svs,abc\n", "line 2: mpp 'abc' is not a positive number"),
        (b"slide,mpp\na.svs,-1\n", "line 2: mpp '-1'"),
        (b"slide,mpp\na.svs,nan\n", "line 2: mpp 'nan'"),
        (b"slide\na.svs,b,c\n", "line 2: 3 fields for 1 columns"),
        (b"slide\n\xff\xfea.svs\n", "line 2: not UTF-8"),
        (b'slide\n"a.svs\n', "not a CSV table"),
        (b"slide,mpp\n,0.5\n", "line 2: the column 'slide' is empty"),
        (b"slide,slide_id\na.svs,../a\n", r"line 2: '\.\./a' .* cannot name files"),
        (b"slide,slide_id\na.svs,/etc/a\n", "line 2: '/etc/a' .* cannot name files"),
        (b"slide\na.txt\n", "line 2: .*no suffix of a slide"),
    ],
)
def test_a_faulty_manifest_is_one_sentence_with_file_and_line(find, tmp_path, data, message):
    touch(tmp_path / "a.svs", tmp_path / "a.txt")
    touch(tmp_path / "m.csv", data=data)
    with pytest.raises(InputError, match=message) as caught:
        find("m.csv")
    assert "m.csv" in str(caught.value)


def test_an_mpp_table_matches_by_path_then_name_then_stem(find, tmp_path):
    touch(*(tmp_path / "d" / name for name in ("a.svs", "b.svs", "c.x.svs", "e.svs")))
    touch(tmp_path / "f" / "a.tif")
    rows = "wsi,mpp\nd/a.svs,0.1\n/elsewhere/b.svs,0.2\nc.x,0.3\nC:\\scans\\e.svs,0.4\na.tif,0.5\n"
    (tmp_path / "mpp.csv").write_text(rows)
    found = find(".", mpp_csv=tmp_path / "mpp.csv", mpp=9.0, slide_id="relpath", recursive=True)
    assert [slide.mpp for slide in found.slides] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert {slide.mpp_source for slide in found.slides} == {"mpp_csv"}
    assert found.notes == (f"{tmp_path / 'mpp.csv'}: a table: name it to use it",)


def test_a_dotted_name_is_no_suffix(find, tmp_path):
    touch(tmp_path / "tcga-1.svs")
    (tmp_path / "mpp.csv").write_text("wsi,mpp\ntcga-1.uuid,0.5\ntcga-1,0.25\n")
    (slide,) = find("tcga-1.svs", mpp_csv=tmp_path / "mpp.csv").slides
    assert slide.mpp == 0.25


def test_rows_without_a_usable_mpp_are_noted_and_skipped(find, tmp_path):
    touch(tmp_path / "a.svs")
    text = "wsi,mpp\na.svs,0.5\nb,\nc,0\nd,abc\n,1\nelse,1\n"
    (tmp_path / "mpp.csv").write_text(text)
    found = find("a.svs", mpp_csv=tmp_path / "mpp.csv")
    assert found.slides[0].mpp == 0.5
    lines = [f"line {n}" for n in (3, 4, 5, 6)]
    assert all(sum(line in note for note in found.notes) == 1 for line in lines)
    assert any("1 of 2 rows are for no slide" in note for note in found.notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wsi,mpp\na,0\n", "no row has a positive mpp"),
        ("wsi,um\na,1\n", "no column 'mpp'"),
        ("wsi,mpp\na.svs,1\na.svs,2\n", "line 3: mpp 2 for a.svs, but .*line 2 says 1"),
        ("wsi,mpp\na,1\n", r"line 2: 'a' fits both .*a\.svs and .*a\.tif"),
    ],
)
def test_a_faulty_mpp_table_is_refused(find, tmp_path, text, message):
    touch(tmp_path / "a.svs", tmp_path / "d" / "a.tif")
    (tmp_path / "mpp.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        find("a.svs", "d", mpp_csv=tmp_path / "mpp.csv", slide_id="relpath")


def test_a_manifest_and_an_mpp_table_must_not_contradict_each_other(find, tmp_path):
    touch(tmp_path / "a.svs")
    (tmp_path / "m.csv").write_text("slide,mpp\na.svs,0.5\n")
    (tmp_path / "mpp.csv").write_text("wsi,mpp\na,0.25\n")
    with pytest.raises(InputError, match=r"mpp\.csv line 2: mpp 0.25, but .*m\.csv line 2 says 0"):
        find("m.csv", mpp_csv=tmp_path / "mpp.csv")


def test_companions_are_grouped_with_their_slide(find, tmp_path):
    folder = tmp_path / "d"
    index = b"[Virtual Microscope Specimen]\r\nImageFile=v-0.jpg\r\nImageFile(1,0)=v-1.jpg\r\n"
    touch(folder / "m.mrxs", folder / "m" / "Slidedat.ini", folder / "m" / "Data0000.dat")
    touch(folder / "v-0.jpg", folder / "v-1.jpg", folder / "free.jpg")
    touch(folder / "v.vms", data=index + b"MacroImage=absent.jpg\r\n")
    found = find("d", recursive=True, formats="all")
    assert ids(found) == ["free", "m", "v"]
    _, mrxs, vms = found.slides
    assert [p.name for p in mrxs.companions] == ["Data0000.dat", "Slidedat.ini"]
    assert [p.name for p in vms.companions] == ["v-0.jpg", "v-1.jpg"]


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    value += b" " * (len(value) % 2)
    head = struct.pack("<HH2s", group, number, vr)
    if vr in (b"SQ", b"OB"):
        return head + struct.pack("<HI", 0, len(value)) + value
    return head + struct.pack("<H", len(value)) + value


def dicom(uid: str, *, implicit: bool = False, size: int = 0) -> bytes:
    syntax = b"1.2.840.10008.1.2" if implicit else b"1.2.840.10008.1.2.1"
    header = element(2, 1, b"OB", b"\0\1") + element(2, 16, b"UI", syntax)
    if implicit:
        body = struct.pack("<HHI", 0x20, 0xE, len(uid)) + uid.encode()
    else:
        # An undefined-length sequence with a nested one in it, whose series is not ours.
        inner = element(0x20, 0xE, b"UI", b"9.9.9.9")
        undefined = struct.pack("<HH2sHI", 8, 0x1115, b"SQ", 0, 0xFFFFFFFF)
        item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
        item_end = struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
        end = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
        known = element(8, 0x1140, b"SQ", b"")
        nested = undefined + item + inner + item_end + end
        body = undefined + item + inner + nested + known + item_end + end
        body += element(0x20, 0xE, b"UI", uid.encode())
    return b"\0" * 128 + b"DICM" + header + body + b"\0" * size


@pytest.mark.parametrize("implicit", [False, True])
def test_a_series_uid_is_read_from_either_encoding(tmp_path, implicit):
    touch(tmp_path / "a.dcm", data=dicom("1.2.3.4", implicit=implicit))
    assert series_uid(tmp_path / "a.dcm") == "1.2.3.4"


def test_the_series_uid_of_a_real_file_is_the_one_that_openslide_reads(shared_data):
    openslide = pytest.importorskip("openslide")
    path = shared_data / "slides" / "camelyon_lymph_node_jpeg.dcm"
    with openslide.OpenSlide(path) as slide:
        assert series_uid(path) == slide.properties["dicom.SeriesInstanceUID"]


@pytest.mark.parametrize("cut", [0, 100, 132, 150, 170, 200])
def test_a_damaged_dicom_has_no_series(tmp_path, cut):
    touch(tmp_path / "a.dcm", data=dicom("1.2.3.4")[:cut])
    assert series_uid(tmp_path / "a.dcm") is None


def test_a_dicom_series_is_one_slide_however_it_is_named(find, tmp_path):
    folder = tmp_path / "d"
    touch(folder / "1.dcm", data=dicom("1.2.3", size=10))
    touch(folder / "2.dcm", data=dicom("1.2.3", size=900))
    touch(folder / "3.dcm", data=dicom("1.2.4"))
    touch(folder / "4.dcm", data=b"no DICOM")
    for words in (["d"], ["d/1.dcm", "d/2.dcm", "d/3.dcm", "d/4.dcm"], ["d/*.dcm"]):
        found = find(*words)
        assert ids(found) == ["2", "3", "4"]
        assert found.slides[0].companions == (folder / "1.dcm",)
    assert ids(find("d/1.dcm")) == ["2"]


def test_a_name_that_is_no_utf8_is_left_aside_with_a_note(find, tmp_path):
    touch(tmp_path / "d" / "a.svs")
    raw = os.fsdecode(os.fsencode(tmp_path / "d") + b"/b\xff.svs")
    touch(Path(raw))
    found = find("d")
    assert ids(found) == ["a"]
    assert any("not UTF-8" in note for note in found.notes)
    with pytest.raises(InputError, match="cannot name files"):
        find(raw)


def test_the_shared_folders_are_accounted_for(find, shared_data):
    for folder in ("slides", "broken"):
        found = find(shared_data / folder, formats="all", slide_id="relpath")
        files = {path.name for path in (shared_data / folder).iterdir()}
        named = {slide.path.name for slide in found.slides}
        named |= {Path(note.split(": ")[0]).name for note in found.notes}
        assert named == files
