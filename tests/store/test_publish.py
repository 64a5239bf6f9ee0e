from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from microtome.errors import IdentityError, StoreError
from microtome.store import atomic
from microtome.store import publish as publishing
from microtome.store.publish import TOKEN, ArraySource, FeatureSet, publish_slide

KILL_LOOP = Path(__file__).with_name("kill_loop.py")


@pytest.fixture
def final(tmp_path, store):
    return tmp_path / f"naïve 切片 (1){store.spec.suffix}"


@pytest.fixture
def put(store, final):
    def put(content, *, force=False):
        publish_slide(final, store.writer, store.spec, content, force=force)

    return put


def read(store, final):
    with store.writer.open_stored(final) as stored:
        sets = {name: stored.features(name) for name in stored.feature_names()}
        return stored.coords, stored.attributes, sets


def expect(store, final, *contents):
    """See that a slide holds exactly what these contents say, and nothing lies beside it."""
    coords, attributes, sets = read(store, final)
    features = {k: v for content in contents for k, v in content.features.items()}
    np.testing.assert_array_equal(coords, contents[0].coords)
    assert attributes["identity"] == contents[0].attributes["identity"]
    assert sets.keys() == features.keys()
    for name, values in sets.items():
        np.testing.assert_array_equal(values, next(iter(features[name].source.chunks(10**6))))
    assert list(final.parent.iterdir()) == [final]


def hashes(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).digest() for f in files}


def test_a_new_slide_has_everything_at_once(store, final, put, content):
    put(content("a", "b"))
    expect(store, final, content("a", "b"))


def test_an_empty_slide_is_a_slide(store, final, put, content):
    put(content("a", rows=0))
    coords, _, sets = read(store, final)
    assert (coords.shape, coords.dtype) == ((0, 5), np.int32)
    assert (sets["a"].shape, sets["a"].dtype) == ((0, 17), np.float32)
    put(content("b", rows=0))
    assert read(store, final)[2].keys() == {"a", "b"}


def test_a_later_encoder_is_added(store, final, put, content):
    put(content("a"))
    put(content("b"))
    expect(store, final, content("a", "b"))


def test_what_is_there_is_not_written_again(store, final, put, content):
    put(content("a", "b"))
    before = read(store, final)[1][TOKEN]
    put(content("a"))
    put(content())
    assert read(store, final)[1][TOKEN] == before


def test_adding_leaves_the_bytes_of_a_folder_alone(store, final, put, content):
    if store.spec.layout == "file":
        pytest.skip("a file is one")
    put(content("a"))
    before = hashes(final)
    put(content("b"))
    assert before.items() <= hashes(final).items()


def test_another_configuration_is_refused_by_name(store, final, put, content):
    put(content("a"))
    with pytest.raises(IdentityError, match=r"tiler\.step was 'one' and is 'two'.*force=true"):
        put(content("b", identity="two"))
    expect(store, final, content("a"))


def test_another_feature_set_of_one_name_is_refused_by_name(store, final, put, content):
    put(content("a"))
    other = FeatureSet(
        content("a", seed=5).features["a"].source,
        {"identity": "other", "identity_fields": {"encoder": "a", "weights": "random"}},
    )
    with pytest.raises(IdentityError, match=r"'a'.*weights was its default and is 'random'"):
        put(dataclasses.replace(content("a"), features={"a": other}))
    expect(store, final, content("a"))


def test_other_coordinates_of_one_identity_are_refused(store, final, put, content):
    put(content("a"))
    with pytest.raises(StoreError, match="other coordinates"):
        put(content("b", rows=5))
    expect(store, final, content("a"))


def test_force_replaces_another_configuration_whole(store, final, put, content):
    put(content("a", "b"))
    put(content("c", identity="two", rows=3), force=True)
    expect(store, final, content("c", identity="two", rows=3))


def test_force_keeps_other_features_of_the_same_tiles(store, final, put, content):
    put(content("a", "b"))
    put(content("a", seed=7), force=True)
    expect(store, final, content("b"), content("a", seed=7))


