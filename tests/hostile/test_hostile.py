"""Damaged, lying and absurd slides: each is read, or refused in one clear sentence."""

from __future__ import annotations

import json
import re

import pytest
from bench.hostile.absurd import absurd
from bench.hostile.claims import claims
from bench.hostile.examine import examine, unclear
from bench.hostile.fuzz import damage
from bench.hostile.sources import make_sources
from bench.hostile.supervise import Examiner

# The cuCIM reader starts a process for each file that it takes: the whole bench tries it.
READERS = ("auto", "openslide", "tiff", "pillow")

# A second each, at their limits: left to the bench.
HEAVY = re.compile("million|hundred-mb|deflate-|no-tile|one-tile|shared-text|png-20000|100000")


@pytest.fixture(scope="module")
def examiner():
    with Examiner() as examiner:
        yield examiner


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return make_sources(tmp_path_factory.mktemp("good"))


def faults_of(examiner, samples, readers=READERS):
    found = []
    for sample in samples:
        for reader in readers:
            outcome = examiner.ask(path=str(sample.path), reader=reader, mpp=sample.mpp)
            if outcome.is_fault:
                found.append((sample.path.name, reader, outcome.ended, outcome.sentence))
    return found


def test_damaged_slides_end_well(examiner, sources, tmp_path):
    samples = list(damage(sources, tmp_path, variants=36, seed=4))
    assert len({sample.path.read_bytes() for sample in samples}) == 36
    assert not faults_of(examiner, samples, ("auto", "tiff"))


def test_tiff_gives_openslides_pixels_of_damaged_slides(examiner, sources, tmp_path):
    ended = []
    for sample in damage(sources[:2], tmp_path, variants=20, seed=2):
        outcome = examiner.ask(path=str(sample.path), mpp=0.5)
        assert outcome.ended in ("equal", "refused"), (sample.path.name, outcome.sentence)
        ended.append(outcome.ended)
    assert "equal" in ended


def test_the_same_seed_makes_the_same_damage(sources, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = (list(damage(sources, tmp_path / x, variants=20, seed=1)) for x in "ab")
    assert [s.path.read_bytes() for s in one] == [s.path.read_bytes() for s in other]
    assert [s.path.name for s in one] == [s.path.name for s in other]


def test_files_that_claim_what_they_do_not_hold_end_well(examiner, tmp_path):
    samples = list(claims(tmp_path, without=HEAVY))
    assert len(samples) > 60
    assert not faults_of(examiner, samples, ("auto", "tiff"))


def test_absurd_metadata_ends_well(examiner, tmp_path):
    samples = [
        s
        for s in absurd(tmp_path, without=HEAVY)
        if not re.search("mpp-0.[1-9]|power-[^91]|resolution-0.[1-9]", s.path.name)
    ]
    assert len(samples) > 30
    assert not faults_of(examiner, samples, ("auto",))


def test_good_slides_are_read(examiner, sources):
    ended = {s.name: examiner.ask(path=str(s), reader="auto", mpp=0.5).ended for s in sources}
    assert set(ended.values()) == {"read"}, ended


def test_a_process_that_dies_is_told_and_replaced(examiner, sources):
    examiner._send({"path": "x", "reader": "auto", "mpp": None, "surprise": 1})  # a TypeError
    outcome = examiner.ask(path=str(sources[0]), reader="auto", mpp=0.5)
    assert outcome.ended == "died"
    assert examiner.ask(path=str(sources[0]), reader="auto", mpp=0.5).ended == "read"


@pytest.mark.parametrize(
    "sentence",
    [
        "it cannot be opened",
        "a.svs: two\nlines",
        "a.svs: \x1b[31mred",
        "a.svs: TypeError: no",
        "a.svs " + "x" * 2000,
    ],
)
def test_what_no_clear_sentence_is(sentence):
    assert unclear(sentence, "/slides/a.svs")
    assert not unclear("/slides/a.svs cannot be opened.", "/slides/a.svs")


def test_a_stranger_exception_is_a_leak(monkeypatch, tmp_path):
    def fail(*_args, **_options):
        raise KeyError("x")

    monkeypatch.setattr("bench.hostile.examine.open_slide", fail)
    found = examine(str(tmp_path / "a.svs"), "auto", None)
    assert found["ended"] == "leaked"
    assert json.dumps(found)
