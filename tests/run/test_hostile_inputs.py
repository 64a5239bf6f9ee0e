"""Tables, names and files that are not as anybody meant them."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import threading
import unicodedata
from pathlib import Path

import pytest
from run_checks import ids, leftovers, states, touch

from microtome.errors import InputError, MicrotomeError, SlideReadError, one_line
from microtome.plugin.registry import get_registry
from microtome.run.inputs import paths
from microtome.run.inputs.changes import Unchanged
from microtome.run.inputs.companions import series_uid
from microtome.run.inputs.finding import SlideList, find_slides
from microtome.run.inputs.ids import MAX_PATH_BYTES
from microtome.run.inputs.paths import absolute
from microtome.run.settings import RunConfig
from microtome.store.status import read_status


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def find(tmp_path):
    def find(*words: object, **options: object) -> SlideList:
        options = {"output": tmp_path / "out"} | options
        return find_slides(RunConfig(slides=tuple(map(str, words)), **options), get_registry())

    return find


TABLE = "slide,slide_id,mpp\na b.svs,é,0.25\n"


class TestTables:
    @pytest.mark.parametrize(
        "data",
        [
            TABLE.encode("utf-8-sig"),
            TABLE.encode("utf-16"),
            b"\xfe\xff" + TABLE.encode("utf-16-be"),
            TABLE.replace(",", "\t").encode("utf-16"),
            TABLE.replace(",", ";").encode(),
            TABLE.replace(",", ";").replace("0.25", "0,25").encode(),
            TABLE.replace("0.25", '"0,25"').encode(),
            TABLE.replace("0.25", "+2.5e-1").encode(),
            TABLE.replace("\n", "\r\n").encode(),
            TABLE.replace("\n", "\r").encode(),
            TABLE.replace("a b.svs", '"a b.svs"').replace("slide,", '"slide",').encode(),
            TABLE.replace("a b.svs", "  a b.svs  ").encode(),
            b"\n\n" + TABLE.encode(),
            TABLE.encode() + b",,\n\n",
        ],
        ids=[
            "byte order mark", "UTF-16", "UTF-16 big endian", "UTF-16 with tabs", "semicolons",
            "decimal commas", "quoted decimal comma", "exponent", "CRLF", "CR", "quotes",
            "spaces", "empty lines first", "empty lines last",
        ],
    )  # fmt: skip
    def test_as_programs_write_them(self, find, tmp_path, data):
        touch(tmp_path / "a b.svs")
        touch(tmp_path / "m.csv", data=data)
        (slide,) = find("m.csv").slides
        assert (slide.path.name, slide.slide_id, slide.mpp) == ("a b.svs", "é", 0.25)

    @pytest.mark.parametrize(
        ("data", "said"),
        [
            (TABLE.encode("latin-1"), "line 2: not UTF-8 text"),
            ("slide\na.svs\n".encode("utf-16-le"), "line 1: holds a NUL"),
            (TABLE.encode("utf-16") + b"\x00", "line 3: not UTF-16 text"),
            (TABLE.encode("utf-32"), "line 1: holds a NUL"),
            (b"slide\na.svs\n\0.svs\n", "line 3: holds a NUL"),
            (b"\x89PNG\r\n\x1a\n", "line 1: not UTF-8 text"),
            (b"PK\x03\x04" + bytes(range(256)), "not UTF-8 text"),
            (b"", "has no rows"),
            (b"\xef\xbb\xbf", "has no rows"),
            (b"slide,mpp\n\n\n", "has no rows"),
            (b"# made by hand\nslide\na.svs\n", "line 1: no column 'slide'"),
            (b"slide|mpp\na.svs|1\n", "line 1: no column 'slide'"),
            (b"slide,mpp\na.svs,0,25\n", "line 2: 3 fields for 2 columns; put quotes"),
            (b"slide,mpp\na.svs,1_0\n", "line 2: mpp '1_0' is not a positive number"),
            (b"slide,mpp\na.svs,0x1\n", "line 2: mpp '0x1'"),
            (b"slide,mpp\na.svs,inf\n", "line 2: mpp 'inf'"),
            (b"slide,mpp\na.svs,1e999\n", "line 2: mpp '1e999'"),
            ("slide,mpp\na.svs,٠٫٥\n".encode(), "line 2: mpp"),
            (b"slide\na.svs\na.svs\n", r"line 3: .*a\.svs is already in .*m\.csv line 2"),
            (b"slide\n" + b"x" * 200_000, "line 2: not a CSV table: field larger"),
            (b'slide\n"a.svs" b\n', "line 2: not a CSV table"),
            (b"," * 100_000 + b"\n", "has no rows"),
        ],
    )
    def test_one_sentence_names_file_and_line(self, find, tmp_path, data, said):
        touch(tmp_path / "a.svs")
        touch(tmp_path / "m.csv", data=data)
        with pytest.raises(InputError, match=said) as caught:
            find("m.csv")
        text = str(caught.value)
        assert "m.csv" in text
        assert "\n" not in text
        assert len(text) < 600

    @pytest.mark.parametrize("count", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
    def test_as_many_rows(self, find, tmp_path, count):
        touch(tmp_path / "a.svs")
        rows = "".join(f"/elsewhere/{number}.svs,0.5\n" for number in range(count))
        (tmp_path / "mpp.csv").write_text(f"wsi,mpp\n{rows}a,0.25\n")
        found = find("a.svs", mpp_csv=tmp_path / "mpp.csv")
        assert found.slides[0].mpp == 0.25
        assert f"{count} of {count + 1} rows are for no slide" in found.notes[-1]

    def test_a_name_with_a_newline(self, find, tmp_path):
        touch(tmp_path / "two\nlines.svs", tmp_path / "b.svs")
        touch(tmp_path / "m.csv", data=b'slide\n"two\nlines.svs"\nb.svs\ngone.svs\n')
        found = find("m.csv")
        assert ids(found) == ["two\nlines", "b"]
        assert "line 5: there is no file" in found.refused[0].reason

    @pytest.mark.parametrize("cell", ["x" * 300 + ".svs", "a/" * 3000 + "b.svs"])
    def test_a_name_that_no_system_takes_is_refused_alone(self, find, tmp_path, cell):
        touch(tmp_path / "a.svs")
        touch(tmp_path / "m.csv", data=f"slide,mask_path\na.svs,\n{cell},\na.svs,{cell}\n".encode())
        with pytest.raises(InputError, match=r"line 4: .* is already in"):
            find("m.csv")
        touch(tmp_path / "m.csv", data=f"slide,mask_path\na.svs,\n{cell},{cell}\n".encode())
        found = find("m.csv")
        assert ids(found) == ["a"]
        assert "line 3: there is no file" in found.refused[0].reason

    @pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
    def test_an_accent_is_found_however_it_is_written(self, find, tmp_path, forms):
        disk, written = (unicodedata.normalize(form, "Prélèvement") for form in forms)
        touch(tmp_path / f"{disk}.svs", tmp_path / disk / "mask.png")
        (tmp_path / "m.csv").write_text(f"slide,mask_path\n{written}.svs,{written}/mask.png\n")
        (slide,) = find("m.csv").slides
        assert slide.path == tmp_path / f"{disk}.svs"
        assert slide.mask_path == tmp_path / disk / "mask.png"
        assert ids(find(f"{written}.svs")) == [disk]
        (tmp_path / "mpp.csv").write_text(f"wsi,mpp\n{written},0.5\n")
        assert find(f"{disk}.svs", mpp_csv=tmp_path / "mpp.csv").slides[0].mpp == 0.5

    def test_two_accents_are_two_slides(self, find, tmp_path):
        names = [unicodedata.normalize(form, "é") for form in ("NFD", "NFC")]
        touch(*(tmp_path / "d" / f"{name}.svs" for name in names))
        if len(list((tmp_path / "d").iterdir())) < 2:
            pytest.skip("the file system takes both for one name")
        assert ids(find("d")) == names


class TestPaths:
    @pytest.mark.parametrize("name", ["-x.svs", "--help.svs", "a..svs", "sp ace .svs"])
    def test_a_name_is_a_name(self, find, tmp_path, name):
        touch(tmp_path / name)
        assert find(f"./{name}").slides[0].path == tmp_path / name

    def test_up_is_where_the_system_says(self, find, tmp_path):
        """Where a link leads elsewhere, so does ``..`` from there."""
        touch(tmp_path / "store" / "deep" / "x", tmp_path / "store" / "a.svs", tmp_path / "a.svs")
        (tmp_path / "link").symlink_to(tmp_path / "store" / "deep")
        (slide,) = find("link/../a.svs").slides
        assert slide.path == tmp_path / "store" / "a.svs"
        assert absolute(Path("link/a.svs")) == tmp_path / "link" / "a.svs"
        assert absolute(Path("link/x/../../b")) == tmp_path / "store" / "b"

    def test_links_that_lead_nowhere_are_told(self, find, tmp_path):
        folder = tmp_path / "d"
        touch(folder / "a.svs")
        (folder / "gone.svs").symlink_to("nowhere.svs")
        (folder / "self.svs").symlink_to("self.svs")
        (folder / "one.svs").symlink_to("two.svs")
        (folder / "two.svs").symlink_to("one.svs")
        found = find(folder)
        assert ids(found) == ["a"]
        assert [Path(note.partition(":")[0]).stem for note in found.notes] == [
            "gone", "one", "self", "two",
        ]  # fmt: skip
        assert all(note.endswith("a broken link or no regular file") for note in found.notes)
        for name in ("gone", "self"):
            with pytest.raises(InputError, match=r"is a link to .*, where there is no file"):
                find(folder / f"{name}.svs")

    def test_a_pattern_survives_links_that_form_loops(self, find, tmp_path):
        touch(tmp_path / "d" / "sub" / "a.svs", tmp_path / "d" / ".hidden" / "b.svs")
        for name in ("one", "two", "three"):  # 3 ^ 40 ways through them
            (tmp_path / "d" / "sub" / name).symlink_to(tmp_path / "d")
        assert ids(find("d/**/*.svs")) == ["a"]
        assert ids(find("d/**")) == ["a"]
        assert ids(find(tmp_path / "d" / "**" / "*")) == ["a"]
        assert ids(find("d", recursive=True)) == ["a"]

    def test_folders_too_deep_for_recursion(self, find, tmp_path):
        depth = 1_200
        (tmp_path / "d").mkdir()
        folder = "d"
        for _ in range(depth):  # not by mkdir(parents=True), which is recursive itself
            folder += "/n"
            Path(folder).mkdir()
        Path(folder, "a.svs").write_bytes(b"x")
        try:
            found = find("d", recursive=True, slide_id="relpath")
        finally:
            subprocess.run(["rm", "-r", "d"], check=True)
        assert ids(found) == ["n/" * depth + "a.svs"]

    def test_more_links_than_one_may_follow(self, find, tmp_path):
        """The system refuses a path over too many links, with an error of its own."""
        touch(tmp_path / "d" / "a.svs")
        for number in range(60):
            (tmp_path / "d" / f"{number}.svs").symlink_to(f"{number + 1}.svs")
        found = find("d")
        assert ids(found) == ["a"]
        assert len(found.notes) == 60

    @pytest.mark.parametrize("word", ["x" * 256, "a/" * 2500 + "b.svs", "a\0b.svs", ".\n."])
    def test_what_no_system_takes_is_one_sentence(self, find, word):
        with pytest.raises(InputError) as caught:
            find(word)
        assert "\n" not in str(caught.value)

    def test_a_folder_named_like_a_slide_is_a_folder(self, find, tmp_path):
        touch(tmp_path / "x.svs" / "a.svs")
        assert ids(find("x.svs")) == ["a"]
        touch(tmp_path / "m.csv", data=b"slide\nx.svs\nx.svs/a.svs\n")
        found = find("m.csv")
        assert ids(found) == ["a"]
        assert found.refused[0].reason.endswith("is a folder, not a file.")

    def test_ids_that_leave_no_room_are_refused_alone(self, find, tmp_path):
        deep = tmp_path / "d" / "/".join(["n" * 200] * 4)
        touch(tmp_path / "d" / "a.svs", deep / "b.svs")
        output = tmp_path / ("o" * (MAX_PATH_BYTES - len(os.fsencode(tmp_path)) - 800))
        found = find("d", recursive=True, slide_id="relpath", output=output)
        assert ids(found) == ["a.svs"]
        assert f"{MAX_PATH_BYTES:,}" in found.refused[0].reason

    def test_thousands_of_slides_of_one_name_are_told_briefly(self, find, tmp_path):
        for number in range(2_000):
            touch(tmp_path / "d" / str(number) / "slide.svs")
        found = find("d", recursive=True)
        assert not found.slides
        assert len(found.refused) == 2_000
        reasons = [refused.reason for refused in found.refused]
        assert max(map(len, reasons)) < 5 * len(str(tmp_path)) + 300
        assert all("and 1996 more. Use slide_id=relpath" in reason for reason in reasons)
        assert len(find("d", recursive=True, slide_id="relpath").slides) == 2_000

    def test_what_may_not_be_read_is_told(self, find, tmp_path, monkeypatch):
        touch(tmp_path / "d" / "a.svs", tmp_path / "d" / "locked" / "b.svs")
        scan = os.scandir

        def scandir(folder):
            if Path(folder).name == "locked":
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return scan(folder)

        monkeypatch.setattr("microtome.run.inputs.finding.os.scandir", scandir)
        found = find("d", recursive=True)
        assert ids(found) == ["a"]
        assert found.notes == (f"{tmp_path / 'd/locked'}: cannot be read: Permission denied",)
        with pytest.raises(InputError, match="cannot be read: Permission denied"):
            find("d/locked")

    def test_a_table_that_may_not_be_read_is_told(self, find, tmp_path, monkeypatch):
        touch(tmp_path / "m.csv")

        def refuse(self):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(Path, "read_bytes", refuse)
        with pytest.raises(InputError, match=r"m\.csv cannot be read: Permission denied"):
            find("m.csv")

    def test_near_names_are_looked_for_where_a_folder_can_be_listed(self, tmp_path, monkeypatch):
        def refuse(self):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(Path, "iterdir", refuse)
        text = paths.explain_missing(str(tmp_path / "a.svs"))
        assert text == f"There is no file or folder {str(tmp_path / 'a.svs')!r}."


@pytest.fixture(params=["pipe", "socket", "device"])
def no_file(request, tmp_path):
    """Make what may be opened for ever: by its name a slide, or a table."""

    def make(name: str) -> Path:
        path = tmp_path / "d" / name
        path.parent.mkdir(exist_ok=True)
        if request.param == "pipe":
            os.mkfifo(path)
        elif request.param == "device":
            path.symlink_to("/dev/zero")
        else:
            before = Path.cwd()
            os.chdir(path.parent)  # a socket's path is short
            server = socket.socket(socket.AF_UNIX)
            server.bind(name)
            server.close()
            os.chdir(before)
        return path

    return make


class TestNoFiles:
    def test_a_slide(self, find, no_file, tmp_path):
        path = no_file("x.svs")
        touch(tmp_path / "d" / "a.svs")
        with pytest.raises(InputError, match="is no regular file"):
            find(path)
        assert ids(find("d")) == ["a"]
        assert ids(find("d/*.svs")) == ["a"]

    def test_a_table(self, find, no_file, tmp_path):
        path = no_file("x.csv")
        touch(tmp_path / "a.svs")
        with pytest.raises(InputError, match="is no regular file"):
            find(path)
        with pytest.raises(InputError, match="is no regular file"):
            find("a.svs", mpp_csv=path)

    def test_of_a_table(self, find, no_file, tmp_path):
        path = no_file("x.svs")
        touch(tmp_path / "a.svs")
        (tmp_path / "m.csv").write_text(f"slide,mask_path\na.svs,{path}\n{path},\n")
        found = find("m.csv")
        assert [refused.reason.endswith("is no regular file.") for refused in found.refused] == [
            True, True,
        ]  # fmt: skip

    def test_of_a_name_that_no_reader_claims(self, find, no_file):
        with pytest.raises(InputError, match="is no regular file"):
            find(no_file("x.raw"))

    def test_beside_slides_in_several_files(self, find, no_file, tmp_path):
        path = no_file("part.jpg")
        touch(tmp_path / "d" / "v.vms", data=b"ImageFile=part.jpg\n")
        touch(tmp_path / "d" / "m.mrxs", tmp_path / "d" / "m" / "a.dat")
        path.rename(tmp_path / "d" / "m" / "b.dat")
        mrxs, vms = find("d").slides
        assert [file.name for file in mrxs.companions] == ["a.dat"]
        assert vms.companions == ()


def test_dicom_headers_of_noise_end(tmp_path):
    path = tmp_path / "noise.dcm"
    head = bytes(128) + b"DICM"
    noise = bytes(range(256)) * 300
    for start in range(256):
        path.write_bytes(head + b"\x08\x00\x05\x00SQ\0\0\xff\xff\xff\xff" + noise[start:])
        series_uid(path)
        path.write_bytes(head + noise[start:])
        assert series_uid(path) is None


def test_a_message_is_one_line_whatever_it_quotes():
    error = MicrotomeError("a\nb\r\x1b[31mc\u2028d\udce9")
    assert str(error) == r"a\nb\r\x1b[31mc\u2028d\udce9"
    assert str(error).encode() == one_line("a\nb\r\x1b[31mc\u2028d\udce9").encode()
    assert str(InputError("Prélèvement 切片: 5 µm — “quoted”")).startswith("Prélèvement 切片")


class TestChanges:
    """A slide that another program writes to while it is read."""

    @staticmethod
    def append(path):
        with path.open("ab") as file:
            file.write(b"more")

    @staticmethod
    def truncate(path):
        os.truncate(path, path.stat().st_size // 2)

    @staticmethod
    def delete(path):
        path.unlink()

    @staticmethod
    def replace(path):
        other = path.with_suffix(".part")
        other.write_bytes(path.read_bytes())
        other.replace(path)

    @staticmethod
    def write_within(path):
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            file.write(b"\0" * 16)

    CHANGES = ("append", "truncate", "delete", "replace", "write_within")

    @pytest.fixture(params=CHANGES)
    def change(self, request):
        def change(path):
            if path.exists():
                os.utime(path, (1e9, 1e9))
            getattr(self, request.param)(path)

        return change

    def test_is_noticed(self, tmp_path, change):
        path, other = tmp_path / "a.svs", tmp_path / "b.svs"
        touch(path, other, data=b"slide" * 100)
        os.utime(path, (1e9, 1e9))
        files = Unchanged([other, path])
        files.check()
        change(path)
        with pytest.raises(SlideReadError, match=r"a\.svs changed while it was read"):
            files.check()

    @pytest.mark.parametrize("moment", ["tissue", "tiles"])
    @pytest.mark.parametrize("writer", [["hdf5", "png"], ["zarr"]])
    def test_fails_that_slide_and_publishes_nothing(
        self, go, slide, tmp_path, monkeypatch, change, moment, writer
    ):
        from microtome.run.slides import pipeline, production

        shutil.copy(slide, tmp_path / "slides/two.svs")
        target = tmp_path / "slides/one.svs"
        module, name = {
            "tissue": (pipeline, "find_tissue"),
            "tiles": (production, "slide_attributes"),
        }[moment]
        original = getattr(module, name)

        def meanwhile(opened, *args, **kwargs):
            if opened.ref.path == target:
                change(target)
            return original(opened, *args, **kwargs)

        monkeypatch.setattr(module, name, meanwhile)
        result = go(tmp_path / "slides", writer=writer, visualize=["grid"])
        assert states(result) == ["failed", "done"]
        status = read_status(tmp_path / "out/status/one.json")
        assert "one.svs changed while it was read" in status.message
        assert "traceback" not in status.error
        assert status.stage == moment
        out = tmp_path / "out"
        published = {
            path.relative_to(out).parts[0]
            for path in out.rglob("one*")
            if "status" not in path.parts
        }
        assert published <= ({"tissue"} if moment == "tiles" else set())
        assert not leftovers(out)

    def test_is_why_a_reader_fails(self, go, slide, tmp_path, monkeypatch):
        """Not what the reader says, who finds the file cut short."""
        from microtome.run.slides.pixels import PixelPass

        def cut(self, reader, grid):
            TestChanges.truncate(slide)
            raise SlideReadError("tile 7 cannot be decoded")

        monkeypatch.setattr(PixelPass, "run", cut)
        result = go(slide)
        assert states(result) == ["failed"]
        assert "changed while it was read: it had" in result.statuses[0].message


def test_a_slide_that_becomes_a_pipe_fails_alone(go, slide, tmp_path, monkeypatch):
    from microtome.run.slides import pipeline

    shutil.copy(slide, tmp_path / "slides/two.svs")
    original = pipeline.SlideWork._open

    def swap(self):
        if self.ref.slide_id == "one":
            slide.unlink()
            os.mkfifo(slide)
        return original(self)

    monkeypatch.setattr(pipeline.SlideWork, "_open", swap)
    done = threading.Event()
    found = []

    def work():
        found.append(go(tmp_path / "slides"))
        done.set()

    threading.Thread(target=work, daemon=True).start()
    assert done.wait(60)
    assert states(found[0]) == ["failed", "done"]


NASTY = [
    "-x.svs",
    "two\nlines.svs",
    "\x1b[31mred.svs",
    "naïve 切片 (1),a=b{c}.svs",
    "..hidden not.svs",
    "x" * 170 + ".svs",
]


@pytest.mark.parametrize("name", NASTY)
def test_a_nasty_name_goes_through_a_whole_run(go, slide, tmp_path, name):
    path = slide.rename(slide.with_name(name))
    result = go(f"{path}", writer=["hdf5", "png"], visualize=["grid"])
    assert states(result) == ["done"], result.statuses[0].message
    assert states(go(f"{path}", writer=["hdf5", "png"], visualize=["grid"])) == ["reused"]
    assert (tmp_path / "out/patches" / f"{path.stem}.h5").exists()
    assert not leftovers(tmp_path / "out")


@pytest.mark.parametrize("writer", ["hdf5", "zarr"])
def test_a_folder_whose_name_is_no_text(go, slide, tmp_path, writer):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("the file system takes text only")
    path = slide.rename(folder / "one.svs")
    result = go(path, writer=writer)
    assert states(result) == ["done"], result.statuses[0].message
    assert states(go(path, writer=writer)) == ["reused"]


def test_a_long_path_goes_through_a_whole_run(go, slide, tmp_path):
    folder = tmp_path / "/".join(["n" * 100] * 8)
    folder.mkdir(parents=True)
    path = slide.rename(folder / "one.svs")
    assert states(go(path, output=folder / "out")) == ["done"]