def test_force_replaces_what_is_damaged(store, final, put, content):
    final.mkdir() if store.spec.layout == "directory" else final.write_bytes(b"half")
    with pytest.raises(StoreError, match="damaged"):
        put(content("a"))
    put(content("a"), force=True)
    expect(store, final, content("a"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coords": np.zeros((9, 4), np.int32)}, r"not int32 of shape \(n, 5\)"),
        ({"coords": np.zeros((9, 5), np.int64)}, "int64"),
        ({"columns": {"t": np.zeros(8)}}, "column 't'"),
        ({"columns": {"t": np.zeros(9, "U4")}}, "numbers or booleans"),
        ({"features": {"a": FeatureSet(ArraySource(np.zeros((8, 3))))}}, "for 9 tiles"),
        ({"features": {"a": FeatureSet(ArraySource(np.zeros(9)))}}, "for 9 tiles"),
        ({"features": {"../a": FeatureSet(ArraySource(np.zeros((9, 3))))}}, "cannot be the name"),
        ({"arrays": {"tokens/a": FeatureSet(ArraySource(np.zeros((8, 3))))}}, "for 9 tiles"),
        ({"arrays": {"x/a": FeatureSet(ArraySource(np.zeros(())))}}, r"shape \(\)"),
        ({"arrays": {"x/a": FeatureSet(ArraySource(np.zeros(3, "U4")))}}, "no numbers"),
        ({"arrays": {"xa": FeatureSet(ArraySource(np.zeros(3)))}}, "group/name"),
        ({"arrays": {"x/a/b": FeatureSet(ArraySource(np.zeros(3)))}}, "group/name"),
        ({"arrays": {"../a": FeatureSet(ArraySource(np.zeros(3)))}}, "group/name"),
        ({"arrays": {"features/a": FeatureSet(ArraySource(np.zeros((9, 3))))}}, "keeps its own"),
    ],
)
def test_content_that_does_not_fit_together_is_refused(final, put, content, change, message):
    with pytest.raises(StoreError, match=message):
        put(dataclasses.replace(content(), **change))
    assert list(final.parent.iterdir()) == []


class Meddling(ArraySource):
    """Publishes something else while it is read, as another job would."""

    def __init__(self, array, meddle):
        super().__init__(array)
        self.meddle = meddle

    def chunks(self, rows):
        meddle, self.meddle = self.meddle, None
        if meddle:
            meddle()
        yield from super().chunks(rows)


def meddling(content, meddle):
    """Make a content whose first feature set meddles."""
    name, features = next(iter(content.features.items()))
    array = next(iter(features.source.chunks(10**6)))
    own = FeatureSet(Meddling(array, meddle), features.attributes)
    return dataclasses.replace(content, features={**content.features, name: own})


def test_two_jobs_that_add_at_once_both_get_in(store, final, put, content):
    put(content("a"))
    put(meddling(content("b"), lambda: put(content("c"))))
    expect(store, final, content("a", "b", "c"))


def test_two_jobs_that_begin_at_once_both_get_in(store, final, put, content):
    put(meddling(content("a"), lambda: put(content("b"))))
    expect(store, final, content("a", "b"))


def test_two_jobs_of_one_encoder_leave_one(store, final, put, content):
    put(content("a"))
    put(meddling(content("b"), lambda: put(content("b"))))
    expect(store, final, content("a", "b"))


def test_a_slide_replaced_meanwhile_gets_no_foreign_features(store, final, put, content):
    put(content("a"))
    other = content("c", identity="two", rows=4)
    with pytest.raises(IdentityError, match="another configuration"):
        put(meddling(content("b"), lambda: put(other, force=True)))
    expect(store, final, other)


def test_force_carries_what_was_added_meanwhile(store, final, put, content):
    put(content("a"))
    put(meddling(content("a", seed=3), lambda: put(content("b"))), force=True)
    expect(store, final, content("b"), content("a", seed=3))


def test_endless_meddling_ends_in_a_sentence(store, final, put, content, monkeypatch):
    monkeypatch.setattr(publishing, "_ATTEMPTS", 2)
    mine = content("b")

    class Endless(ArraySource):
        def chunks(self, rows):
            put(content("a"), force=True)
            return super().chunks(rows)

    features = {"b": FeatureSet(Endless(np.zeros((9, 17), np.float32)))}
    with pytest.raises(StoreError, match="kept changing"):
        put(dataclasses.replace(mine, features=features))
    expect(store, final, content("a"))


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failing_disk_leaves_what_was_there(store, final, put, content, monkeypatch, there, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    if there:
        put(content("a"))
    monkeypatch.setattr(atomic.os, "fsync", refuse)
    with pytest.raises(StoreError, match=os.strerror(code)):
        put(content("b"))
    monkeypatch.undo()
    if there:
        expect(store, final, content("a"))
    else:
        assert list(final.parent.iterdir()) == []


def test_a_stranger_s_error_passes_and_leaves_nothing(store, final, content):
    class Broken:
        def create(self, path, *_):
            path.touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        publish_slide(final, Broken(), store.spec, content(), force=False)
    assert list(final.parent.iterdir()) == []


@pytest.mark.parametrize("most", [10, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "scenario",
    ["create", "extend", "arrays", "force", "revise", "relabel", "force-aside", "revise-aside"],
)
def test_killed_anywhere_a_name_is_absent_or_complete(store, scenario, most, tmp_path):
    if scenario.endswith("aside") and store.spec.layout == "file":
        pytest.skip("a file is always replaced in one step")
    done = subprocess.run(
        [sys.executable, KILL_LOOP, store.spec.name, scenario, tmp_path / "out", str(most)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 6, "the loop must have killed at several points"
