"""Patch stores with a byte wrong, on a full disk, killed half way, and written by two jobs."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import lmdb
import numpy as np
import pytest
from writers.patch_runs import (
    open_patches,
    place,
)

from microtome.__main__ import main
from microtome.errors import StoreError
from microtome.store import classes as by_class
from microtome.store.attributes import write_folder_record
from microtome.store.classes import publish_classes
from microtome.store.patches import labelled_tiles


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def first_image(out):
    return sorted((out / "imagefolder/images/normal/a.svs").iterdir())[0]


DAMAGE = {
    "an image of a class": (lambda o: flip(first_image(o), 60), "it is damaged: its content"),
    "an image gone": (lambda o: first_image(o).unlink(), "images are missing, "),
    "an image of nobody": (
        lambda o: first_image(o).with_name("x.png").write_bytes(b""),
        "1 images belong to no tile",
    ),
    "lmdb cut": (lambda o: cut(place(o, "lmdb")), "it does not end as one"),
    "lmdb's tree": (
        lambda o: flip(place(o, "lmdb"), 5 * 4096 + 21),
        "its pages and their checksum",
    ),
    "hdf5": (lambda o: flip(place(o, "patches"), -5000), "images cannot be read, it is damaged"),
    "hdf5 cut": (lambda o: cut(place(o, "patches")), "cannot be opened as HDF5"),
    "tar": (lambda o: flip(place(o, "webdataset"), -4000), "is damaged"),
    "tar cut": (lambda o: cut(place(o, "webdataset")), "is cut short"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_verify_finds_what_is_wrong(written, tmp_path, capsys, what):
    spoil, told = DAMAGE[what]
    out = tmp_path / "out"
    subprocess.run(["cp", "-a", str(written / "out"), str(out)], check=True)
    spoil(out)
    assert main(["verify", str(out)]) == 1
    said = capsys.readouterr().out
    assert told in said
    assert "1 fault" in said


def test_reading_a_damaged_image_is_an_error(written, tmp_path):
    out = tmp_path / "out"
    subprocess.run(["cp", "-a", str(written / "out"), str(out)], check=True)
    with tarfile.open(place(out, "webdataset")) as tar:
        at = next(m for m in tar if m.name.endswith(".png")).offset_data + 100
    flip(place(out, "webdataset"), at)
    cut(first_image(out))
    for store in ("webdataset", "imagefolder"):
        with open_patches(out, store) as patches, pytest.raises(StoreError, match="is damaged"):
            patches.read(slice(None))


@pytest.mark.parametrize(("free", "told"), [(False, errno.ENOSPC), (True, errno.EIO)])
def test_a_short_write_is_told_as_what_it_is(
    make_writer, coords, tmp_path, monkeypatch, free, told
):
    """LMDB says "Input/output error" of a full disk, which would not end the run."""

    def fail(*_):
        raise lmdb.Error("mdb_txn_commit: Input/output error")

    def allocate(*_):
        if not free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("microtome_writers.lmdb._write_pages", fail)
    monkeypatch.setattr(os, "posix_fallocate", allocate)
    attributes = {"slide_id": "a", "patch_size": 16, "classes": ["n"]}
    sink = make_writer("lmdb").open(tmp_path / "a.lmdb", "a", attributes)
    sink.write(coords, np.zeros((6, 16, 16, 3), np.uint8), np.zeros(6, np.int16))
    sink.record({**attributes, **labelled_tiles(coords, np.zeros(6, np.int16))})
    with pytest.raises(OSError, match=os.strerror(told)[:12]) as caught:
        sink.close()
    assert caught.value.errno == told


@pytest.mark.parametrize("store", ["imagefolder", "lmdb"])
@pytest.mark.skipif(sys.platform != "linux", reason="it forks")
def test_killed_anywhere_each_folder_is_whole_and_the_next_run_completes(store, tmp_path):
    script = Path(__file__).with_name("kill_patches.py")
    done = subprocess.run(
        [sys.executable, str(script), store, str(tmp_path / "out")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > {"imagefolder": 24, "lmdb": 8}[store]


def test_two_jobs_that_publish_one_slide_take_turns(tmp_path, monkeypatch):
    """The second comes while the first moves its folders in; else there is some of either."""
    record = tmp_path / "slides/a.json"
    move_in, inside, over = by_class._move_in, threading.Event(), threading.Event()
    failed = []

    def wait_inside(*args):
        if not inside.is_set():
            inside.set()
            over.wait(1)
        move_in(*args)

    def publish(of):
        try:
            with publish_classes(record, "a") as path:
                path.mkdir()
                for name in of:
                    (path / name).mkdir()
                    (path / name / f"{'+'.join(of)}.png").touch()
                write_folder_record(path, {"of": "+".join(of)})
            if inside.is_set() and of == ["t", "s"]:
                over.set()
        except StoreError as error:
            failed.append(error)

    monkeypatch.setattr(by_class, "_move_in", wait_inside)
    first = threading.Thread(target=publish, args=(["n", "t"],))
    first.start()
    assert inside.wait(30)
    second = threading.Thread(target=publish, args=(["t", "s"],))
    second.start()
    for each in (first, second):
        each.join(30)
        assert not each.is_alive()
    assert not failed
    there = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.png"))
    assert there == ["images/s/a/t+s.png", "images/t/a/t+s.png"]
    assert json.loads(record.read_text())["of"] == "t+s"
