"""Slides by URL: their names, the runs that fetch them, the files that belong to them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from staged import SIZE, closing_held, features, units

from microtome.config.argv import parse
from microtome.errors import InputError, MissingDependencyError, SlideOpenError
from microtome.run.inputs.cache import SlideCache
from microtome.run.inputs.sources import RemoteSource, check_urls, is_url, url_path

pytestmark = pytest.mark.usefixtures("quick_cache")


@pytest.fixture
def memory():
    """Give an empty file system in memory."""
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()


# Names.


def test_urls_and_paths():
    for url in ("s3://bucket/a.svs", "HTTPS://host/x y.svs", "memory://a", "gs://b/c/d.mrxs"):
        assert is_url(url)
    for path in ("a.svs", "/a/b.svs", "C:\\x.svs", "c://", "a/b://c", "://x", "x=s3://b/a.svs"):
        assert not is_url(path)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("s3://bucket/dir/a b%20.svs", "/bucket/dir/a b%20.svs"),
        ("https://host:80/dir/a%20b.svs?sig=x/y.svs", "/host:80/dir/a b.svs"),
        ("memory://dir/a.svs", "/dir/a.svs"),
        ("file:///data/../x/a.svs", "/data/x/a.svs"),
        ("sftp://me@host/a.svs", "/me@host/a.svs"),
    ],
)
def test_a_url_names_a_file(url, path):
    assert url_path(url) == Path(path)


@pytest.mark.parametrize("url", ["s3://bucket/", "https://host", "https://host/", "memory://x/"])
def test_a_url_without_a_file(url):
    with pytest.raises(InputError, match="names no file"):
        url_path(url)


def test_a_password_is_refused_and_not_repeated():
    with pytest.raises(InputError, match="has a password in it") as caught:
        url_path("sftp://me:hush@host/a.svs")
    assert "hush" not in str(caught.value)


def test_what_reads_urls_is_looked_for_first(monkeypatch):
    pytest.importorskip("fsspec")
    with pytest.raises(InputError, match="no file system named 'nowhere'"):
        check_urls(["memory://a.svs", "nowhere://a.svs"])
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingDependencyError, match=r"pip install s3fs$"):
        check_urls(["s3://bucket/a.svs"])
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'microtome\[remote\]'$"):
        check_urls(["memory://a.svs"])


def test_the_command_line_takes_urls_as_they_are():
    url = "https://host/a,b (1).svs?x=1&y=${z}"
    (override,) = parse([url], {}).overrides
    assert override == "slides=['https://host/a,b (1).svs?x=1&y=\\${z}']"


# Whole runs.


def put(memory, slide, name="/far/one.svs"):
    memory.makedirs(str(Path(name).parent), exist_ok=True)
    memory.put_file(str(slide), name)


def test_slides_by_url(go, slide, tmp_path, memory):
    put(memory, slide)
    url = "memory://far/one.svs"
    result = go([url, "memory://far/absent.svs"])
    done, absent = sorted(result.statuses, key=lambda status: status.state)
    assert (done.slide_id, done.state, done.path) == ("one", "done", url)
    assert (absent.state, absent.stage, absent.path) == (
        "failed",
        "fetch",
        "memory://far/absent.svs",
    )
    assert absent.message.startswith("memory://far/absent.svs cannot be copied: ")
    assert "traceback" not in absent.error
    assert result.exit_code == 3
    assert features(tmp_path / "out")[2]["wsi_path"] == url
    (unit,) = units(tmp_path / "home/microtome/slides")
    assert (unit / "one.svs").read_bytes() == slide.read_bytes()
    plain = go(slide, output=tmp_path / "plain").statuses[0]
    assert (plain.fingerprint, plain.identities) == (done.fingerprint, done.identities)


def test_what_is_finished_is_not_fetched_again(go, slide, tmp_path, memory):
    put(memory, slide)
    near = tmp_path / "home/microtome/slides"
    first = go("memory://far/one.svs").statuses[0]
    shutil.rmtree(near)
    again = go("memory://far/one.svs").statuses[0]
    assert again.state == "reused"
    assert units(near) == []
    assert (again.tiles, again.outputs, again.seconds) == (first.tiles, first.outputs, {})
    record = json.loads((tmp_path / "out/status/one.json").read_text())
    assert record["state"] == "reused"


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({"encoder": ["mean", "handcrafted"]}, "done"),
        ({"visualize": "grid"}, "reused"),
        ({"force": True}, "done"),
        ({"tissue": {"min_region_um2": 5.0}}, "failed"),
        ({"mpp": 0.6}, "failed"),
    ],
    ids=str,
)
def test_what_is_asked_for_anew_is_fetched(go, slide, tmp_path, memory, change, state):
    put(memory, slide)
    near = tmp_path / "home/microtome/slides"
    go("memory://far/one.svs")
    shutil.rmtree(near)
    again = go("memory://far/one.svs", **change).statuses[0]
    assert again.state == state, again.message
    assert len(units(near)) == 1


def test_what_changed_or_is_gone_is_fetched(go, slide, tmp_path, memory):
    put(memory, slide)
    near = tmp_path / "home/microtome/slides"
    go("memory://far/one.svs")
    (tmp_path / "out/patches/one.h5").unlink()
    shutil.rmtree(near)
    assert go("memory://far/one.svs").statuses[0].state == "done"
    put(memory, slide)  # of another date
    shutil.rmtree(near)
    assert go("memory://far/one.svs").statuses[0].state == "reused"
    assert len(units(near)) == 1


def test_urls_in_a_manifest_and_of_one_stem(go, slide, tmp_path, memory):
    put(memory, slide)
    put(memory, slide, "/other/one.svs")
    table = tmp_path / "slides.csv"
    table.write_text("slide,slide_id,mpp\nmemory://far/one.svs,7,0.4\nmemory://other/one.svs,,\n")
    result = go(table)
    states = {status.slide_id: status.state for status in result.statuses}
    assert states == {"7": "done", "one": "done"}
    twice = go(["memory://far/one.svs", "memory://other/one.svs", "memory://far/one.svs"])
    assert len(twice.statuses) == 2
    assert all("has the id 'one'" in status.message for status in twice.statuses)
    apart = go(
        ["memory://far/one.svs", "memory://other/one.svs"],
        slide_id="relpath",
        output=tmp_path / "apart",
    )
    assert {status.slide_id for status in apart.statuses} == {"far/one.svs", "other/one.svs"}
    table.write_text("slide\nmemory://far/\n")
    with pytest.raises(InputError, match=r"slides\.csv line 2: memory://far/ names no file"):
        go(table)


# Files.


def test_a_remote_slide_of_many_files(memory, tmp_path):
    memory.makedirs("/far/m/deep", exist_ok=True)
    for name in ("m.mrxs", "m/Slidedat.ini", "m/deep/Data.dat", "other.svs"):
        memory.pipe_file(f"/far/{name}", name.encode())
    cache = SlideCache(tmp_path / "near", 10 * SIZE)
    source = RemoteSource("memory://far/m.mrxs")
    with closing_held(cache.fetch(source, lambda n: None, lambda n: None)) as held:
        staged = source.staged(held.folder)
        assert staged.primary.name == "m.mrxs"
        found = sorted(p.relative_to(held.folder).as_posix() for p in held.folder.rglob("*.*"))
        assert found == ["m.mrxs", "m/Slidedat.ini", "m/deep/Data.dat"]
        assert [p.name for p in staged.companions] == ["Slidedat.ini"]


def test_the_parts_that_an_index_names(memory, tmp_path):
    memory.makedirs("/far", exist_ok=True)
    memory.pipe_file("/far/x.vms", b"[Virtual Microscope]\nImageFile=part 1.jpg\nNoLayers=1\n")
    for name in ("part 1.jpg", "unnamed.jpg"):
        memory.pipe_file(f"/far/{name}", b"j")
    files = RemoteSource("memory://far/x.vms").files()
    assert [file.name for file in files] == ["x.vms", "part 1.jpg"]


def test_a_remote_dicom_folder_comes_whole(memory):
    memory.makedirs("/far", exist_ok=True)
    for name in ("1.dcm", "2.dcm", "3.DCM", "notes.txt"):
        memory.pipe_file(f"/far/{name}", b"d")
    files = RemoteSource("memory://far/2.dcm").files()
    assert [file.name for file in files] == ["2.dcm", "1.dcm", "3.DCM"]


def test_a_server_that_does_not_say_how_much_is_not_trusted(memory, monkeypatch):
    memory.pipe_file("/a.svs", b"x")
    source = RemoteSource("memory://a.svs")
    info = {"name": "/a.svs", "type": "file", "size": None}
    monkeypatch.setattr(type(memory), "info", lambda self, path, **options: info)
    with pytest.raises(SlideOpenError, match="does not say how many bytes"):
        source.files()


def test_a_file_system_that_raises_what_it_likes(go, memory, monkeypatch):
    class OddError(Exception):
        pass

    def fail(self, path, **options):
        raise OddError("code 7\nand a page of HTML")

    monkeypatch.setattr(type(memory), "info", fail)
    (status,) = go("memory://far/one.svs").statuses
    assert status.message == "memory://far/one.svs cannot be had: code 7."


def test_a_file_url(go, slide):
    pytest.importorskip("fsspec")
    (status,) = go(slide.as_uri()).statuses
    assert (status.state, status.path) == ("done", slide.as_uri())
