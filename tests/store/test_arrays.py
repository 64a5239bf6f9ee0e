"""Arrays beside the features: published like them, and never taken for what they are not."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from microtome.errors import IdentityError, StoreError
from microtome.store.arrays import array_names
from microtome.store.content import TOKEN
from microtome.store.publish import ArraySource, FeatureSet, publish_slide

KEYS = ["regions/index", "slide_features/a", "slide_latents/a", "tokens/a"]


@pytest.fixture
def final(tmp_path, store):
    return tmp_path / f"slide{store.spec.suffix}"


@pytest.fixture
def put(store, final):
    def put(content, **options):
        options = {"force": False, **options}
        return publish_slide(final, store.writer, store.spec, content, **options)

    return put


@pytest.fixture
def expect(store, final):
    """See that a slide holds exactly these sets, and nothing lies beside it."""

    def expect(*contents):
        wanted = {key: given for content in contents for key, given in content.sets.items()}
        with store.writer.open_stored(final) as stored:
            names = [f"features/{name}" for name in stored.feature_names()]
            assert sorted([*names, *array_names(stored)]) == sorted(wanted)
            for key in array_names(stored):
                given = np.concatenate(list(wanted[key].source.chunks(10**6)))
                got = stored.array(key)
                assert got.dtype == given.dtype
                np.testing.assert_array_equal(got, given)
                assert (
                    stored.array_attributes(key)["identity"] == wanted[key].attributes["identity"]
                )
        assert list(final.parent.iterdir()) == [final]

    return expect


def tokens(store, final):
    with store.writer.open_stored(final) as stored:
        return {key: stored.array_attributes(key)[TOKEN] for key in array_names(stored)}


def test_a_new_slide_has_them_at_once(put, expect, content):
    put(content("a", arrays=KEYS))
    expect(content("a", arrays=KEYS))


def test_they_are_added_to_a_slide_one_group_new_and_one_not(store, final, put, expect, content):
    put(content("a", arrays=KEYS[:2]))
    before = tokens(store, final)
    put(content(arrays=["slide_features/b", "tokens/a", "tokens/b"]))
    expect(content("a", arrays=[*KEYS[:2], "slide_features/b", "tokens/a", "tokens/b"]))
    assert before.items() <= tokens(store, final).items()


def test_what_is_there_is_not_written_again(store, final, put, content):
    put(content("a", arrays=KEYS))
    before = tokens(store, final)
    put(content("a", arrays=KEYS))
    assert tokens(store, final) == before


def test_a_folder_with_more_arrays_keeps_the_bytes_that_it_had(store, final, put, content):
    if store.spec.layout == "file":
        pytest.skip("a file is one")
    put(content("a", arrays=KEYS))
    before = {path: path.read_bytes() for path in final.rglob("*") if path.is_file()}
    put(content(arrays=["slide_features/b"]))
    assert all(path.read_bytes() == data for path, data in before.items())


def test_another_one_of_its_name_is_refused(put, expect, content):
    put(content("a", arrays=["slide_features/a"]))
    other = content("a", arrays=["slide_features/a"])
    array = dataclasses.replace(
        other.arrays["slide_features/a"],
        attributes={"identity": "other", "identity_fields": {"array": "slide_features/a", "v": 2}},
    )
    with pytest.raises(IdentityError, match=r"array 'slide_features/a' in .*v was its default"):
        put(dataclasses.replace(other, arrays={"slide_features/a": array}))
    expect(content("a", arrays=["slide_features/a"]))


def test_force_keeps_arrays_of_features_that_stay(put, expect, content):
    put(content("a", "b", arrays=KEYS))
    put(content("b", seed=7), force=True)
    expect(content("a", arrays=KEYS), content("b", seed=7))


def test_force_leaves_out_what_was_made_of_features_that_go(put, expect, content):
    put(content("a", "b", arrays=["slide_features/a", "slide_features/b"]))
    features = content("a", seed=3).features["a"]
    other = dataclasses.replace(features, attributes={"identity": "new", "identity_fields": {}})
    new = dataclasses.replace(content("a"), features={"a": other})
    assert put(new, force=True) == ("slide_features/a",)
    expect(content("b", arrays=["slide_features/b"]), new)


def test_new_columns_keep_all(store, final, put, expect, content):
    put(content("a", arrays=KEYS))
    with_score = dataclasses.replace(content(), columns={"score": np.zeros(9, np.float32)})
    put(with_score, revise=lambda found: with_score)
    expect(content("a", arrays=KEYS))
    more = dataclasses.replace(with_score, arrays=content(arrays=["tokens/b"]).arrays)
    put(more, revise=lambda found: dataclasses.replace(with_score, columns={}))
    expect(content("a", arrays=[*KEYS, "tokens/b"]))


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


@pytest.mark.parametrize("theirs", [["tokens/b"], ["tokens/a"], ["slide_features/b", "tokens/b"]])
def test_two_jobs_that_add_the_first_of_a_group_both_get_in(put, expect, content, theirs):
    put(content("a"))
    mine = content("a", arrays=["tokens/a"])
    given = mine.arrays["tokens/a"]
    array = np.concatenate(list(given.source.chunks(100)))
    source = Meddling(array, lambda: put(content("a", arrays=theirs)))
    own = FeatureSet(source, given.attributes)
    put(dataclasses.replace(mine, arrays={"tokens/a": own}))
    expect(content("a", arrays={"tokens/a", *theirs}))


def test_a_reader_never_sees_a_group_without_its_array(store, final, put, content, monkeypatch):
    """Looked at before and after every rename that touches the slide."""
    put(content("a"))
    seen = []
    rename = Path.rename

    def look():
        with store.writer.open_stored(final) as stored:
            seen.append(tuple(stored.array_names()))
            assert all(stored.array(key).size for key in stored.array_names())

    def watched(self, target):
        look()
        done = rename(self, target)
        if final.exists():
            look()
        return done

    replace = os.replace
    monkeypatch.setattr(Path, "rename", watched)
    monkeypatch.setattr(os, "replace", lambda a, b: (look(), replace(a, b), look()))
    put(content("a", arrays=["tokens/a", "tokens/b"]))
    assert seen[0] == ()
    assert seen[-1] == ("tokens/a", "tokens/b")
    assert len(set(seen)) == (2 if store.spec.layout == "file" else 3)


class Plain:
    """A writer, and a slide, of before there were arrays."""

    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        if "array" in name:
            raise AttributeError(name)
        found = getattr(self._inner, name)
        return (lambda path: Plain(found(path))) if name == "open_stored" else found

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._inner.close()


def test_a_writer_without_arrays_refuses_them_and_does_all_else(store, final, content):
    old = Plain(store.writer)
    publish_slide(final, old, store.spec, content("a"), force=False)
    publish_slide(final, old, store.spec, content("b"), force=False)
    with old.open_stored(final) as stored:
        assert array_names(stored) == []
    with pytest.raises(StoreError, match=r"keeps no arrays .* given slide_features/a, tokens/a\."):
        publish_slide(
            final, old, store.spec, content(arrays=["tokens/a", "slide_features/a"]), force=False
        )
