"""Slides that are copied before they are worked on: the cache, the queue, whole runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import h5py
import numpy as np
import pytest

from microtome.config.argv import parse
from microtome.errors import ConfigError, InputError, MissingDependencyError, SlideOpenError
from microtome.plugin.registry import get_registry
from microtome.run.inputs import cache as cache_module
from microtome.run.inputs import staging
from microtome.run.inputs.cache import SlideCache, TooLargeError
from microtome.run.inputs.sources import LocalSource, check_urls, is_url, url_path
from microtome.run.inputs.staging import StagedQueue
from microtome.run.planning.plan import make_plan
from microtome.run.progress import SilentReporter
from microtome.run.queue import Assignment
from microtome.run.settings import EncoderChoice, RunConfig, StagingSettings
from microtome.slide.types import SlideRef
from microtome.store.atomic import take_turn
from microtome.store.status import SlideStatus

SIZE = 1000


def ref(path, *companions, **fields):
    return SlideRef(path=path, slide_id=path.stem, companions=companions, **fields)


def units(folder):
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def nothing_half_made(folder):
    return not [p for p in folder.iterdir() if p.name.startswith(".") or p.suffix == ".part"]


def within(seconds, condition):
    """Wait for something that is sure to come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(cache_module, "_POLL", 0.01)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture
def files(tmp_path):
    """Four slides of 1000 bytes, for the cache, which does not look into them."""
    folder = tmp_path / "far"
    folder.mkdir()
    paths = [folder / f"{name}.svs" for name in "abcd"]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * SIZE)
    return paths


@pytest.fixture
def memory():
    """Give an empty file system in memory."""
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()


def fetch(cache, path, *companions, tick=lambda count: None):
    return cache.fetch(LocalSource(ref(path, *companions)), tick, lambda total: None)


# The cache.


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


class closing_held:  # noqa: N801 - a context manager
    def __init__(self, held):
        self.held = held

    def __enter__(self):
        return self.held

    def __exit__(self, *exc):
        self.held.release()


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


# The queue.


@pytest.fixture
def plan(tmp_path):
    def make(**options):
        settings = {"cache": str(tmp_path / "near")} | options.pop("staging", {})
        config = RunConfig(
            slides=(),
            output=tmp_path / "out",
            encoders=(EncoderChoice(plugin="mean"),),
            staging=StagingSettings(**settings),
            **options,
        )
        return make_plan(config, get_registry())

    return make


def take(queue):
    """Take the next slide, waiting for its copy."""
    end = time.monotonic() + 20
    while (taken := queue.take()) is None:
        assert time.monotonic() < end
        time.sleep(0.01)
    return taken


def test_the_next_is_copied_while_one_is_worked_on(plan, files, tmp_path):
    with closing(StagedQueue(plan(), list(map(ref, files)), SilentReporter())) as queue:
        first = take(queue)
        assert isinstance(first, Assignment)
        assert first.ref.path.is_relative_to(tmp_path / "near")
        assert first.ref.source == str(files[0])
        assert first.ref.slide_id == "a"
        within(20, lambda: len(units(tmp_path / "near")) == 2)
        time.sleep(0.05)
        assert len(units(tmp_path / "near")) == 2
        assert not queue.finished
        queue.done(first)
        names = [first.ref.slide_id]
        while not queue.finished:
            taken = take(queue)
            names.append(taken.ref.slide_id)
            queue.done(taken)
        assert sorted(names) == list("abcd")


def test_nothing_is_copied_ahead_if_nothing_is_to_be(plan, files, tmp_path):
    slides = list(map(ref, files))
    with closing(StagedQueue(plan(staging={"ahead": 0}), slides, SilentReporter())) as queue:
        first = take(queue)
        time.sleep(0.1)
        assert len(units(tmp_path / "near")) == 1
        queue.done(first)


def test_a_slide_whose_worker_died_is_staged_again(plan, files, tmp_path):
    with closing(StagedQueue(plan(), [ref(files[0])], SilentReporter())) as queue:
        first = take(queue)
        assert queue.died(first, "was killed") is None
        shutil.rmtree(tmp_path / "near")
        (tmp_path / "near").mkdir()
        again = take(queue)
        assert again.history.deaths == 1
        assert again.ref.path.exists()
        queue.done(again)
        assert queue.finished


def test_closing_gives_all_slides_back(plan, files, tmp_path):
    made = plan()
    queue = StagedQueue(made, list(map(ref, files)), SilentReporter())
    first = take(queue)
    queue.drop(first)
    queue.close()
    claims = made.layout.claims_folder
    assert not [path for path in claims.rglob("*") if path.is_file()]
    # Nothing of it is held any more.
    fetch(SlideCache(tmp_path / "near", SIZE), files[3]).release()


def test_what_is_only_copied_is_no_attempt(plan, files):
    """Killed now, the process would have tried the first slide only."""
    made = plan()
    with closing(StagedQueue(made, list(map(ref, files)), SilentReporter())) as queue:
        first = take(queue)
        attempts = list(made.layout.claims_folder.rglob("*.attempts.json"))
        assert [path.name for path in attempts] == ["a.attempts.json"]
        queue.done(first)


