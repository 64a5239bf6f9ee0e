"""The cache of copied slides: its budget, its turns, and what goes wrong while it copies."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest
from staged import SIZE, closing_held, fetch, ref, units

from microtome.errors import ConfigError, SlideOpenError
from microtome.run.inputs.cache import SlideCache, TooLargeError
from microtome.run.inputs.sources import LocalSource
from microtome.store.atomic import take_turn

pytestmark = pytest.mark.usefixtures("quick_cache")


def nothing_half_made(folder):
    return not [p for p in folder.iterdir() if p.name.startswith(".") or p.suffix == ".part"]


def test_a_copy_is_made_once_and_stays(tmp_path, files):
    cache = SlideCache(tmp_path / "near", 10 * SIZE)
    copied = []
    with closing_held(fetch(cache, files[0], tick=copied.append)) as held:
        assert (held.folder / "a.svs").read_bytes() == files[0].read_bytes()
        assert sum(copied) == SIZE
    copied.clear()
    with closing_held(fetch(cache, files[0], tick=copied.append)) as again:
        assert again.folder == held.folder
    assert copied == []
    assert nothing_half_made(tmp_path / "near")


def test_a_slide_of_many_files_is_one_unit(tmp_path, files):
    data = tmp_path / "far" / "a"
    (data / "deep").mkdir(parents=True)
    (data / "Slidedat.ini").write_text("x")
    (data / "deep/Data0.dat").write_text("y")
    cache = SlideCache(tmp_path / "near", 10 * SIZE)
    companions = (data / "Slidedat.ini", data / "deep/Data0.dat")
    source = LocalSource(ref(files[0], *companions))
    with closing_held(cache.fetch(source, lambda n: None, lambda n: None)) as held:
        staged = source.staged(held.folder)
        assert staged.primary == held.folder / "a.svs"
        assert [p.relative_to(held.folder).as_posix() for p in staged.companions] == [
            "a/Slidedat.ini",
            "a/deep/Data0.dat",
        ]
        assert [p.read_text() for p in staged.companions] == ["x", "y"]


def test_what_was_not_used_for_longest_goes_first(tmp_path, files):
    cache = SlideCache(tmp_path / "near", 3 * SIZE)
    folders = []
    for age, path in zip((3, 1, 2), files[:3], strict=True):
        held = fetch(cache, path)
        folders.append(held.folder)
        held.release()
        os.utime(held.folder, (1e9 - age, 1e9 - age))
    fetch(cache, files[3]).release()
    assert [folder.exists() for folder in folders] == [False, True, True]


def test_what_is_used_stays_and_the_next_waits_for_its_end(tmp_path, files):
    near = tmp_path / "near"
    first = fetch(SlideCache(near, 2 * SIZE - 1), files[0])
    waiting = threading.Event()
    got = []

    def other():
        # Another process would have a cache of its own, too.
        tick = lambda count: count or waiting.set()  # noqa: E731
        got.append(fetch(SlideCache(near, 2 * SIZE - 1), files[1], tick=tick))

    thread = threading.Thread(target=other)
    thread.start()
    assert waiting.wait(10)
    assert (first.folder / "a.svs").exists()
    first.release()
    thread.join(10)
    (second,) = got
    assert units(near) == [second.folder]
    second.release()


def test_two_that_want_one_slide_copy_it_once(tmp_path, files, monkeypatch):
    near = tmp_path / "near"
    copies = []
    original = LocalSource.copy

    def copy(self, file, target, tick):
        copies.append(file.name)
        time.sleep(0.1)
        original(self, file, target, tick)

    monkeypatch.setattr(LocalSource, "copy", copy)
    held = []
    threads = [
        threading.Thread(target=lambda: held.append(fetch(SlideCache(near, SIZE), files[0])))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len({one.folder for one in held}) == 1
    assert len(held) == 4
    assert copies == ["a.svs"]
    for one in held:
        one.release()


def test_no_more_is_promised_than_the_budget_has(tmp_path, files, monkeypatch):
    """Ten workers want four slides each; there is room for two slides."""
    near = tmp_path / "near"
    most = []
    stop = threading.Event()

    def watch():
        while not stop.is_set():
            with take_turn(near):
                # By version: a unit may get its name while it is looked at.
                names = [path.name.strip(".") for path in near.iterdir()]
            most.append(len({name[:32] for name in names if not name.startswith("probe")}))
            time.sleep(0.001)

    def work(number):
        mine = SlideCache(near, 2 * SIZE)
        for path in files[number % 4 :] + files[: number % 4]:
            held = fetch(mine, path)
            assert (held.folder / path.name).read_bytes() == path.read_bytes()
            held.release()

    SlideCache(near, SIZE)
    workers = [threading.Thread(target=work, args=(number,)) for number in range(10)]
    watcher = threading.Thread(target=watch)
    for thread in (watcher, *workers):
        thread.start()
    for thread in workers:
        thread.join(60)
    stop.set()
    watcher.join(10)
    assert max(most) == 2
    assert len(units(near)) <= 2
    assert nothing_half_made(near)


def test_what_others_were_killed_over_is_no_obstacle(tmp_path, files):
    near = tmp_path / "near"
    script = (
        "import os, sys; from pathlib import Path\n"
        "from microtome.run.inputs.cache import SlideCache\n"
        "from microtome.run.inputs.sources import LocalSource\n"
        "from microtome.slide.types import SlideRef\n"
        "source = LocalSource(SlideRef(path=Path(sys.argv[1]), slide_id='a'))\n"
        "kill = lambda count: os.kill(os.getpid(), 9)\n"
        f"SlideCache(Path(sys.argv[2]), {SIZE}).fetch(source, kill, print)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, files[0], near], check=False)
    assert done.returncode == -9
    assert not nothing_half_made(near)
    assert units(near) == []
    with closing_held(fetch(SlideCache(near, SIZE), files[1])) as held:
        assert units(near) == [held.folder]
    assert nothing_half_made(near)


def test_less_than_was_announced_is_never_opened(tmp_path, files, monkeypatch):
    original = LocalSource.copy

    def short(self, file, target, tick):
        original(self, file, target, tick)
        os.truncate(target, SIZE - 1)

    monkeypatch.setattr(LocalSource, "copy", short)
    with pytest.raises(SlideOpenError, match=r"999 of the 1,000 bytes of a\.svs came"):
        fetch(SlideCache(tmp_path / "near", SIZE), files[0])
    assert list((tmp_path / "near").iterdir()) == []


def test_what_was_cut_short_once_is_fetched_again(tmp_path, files, monkeypatch):
    original, tries, ticks = LocalSource.copy, [], []

    def flaky(self, file, target, tick):
        tries.append(file)
        original(self, file, target, tick)
        if len(tries) < 3:
            raise ConnectionResetError("reset by peer")

    monkeypatch.setattr(LocalSource, "copy", flaky)
    fetch(SlideCache(tmp_path / "near", SIZE), files[0], tick=ticks.append).release()
    assert len(tries) == 3
    assert sum(ticks) == SIZE


def test_a_source_that_changes_is_not_taken(tmp_path, files):
    def grow(count):
        with files[0].open("ab") as file:
            file.write(b"more")

    with pytest.raises(SlideOpenError, match="changed while it was copied"):
        fetch(SlideCache(tmp_path / "near", 9 * SIZE), files[0], tick=grow)
    assert units(tmp_path / "near") == []


def test_a_source_that_changed_is_fetched_anew(tmp_path, files):
    cache = SlideCache(tmp_path / "near", 9 * SIZE)
    fetch(cache, files[0]).release()
    files[0].write_bytes(b"new" * 50)
    with closing_held(fetch(cache, files[0])) as held:
        assert (held.folder / "a.svs").read_bytes() == b"new" * 50


def test_a_damaged_copy_is_made_again(tmp_path, files):
    cache = SlideCache(tmp_path / "near", 9 * SIZE)
    held = fetch(cache, files[0])
    held.release()
    os.truncate(held.folder / "a.svs", 10)
    with closing_held(fetch(cache, files[0])) as again:
        assert (again.folder / "a.svs").stat().st_size == SIZE


def test_too_large_for_the_budget_or_the_disk(tmp_path, files, monkeypatch):
    with pytest.raises(TooLargeError, match=r"a\.svs has 0\.0 GiB, more than staging\.budget_gb"):
        fetch(SlideCache(tmp_path / "near", SIZE - 1), files[0])
    monkeypatch.setattr(SlideCache, "_free", lambda self: SIZE)
    with pytest.raises(TooLargeError, match=r"the disk has 0\.0 GiB free"):
        fetch(SlideCache(tmp_path / "near", 9 * SIZE), files[0])


def test_a_cache_that_cannot_be(tmp_path, files):
    with pytest.raises(ConfigError, match=r"staging\.cache=.*cannot be written"):
        SlideCache(files[0] / "below", SIZE)
