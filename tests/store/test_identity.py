from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microtome.errors import ConfigError, SlideOpenError
from microtome.plugin import TilerSpec, option, runtime
from microtome.store.attributes import parse_fields, plain_attributes
from microtome.store.identity import describe, difference, fingerprint, make_identity


class Edge(Enum):
    drop = "drop"
    pad = "cut off"


@dataclass
class Config:
    size: int | None = None
    magnification: float | None = None
    edge: Edge = Edge.drop
    origin: list[int] = option([0, 0], help="Where it starts.")
    names: list[str] = field(default_factory=list)
    batch: int = runtime(8)


SPEC = TilerSpec(name="acme", target="a.b:C", summary="", config=Config, output_version=3)


def test_a_default_configuration_is_its_name_and_version():
    assert describe(SPEC, Config()) == {"plugin": "acme", "output_version": 3}


def test_only_what_changes_results_and_is_not_default_is_described():
    described = describe(SPEC, Config(size=256, edge=Edge.pad, batch=99))
    assert described == {"plugin": "acme", "output_version": 3, "size": 256, "edge": "cut off"}


@pytest.mark.parametrize("same", [Config(origin=(0, 0)), Config(origin=np.zeros(2, int))])
def test_lists_tuples_and_arrays_are_equal(same):
    assert describe(SPEC, same) == describe(SPEC, Config())


def test_whole_floats_equal_integers():
    assert make_identity("s", {"m": 20}) == make_identity("s", {"m": 20.0})
    assert make_identity("s", {"m": 20}).digest != make_identity("s", {"m": 20.5}).digest


def test_order_of_keys_does_not_matter_and_stage_does():
    one = make_identity("tissue", {"a": 1, "b": [1, 2]})
    assert one.digest == make_identity("tissue", {"b": (1, 2), "a": 1}).digest
    assert one.digest != make_identity("coords", {"a": 1, "b": [1, 2]}).digest


def test_the_digest_is_the_documented_one():
    text = '{"a":"é","stage":"tissue"}'
    assert make_identity("tissue", {"a": "é"}).digest == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_what_json_cannot_say_is_refused(value):
    with pytest.raises(ConfigError, match="cannot be part of an identity"):
        make_identity("s", {"x": value})


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=5), json_values, max_size=4))
def test_fields_survive_a_file(fields):
    identity = make_identity("stage", fields)
    read = parse_fields(plain_attributes(identity.attributes()))
    assert make_identity("stage", read).digest == identity.digest


def test_difference_names_keys_and_both_values():
    old = {"tiler": {"step": 256, "size": 256}, "encoder": {"plugin": "a"}}
    new = {"tiler": {"step": 128, "size": 256}, "encoder": {"plugin": "a", "seed": 1}}
    assert difference(old, new) == (
        "tiler.step was 256 and is 128; encoder.seed was its default and is 1"
    )


def test_difference_does_not_show_two_digests():
    old, new = ({"tiles": c * 64, "slides": {"cmu": {"labels": f"sha256:{c * 64}"}}} for c in "ab")
    assert difference(old, new) == "tiles changed; slides.cmu.labels changed"


def test_difference_shortens_what_is_long():
    path = "/data/" + "a" * 64
    text = difference({"tissue": "a" * 64, "path": path}, {"path": "b"})
    assert text == "tissue was aaaaaaaaaaaa… and is its default; path was /data/aaaaaa… and is 'b'"


def test_difference_of_equals():
    assert difference({"a": 1}, {"a": 1.0}) == "nothing that was recorded"


MIB = 1 << 20


def test_fingerprint_sees_size_head_and_tail_but_no_name(tmp_path):
    data = bytearray(5 * MIB)
    prints = set()
    for position in (None, 0, MIB - 1, len(data) - MIB, len(data) - 1):
        changed = bytearray(data)
        if position is not None:
            changed[position] = 1
        (tmp_path / f"{position}.svs").write_bytes(changed)
        prints.add(fingerprint(tmp_path / f"{position}.svs"))
    (tmp_path / "longer.svs").write_bytes(data + b"\0")
    prints.add(fingerprint(tmp_path / "longer.svs"))
    assert len(prints) == 6
    (tmp_path / "copy.svs").write_bytes(data)
    assert fingerprint(tmp_path / "copy.svs") == fingerprint(tmp_path / "None.svs")


@pytest.mark.parametrize("size", [0, 1, MIB, MIB + 1, 2 * MIB - 1])
def test_fingerprint_reads_all_of_a_small_file(tmp_path, size):
    path = tmp_path / "a"
    path.write_bytes(b"x" * size)
    before = fingerprint(path)
    for position in {0, size // 2, max(size - 1, 0)} if size else ():
        path.write_bytes(b"x" * position + b"y" + b"x" * (size - position - 1))
        assert fingerprint(path) != before


def test_fingerprint_of_many_files(tmp_path):
    files = [tmp_path / name for name in ("a.mrxs", "1.dat", "2.dat")]
    for index, file in enumerate(files):
        file.write_bytes(bytes([index]) * 10)
    whole = fingerprint(files[0], files[1:])
    assert whole == fingerprint(files[0], [files[2], files[1], files[0]])
    assert whole != fingerprint(files[0])
    files[2].write_bytes(b"other")
    assert fingerprint(files[0], files[1:]) != whole


def test_fingerprint_of_no_file_says_which(tmp_path):
    with pytest.raises(SlideOpenError, match=r"gone\.svs cannot be read: No such file"):
        fingerprint(tmp_path / "gone.svs")


def test_attributes_become_plain():
    assert plain_attributes(
        {
            "none": None,
            "flag": np.True_,
            "whole": np.int64(3),
            "real": np.float32(0.5),
            "nan": float("nan"),
            "text": "naïve 切片",
            "path": Path("a/b"),
            "broken": "a\udcffb",
            "nul": "a\0",
            "enum": Edge.pad,
            "pair": (1, 2.5),
            "words": ["a", "b"],
            "mapping": {"a": (1, None)},
        }
    ) == {
        "none": "None",
        "flag": True,
        "whole": 3,
        "real": 0.5,
        "nan": "nan",
        "text": "naïve 切片",
        "path": "a/b",
        "broken": "a\ufffdb",
        "nul": "a",
        "enum": "cut off",
        "pair": [1, 2.5],
        "words": '["a", "b"]',
        "mapping": '{"a": [1, null]}',
    }


def test_a_node_that_only_one_side_has_is_told_by_its_options():
    half = {"tissue": {"reader": {"plugin": "tiff", "output_version": 1, "half_size": True}}}
    assert difference(half, {}) == "tissue.reader.half_size was True and is its default"
    bare = {"reader": {"plugin": "tiff", "output_version": 1}}
    assert "reader.plugin was 'tiff'" in difference(bare, {})
    other = {"reader": {"plugin": "cucim", "output_version": 1}}
    assert difference(bare, other) == "reader.plugin was 'tiff' and is 'cucim'"
