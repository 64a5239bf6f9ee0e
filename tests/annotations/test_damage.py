"""Files with a byte or two wrong: read, or refused in a sentence that names the file."""

from __future__ import annotations

import json
import random

import pytest
from annotation_files import FORMATS

from microtome.errors import AnnotationError
from microtome.run.inputs.annotated import read_annotations

SPARE = [b"", b"\0", b'"', b"<", b"[", b"]", b"{", b"null", b"-", b"1e999", b"&", b"\xff", b","]


def damaged(data: bytes, seed: int) -> bytes:
    chance = random.Random(seed)
    for _ in range(chance.randint(1, 3)):
        at, length = chance.randrange(len(data)), chance.randint(0, 6)
        data = data[:at] + chance.choice(SPARE) + data[at + length :]
    return data


@pytest.mark.parametrize("name", FORMATS)
def test_damage_is_refused_or_harmless(tmp_path, name) -> None:
    contract = FORMATS[name]()
    path = contract.make_sample(tmp_path)
    whole, refused = path.read_bytes(), 0
    for seed in range(80):
        path.write_bytes(damaged(whole, seed))
        try:
            drawn = read_annotations(path, contract.make_slide())
        except AnnotationError as error:
            refused += 1
            if str(path) not in str(error) or "\n" in str(error):
                pytest.fail(f"{seed}: {error}")
        else:
            assert all(a.geometry.is_valid and not a.geometry.is_empty for a in drawn)
    assert 25 < refused < 80


JUNK = [None, True, 0, -1, 1e308, "", "x", [], [[]], {}, [None], {"type": None}, [[[[[1, 2]]]]]]


@pytest.mark.parametrize("name", ["geojson", "ncrf"])
def test_any_value_in_any_place_is_refused_or_harmless(tmp_path, name) -> None:
    path = FORMATS[name]().make_sample(tmp_path)
    tree = json.loads(path.read_bytes())
    places = list(_places(tree))
    assert len(places) > 10
    for owner, key in places:
        kept = owner[key]
        for junk in JUNK:
            owner[key] = junk
            path.write_text(json.dumps(tree))
            try:
                read_annotations(path)
            except AnnotationError as error:
                assert str(path) in str(error)  # noqa: PT017 - most are harmless
        owner[key] = kept


def _places(tree):
    keys = list(tree) if isinstance(tree, dict) else range(len(tree))
    for key in keys:
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from _places(tree[key])
