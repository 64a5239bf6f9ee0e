"""An output that takes nothing more: one sentence, and all that was there before stays."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from run_checks import files, leftovers, states

from microtome.config import app
from microtome.errors import OutputError, StoreError
from microtome.run.slides import pipeline
from microtome.store import atomic
from microtome.store.atomic import wrap_errors

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
HDF5 = "Can't write data (file write failed: time = now, errno = 28, error message = 'No space')"
TARGET = ["tiler.magnification=20", "tiler.size=256", "writer=[hdf5,png]", "visualize=all"]


def wrapped(path, error):
    with pytest.raises(StoreError) as caught, wrap_errors(path):
        raise error
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        OSError(errno.EDQUOT, "quota"),
        OSError(errno.EROFS, "read-only"),
        OSError(HDF5),
        RuntimeError(HDF5.replace("write data", "decrement id ref count")),
    ],
)
def test_what_every_slide_would_meet_ends_the_run(tmp_path, error):
    found = wrapped(tmp_path / "a.h5", error)
    assert isinstance(found, OutputError)
    assert "cannot be written" in str(found)
    assert "choose another output" in str(found)


def test_an_error_while_one_is_dealt_with_is_that_one(tmp_path):
    try:
        raise FULL
    except OSError:
        try:
            raise RuntimeError("Can't decrement id ref count (slist already enabled?)")
        except RuntimeError as error:
            second = error
    assert isinstance(wrapped(tmp_path / "a.h5", second), OutputError)


@pytest.mark.parametrize("code", [errno.EIO, errno.EFBIG, errno.ENAMETOOLONG, errno.EACCES])
def test_what_may_be_one_slides_trouble_does_not(tmp_path, code):
    assert type(wrapped(tmp_path / "a.h5", OSError(code, "no"))) is StoreError


def test_an_error_of_no_system_stays_what_it_is(tmp_path):
    with pytest.raises(RuntimeError, match="no errno here"), wrap_errors(tmp_path / "a"):
        raise RuntimeError("no errno here")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM])
@pytest.mark.parametrize("below", ["", "patches/sub"])
def test_a_folder_that_may_not_be_written_ends_the_run(tmp_path, monkeypatch, code, below):
    monkeypatch.setattr(atomic.os, "access", lambda folder, mode: Path(folder) != tmp_path)
    path = tmp_path / below / "a.h5"
    assert isinstance(wrapped(path, OSError(code, "no")), OutputError)
    assert isinstance(wrapped(tmp_path, OSError(code, "no")), OutputError)


FAILING = {
    "flush": (atomic.os, "fsync"),
    "rename": (atomic.os, "replace"),
    "features": (os, "pwrite"),
    "images": ("PIL.Image.Image", "save"),
    "hdf5": ("h5py.Group", "create_dataset"),
}


@pytest.fixture
def fill(monkeypatch, tmp_path):
    """Let a call fail from the second slide on."""

    def fill(call, error=FULL):
        owner, name = FAILING[call]
        where = f"{owner}.{name}" if isinstance(owner, str) else owner
        open_one = pipeline.SlideWork._open

        def refuse(*args, **kwargs):
            raise error

        def begin(work):
            if work.ref.slide_id == "two":
                if isinstance(owner, str):
                    monkeypatch.setattr(where, refuse)
                else:
                    monkeypatch.setattr(owner, name, refuse)
            return open_one(work)

        monkeypatch.setattr(pipeline.SlideWork, "_open", begin)

    return fill


@pytest.fixture
def three(slide, tmp_path):
    for name in ("two", "three"):
        shutil.copy(slide, tmp_path / f"slides/{name}.svs")
    return [tmp_path / f"slides/{name}.svs" for name in ("one", "two", "three")]


@pytest.mark.parametrize("call", FAILING)
def test_a_run_stops_and_what_was_finished_stays(go, three, tmp_path, fill, monkeypatch, call):
    out = tmp_path / "out"
    options = {"writer": ["hdf5", "png"], "visualize": ["grid"]}
    go(three[0], **options)
    before = files(out)
    with monkeypatch.context():
        fill(call)
        with pytest.raises(OutputError) as caught:
            go(three, **options)
    monkeypatch.undo()
    text = str(caught.value)
    assert "No space left on device; free some space" in text
    assert "with 1 of its slides finished" in text
    assert "\n" not in text
    after = files(out)
    assert {path: after[path] for path in before} == before
    assert not leftovers(out)
    assert not list(out.rglob("*.lease"))
    assert not list(out.rglob("*.attempts.json"))
    assert not (out / "status/three.json").exists()
    assert states(go(three, **options)) == ["reused", "done", "done"]


def test_the_record_of_the_run_says_why_where_it_can_be_written(go, three, tmp_path, fill):
    fill("features")
    with pytest.raises(OutputError):
        go(three)
    (record,) = (json.loads(path.read_text()) for path in tmp_path.glob("out/runs/*/run.json"))
    assert record["exit_code"] == 1
    assert "No space left" in record["error"]
    assert record["counts"] == {"done": 1}


def test_a_claim_that_cannot_be_written_is_given_back(go, slide, tmp_path, monkeypatch):
    write = atomic.write_bytes

    def refuse(path, data, **options):
        if path.name.endswith(".attempts.json"):
            with wrap_errors(path):
                raise FULL
        write(path, data, **options)

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "write_bytes", refuse)
        with pytest.raises(OutputError):
            go(slide)
    assert not list((tmp_path / "out").rglob("*.lease"))
    assert states(go(slide)) == ["done"]


def test_an_exit_code_that_cannot_be_written_down_is_not_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(app, "_left_nowhere", [])
    (tmp_path / "gone").touch()  # a file in place of the folder
    app._leave(tmp_path / "gone", 1, "full")
    assert app._left_nowhere == [1]
    assert app._outcomes(tmp_path) == []


def command(*words, **options):
    line = [sys.executable, "-m", "microtome", *map(str, words), *TARGET]
    return subprocess.run(line, capture_output=True, text=True, check=False, **options)


def test_a_file_that_is_too_large_for_the_system_fails_its_slide(slide, tmp_path):
    """SIGXFSZ kills nobody; a slide with fewer tiles may still fit."""
    ended = command(
        slide,
        f"output={tmp_path / 'out'}",
        "engine=inline",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)),
    )
    assert ended.returncode == 3, ended.stderr
    assert "File too large; raise the limit of a file's size (ulimit -f)" in ended.stderr
    assert not leftovers(tmp_path / "out")
    assert command(slide, f"output={tmp_path / 'out'}", "engine=inline").returncode == 0


@pytest.fixture
def disk(tmp_path):
    """Mount a disk of 24 MiB, and give what fills it up to some bytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")

    def fill(room):
        free = os.statvfs(folder)
        (folder / "other").write_bytes(bytes(free.f_bavail * free.f_frsize - room))

    yield folder, fill
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("engine", ["inline", "local"])
def test_a_disk_that_is_full(three, disk, engine):
    folder, fill = disk
    out = folder / "out"
    assert command(three[0], f"output={out}", "engine=inline").returncode == 0
    before = files(out)
    fill(300_000)
    ended = command(three[0].parent, f"output={out}", f"engine={engine}")
    assert ended.returncode == 1
    told = [line for line in ended.stderr.splitlines() if "No space left" in line]
    assert len(told) == 1
    assert "Traceback" not in ended.stderr
    after = files(out)
    assert {path: after[path] for path in before} == before
    assert not leftovers(out)
    assert not list(out.rglob("*.lease"))
    (folder / "other").unlink()
    assert command(three[0].parent, f"output={out}", "engine=inline").returncode == 0


@pytest.mark.parametrize("room", [0, 4096, 16_384])
def test_a_disk_without_room_to_begin(slide, disk, room):
    folder, fill = disk
    fill(room)
    ended = command(slide, f"output={folder / 'out'}", "engine=inline")
    assert ended.returncode == 1
    assert len([line for line in ended.stderr.splitlines() if "No space left" in line]) == 1
    assert "Traceback" not in ended.stderr


def test_a_disk_that_becomes_read_only(three, disk):
    folder, _ = disk
    out = folder / "out"
    assert command(three[0], f"output={out}", "engine=inline").returncode == 0
    before = files(out)
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    ended = command(three[0].parent, f"output={out}", "engine=inline")
    assert ended.returncode == 1
    assert "cannot be written" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert files(out) == before
