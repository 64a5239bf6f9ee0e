"""Files with a byte or two wrong: read, or refused in a sentence that names the file."""

from __future__ import annotations

import gzip
import json
import random
import zipfile

import pytest
from annotation_files import FORMATS

from microtome.errors import AnnotationError
from microtome.run.inputs.annotated import read_annotations
from microtome_annotations import jsonfile

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


def test_what_unpacks_to_far_too_much_is_not_unpacked(tmp_path, monkeypatch) -> None:
    sample = FORMATS["geojson"]().make_sample(tmp_path).read_bytes()
    path, read = tmp_path / "a.json.gz", []
    path.write_bytes(gzip.compress(sample + b" " * (16 << 20)))
    read_annotations(path)
    monkeypatch.setattr(jsonfile, "_ALWAYS", 1 << 20)
    monkeypatch.setattr(jsonfile, "_PIECE", 1 << 16)
    take = gzip.GzipFile.read
    monkeypatch.setattr(
        gzip.GzipFile, "read", lambda file, size: read.append(size) or take(file, size)
    )
    with pytest.raises(
        AnnotationError, match=r"json\.gz cannot be read: decompressed it is larger"
    ):
        read_annotations(path)
    assert 16 <= len(read) < 32  # of 256 pieces: 100 times the packed size is 1.6 MiB
    archive = tmp_path / "b.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("b.json", sample + b" " * (16 << 20))
    with pytest.raises(AnnotationError, match=r"it is larger than 1\.58\d MiB"):
        read_annotations(archive)
    monkeypatch.setattr(jsonfile, "_LARGEST", 1 << 19)
    with pytest.raises(AnnotationError, match=r"larger than 0\.5 MiB"):
        read_annotations(archive)
