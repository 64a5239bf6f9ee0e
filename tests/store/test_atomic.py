from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading

import pytest
from run_checks import leave_dead, leftovers

from microtome.errors import StoreError
from microtome.store import atomic, folders
from microtome.store.atomic import (
    private_path,
    publish,
    restore,
    sweep,
    write_bytes,
    write_json,
)
from microtome.store.folders import NameTakenError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_the_block_ends(tmp_path):
    final = tmp_path / "deep" / "a.h5"
    with publish(final) as private:
        assert private.parent == final.parent
        private.write_text("new")
        assert not final.exists()
    assert final.read_text() == "new"
    assert names(final.parent) == ["a.h5"]


def test_a_file_is_replaced_in_one_step(tmp_path):
    final = tmp_path / "a"
    final.write_text("old")
    with publish(final) as private:
        private.write_text("new")
        assert final.read_text() == "old"
    assert final.read_text() == "new"


def break_off(final, layout, error):
    with publish(final, layout=layout) as private:
        private.mkdir()
        (private / "half").touch()
        raise error


@pytest.mark.parametrize("layout", ["file", "directory"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path, layout, error):
    final = tmp_path / "a"
    final.mkdir()
    (final / "old").touch()
    with pytest.raises(error):
        break_off(final, layout, error)
    assert names(tmp_path) == ["a"]
    assert names(final) == ["old"]


def test_a_folder_replaces_a_folder(tmp_path):
    final = tmp_path / "a"
    for generation in ("old", "new"):
        with publish(final, layout="directory") as private:
            private.mkdir()
            (private / generation).touch()
    assert names(final) == ["new"]
    assert names(tmp_path) == ["a"]


def test_a_folder_that_must_be_new_is_not_replaced(tmp_path):
    final = tmp_path / "a"
    final.mkdir()
    (final / "theirs").touch()
    with (
        pytest.raises(NameTakenError, match="exists already"),
        publish(final, layout="directory", replace=False) as private,
    ):
        private.mkdir()
    assert names(final) == ["theirs"]
    assert names(tmp_path) == ["a"]


def test_a_writer_that_writes_nothing_is_told(tmp_path):
    with pytest.raises(StoreError, match="nothing was left"), publish(tmp_path / "a"):
        pass


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some of your quota"),
        (errno.EACCES, "change its permissions"),
        (errno.EROFS, "choose another output"),
        (errno.EIO, "check the disk"),
    ],
)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_refusals_say_what_to_do(tmp_path, monkeypatch, call, code, advice):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    final = tmp_path / "a.h5"
    final.write_text("old")
    monkeypatch.setattr(atomic.os, call, refuse)
    with pytest.raises(StoreError, match=advice) as caught:
        write_bytes(final, b"new")
    monkeypatch.undo()
    assert str(final) in str(caught.value)
    assert os.strerror(code) in str(caught.value)
    assert final.read_text() == "old"
    assert names(tmp_path) == ["a.h5"]


def test_an_output_below_a_file_is_a_store_error(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(StoreError, match="choose another output"):
        write_bytes(tmp_path / "out" / "patches" / "a.h5", b"")


def test_everything_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(atomic.os, "fsync", lambda handle: done.append(os.fstat(handle).st_ino))
    final = tmp_path / "a"
    with publish(final, layout="directory") as private:
        (private / "sub").mkdir(parents=True)
        (private / "sub" / "file").touch()
        inodes = {p.stat().st_ino for p in (private, private / "sub", private / "sub" / "file")}
        assert not done
    assert set(done[:3]) == inodes
    assert done[3] == tmp_path.stat().st_ino


@pytest.mark.parametrize("name", ["naïve 切片", "x" * 250, "切" * 80, " (1),{b}=~'\""])
def test_any_name_that_a_folder_takes_can_be_published(tmp_path, name):
    write_bytes(tmp_path / name, b"x")
    assert names(tmp_path) == [name]


def test_json_is_readable_and_survives_odd_file_names(tmp_path):
    data = {"name": "切片", "odd": "a\udcff"}
    write_json(tmp_path / "a.json", data)
    assert "切片" in (tmp_path / "a.json").read_text("utf-8")
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == data


def test_sweep_removes_what_dead_processes_of_this_host_left(tmp_path):
    script = (
        "import os, sys; from pathlib import Path; from microtome.store.atomic import *\n"
        "with publish(Path(sys.argv[1]) / 'a.h5') as p: p.touch(); m = private_path(p); "
        "m.mkdir(); (m / 'x').touch(); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", script, tmp_path], check=False).returncode == 9
    alive = private_path(tmp_path / "alive.h5")
    alive.touch()
    elsewhere = tmp_path / ".b.h5.00000000-1-00000000.tmp"
    elsewhere.touch()
    unrelated = [tmp_path / ".a.tmp", tmp_path / "a.h5"]
    for path in unrelated:
        path.touch()
    assert len(names(tmp_path)) == 6
    assert len(sweep(tmp_path)) == 2
    assert names(tmp_path) == sorted(p.name for p in [alive, elsewhere, *unrelated])