def test_a_copy_that_hangs_is_given_up(plan, files, monkeypatch):
    original, hang = LocalSource.copy, threading.Event()

    def copy(self, file, target, tick):
        if file.name == "a.svs":
            hang.wait(60)
        original(self, file, target, tick)

    monkeypatch.setattr(LocalSource, "copy", copy)
    monkeypatch.setattr(staging, "_STALLED", 0.3)
    with closing(StagedQueue(plan(), list(map(ref, files[:2])), SilentReporter())) as queue:
        results = [take(queue)]
        results.append(take(queue))
        (status,) = [r for r in results if isinstance(r, SlideStatus)]
        assert (status.slide_id, status.state, status.stage) == ("a", "failed", "fetch")
        assert "no byte came for" in status.message
        for one in results:
            if isinstance(one, Assignment):
                queue.done(one)
        assert queue.finished
    hang.set()


def test_waiting_is_told(plan, files, monkeypatch):
    heard = []
    go_on = threading.Event()
    original = LocalSource.copy

    def copy(self, file, target, tick):
        original(self, file, target, tick)
        go_on.wait(20)

    class Listening(SilentReporter):
        def stage(self, slide_id, stage, tiles=0):
            heard.append((slide_id, stage, tiles))

        def advance(self, slide_id, tiles):
            heard.append((slide_id, tiles))

    monkeypatch.setattr(LocalSource, "copy", copy)
    monkeypatch.setattr(staging, "_MIB", 100)
    with closing(StagedQueue(plan(), [ref(files[0])], Listening())) as queue:
        end = time.monotonic() + 20
        while len(heard) < 2:
            assert queue.take() is None
            assert time.monotonic() < end
        go_on.set()
        queue.done(take(queue))
    assert heard == [("a", "fetch", 10), ("a", 10)]


# Whole runs.


def features(output, name="one"):
    with h5py.File(output / f"patches/{name}.h5") as file:
        return file["coords"][:], file["features/mean"][:], dict(file.attrs)


@pytest.mark.parametrize("engine", ["inline", {"local": {"workers": 1}}], ids=["inline", "local"])
def test_a_staged_run_is_as_any_other(go, slide, tmp_path, engine):
    options = {"engine": engine}
    if engine != "inline":
        options["encoder"] = "handcrafted"
    near = tmp_path / "near"
    staged = go(slide, staging={"cache": str(near)}, **options)
    (status,) = staged.statuses
    assert status.state == "done"
    assert status.path == str(slide)
    assert [p.name for p in units(near)[0].iterdir()] == ["one.svs"]
    plain = go(slide, output=tmp_path / "plain", **options).statuses[0]
    assert plain.fingerprint == status.fingerprint
    assert plain.identities == status.identities
    if engine == "inline":
        mine, theirs = features(tmp_path / "out"), features(tmp_path / "plain")
        np.testing.assert_array_equal(mine[1], theirs[1])
        assert mine[2]["wsi_path"] == theirs[2]["wsi_path"] == str(slide)
    # What is finished is not copied to be looked at.
    shutil.rmtree(near)
    assert go(slide, staging={"cache": str(near)}, **options).statuses[0].state == "reused"
    assert units(near) == []


def test_too_large_a_slide_is_read_where_it_lies(go, slide, tmp_path):
    heard = []

    class Listening(SilentReporter):
        def note(self, text):
            heard.append(text)

    settings = {"cache": str(tmp_path / "near"), "budget_gb": 1e-6}
    result = go(slide, staging=settings, reporter=Listening())
    assert result.statuses[0].state == "done"
    assert any("is read where it lies" in text for text in heard)


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


def test_a_remote_slide_of_many_files(memory, tmp_path):
    from microtome.run.inputs.sources import RemoteSource

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
    from microtome.run.inputs.sources import RemoteSource

    memory.makedirs("/far", exist_ok=True)
    memory.pipe_file("/far/x.vms", b"[Virtual Microscope]\nImageFile=part 1.jpg\nNoLayers=1\n")
    for name in ("part 1.jpg", "unnamed.jpg"):
        memory.pipe_file(f"/far/{name}", b"j")
    files = RemoteSource("memory://far/x.vms").files()
    assert [file.name for file in files] == ["x.vms", "part 1.jpg"]


def test_a_remote_dicom_folder_comes_whole(memory):
    from microtome.run.inputs.sources import RemoteSource

    memory.makedirs("/far", exist_ok=True)
    for name in ("1.dcm", "2.dcm", "3.DCM", "notes.txt"):
        memory.pipe_file(f"/far/{name}", b"d")
    files = RemoteSource("memory://far/2.dcm").files()
    assert [file.name for file in files] == ["2.dcm", "1.dcm", "3.DCM"]


def test_a_server_that_does_not_say_how_much_is_not_trusted(memory, monkeypatch):
    from microtome.run.inputs.sources import RemoteSource

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


@pytest.mark.parametrize(
    "settings", [{"budget_gb": 0}, {"budget_gb": float("inf")}, {"ahead": -1}], ids=str
)
def test_settings_that_make_no_sense(settings):
    with pytest.raises(ConfigError, match=rf"staging\.{next(iter(settings))}="):
        StagingSettings(**settings)