def test_sweep_goes_below_where_it_is_asked_to(tmp_path):
    leave_dead(tmp_path / "a.h5", tmp_path / "deep/er/b.h5", tmp_path / "deep/c")
    alive = private_path(tmp_path / "alive")
    leave_dead(alive / "inside.h5")  # a living process's own business
    assert len(sweep(tmp_path)) == 1
    assert len(sweep(tmp_path, below=True)) == 2
    assert sweep(tmp_path / "none", below=True) == []
    assert leftovers(tmp_path) == [alive, *alive.iterdir()]


def test_sweep_of_no_folder_is_nothing(tmp_path):
    assert sweep(tmp_path / "none") == []


def test_sweep_takes_nobody_s_leftovers_after_a_day(tmp_path):
    elsewhere = tmp_path / ".b.h5.00000000-1-00000000.tmp"
    reused = private_path(tmp_path / "alive.h5")
    for path in (elsewhere, reused):
        path.touch()
    assert sweep(tmp_path) == []
    for path in (elsewhere, reused):
        os.utime(path, (0, 0))
    assert len(sweep(tmp_path)) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="the states of processes are in /proc")
def test_a_process_whose_death_nobody_noticed_is_dead():
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not atomic.is_alive(process.pid)
    process.wait()
    assert not atomic.is_alive(process.pid)
    assert atomic.is_alive(os.getpid())


def test_somebody_who_does_not_go_on_blocks_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "_TURN", 0.05)
    with atomic.take_turn(tmp_path):
        write_bytes(tmp_path / "a", b"x")
    assert (tmp_path / "a").read_bytes() == b"x"


def test_what_gave_way_is_removed_when_others_may_go_on(tmp_path, monkeypatch):
    final = tmp_path / "a"
    final.mkdir()
    turns = []

    def look(path):
        with atomic.take_turn(tmp_path):
            turns.append(path)

    monkeypatch.setattr(atomic, "_TURN", 60)
    monkeypatch.setattr(atomic, "remove", look)
    with publish(final, layout="directory") as private:
        private.mkdir()
    assert len(turns) == 2


@pytest.fixture
def no_exchange(monkeypatch):
    """Work as on a file system that cannot exchange two names."""
    monkeypatch.setattr(folders, "_exchange", lambda *_: False)


def fill(folder, *files):
    folder.mkdir()
    for name in files:
        (folder / name).touch()


def test_a_folder_is_replaced_in_one_step(tmp_path):
    final, private = tmp_path / "a", tmp_path / "new"
    fill(final, "old")
    fill(private, "new")
    if not folders._exchange(private, final):
        pytest.skip("this file system cannot exchange two names")
    assert (names(final), names(private)) == (["new"], ["old"])


@pytest.mark.usefixtures("no_exchange")
def test_a_folder_replaces_a_folder_without_exchange(tmp_path):
    test_a_folder_replaces_a_folder(tmp_path)


@pytest.mark.usefixtures("no_exchange")
def test_an_interrupt_between_two_renames_loses_nothing(tmp_path, monkeypatch):
    final = tmp_path / "a"
    fill(final, "old")
    rename_new = folders.rename_new

    def interrupted(folder, path):
        if path == final and "new" in names(folder):
            raise KeyboardInterrupt
        rename_new(folder, path)

    monkeypatch.setattr(folders, "rename_new", interrupted)
    with pytest.raises(KeyboardInterrupt), publish(final, layout="directory") as private:
        fill(private, "new")
    assert (names(final), names(tmp_path)) == (["old"], ["a"])


def test_what_lies_aside_is_put_back_by_a_sweep(tmp_path):
    fill(folders.aside_path(tmp_path / "a"), "old")
    assert sweep(tmp_path) == []
    assert (names(tmp_path), names(tmp_path / "a")) == (["a"], ["old"])


def test_what_lies_aside_and_is_replaced_is_removed(tmp_path, monkeypatch):
    fill(folders.aside_path(tmp_path / "a"), "old")
    fill(tmp_path / "a", "new")
    removed = []
    monkeypatch.setattr(atomic, "remove", removed.append)
    sweep(tmp_path)
    # Under a name from which nobody would put back what is left of it.
    assert [atomic.owner_of(path.name) for path in removed] == ["living"]
    monkeypatch.undo()
    atomic.remove(removed[0])
    assert (names(tmp_path), names(tmp_path / "a")) == (["a"], ["new"])


def test_a_sweep_waits_for_who_is_between_two_renames(tmp_path):
    final = tmp_path / "a"
    fill(folders.aside_path(final), "old")
    with atomic.take_turn(tmp_path):
        sweeping = threading.Thread(target=sweep, args=[tmp_path])
        sweeping.start()
        fill(final, "new")
    sweeping.join()
    assert (names(tmp_path), names(final)) == (["a"], ["new"])


def test_publishing_puts_back_before_it_looks(tmp_path):
    final = tmp_path / "a"
    fill(folders.aside_path(final), "old")
    seen = []
    with publish(final, layout="directory", confirm=lambda: seen.extend(names(final))) as private:
        fill(private, "new")
    assert (seen, names(tmp_path), names(final)) == (["old"], ["a"], ["new"])


def test_nothing_aside_is_nothing_to_restore(tmp_path):
    restore(tmp_path / "none" / "a")
    assert names(tmp_path) == []


def test_what_lies_aside_is_nobody_s():
    assert atomic.owner_of(".a.zarr.aside.tmp") == "dead"
    assert atomic.owner_of(".aside.tmp") == ""
