"""A slide has one living worker, and a record of those that died on it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from microtome.errors import StoreError
from microtome.store.claims import Claims, find_holders, read_attempts
from microtome.store.layout import OutputLayout

SECONDS = 30.0


@pytest.fixture
def layout(tmp_path):
    return OutputLayout(tmp_path / "out")


@pytest.fixture
def claims(layout):
    return Claims(layout, SECONDS)


def attempts(layout, slide_id="a"):
    return read_attempts(layout.claim(slide_id, ".attempts.json"))


def left(layout):
    folder = layout.claims_folder
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def elsewhere(layout, code, *, wait=True):
    """Claim a slide in another process."""
    text = (
        "import os, sys; from pathlib import Path;"
        "from microtome.store.layout import OutputLayout;"
        "from microtome.store.claims import Claims;"
        f"claim = Claims(OutputLayout(Path({str(layout.output)!r})), {SECONDS}).take('a');"
        f"claim.begin(); {code}"
    )
    process = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)
    if wait:
        process.communicate(timeout=60)
    return process


def test_a_slide_is_claimed_once(layout, claims):
    claim = claims.take("a")
    assert Claims(layout, SECONDS).take("a") is None
    other = Claims(layout, SECONDS).take("b")
    assert other is not None
    claim.end()
    again = Claims(layout, SECONDS).take("a")
    assert again is not None
    assert not again.lost


def test_ids_may_be_paths(layout, claims):
    claim = claims.take("folder/of/a")
    claim.begin()
    assert [h.slide_id for h in find_holders(layout)] == ["folder/of/a"]
    assert len(attempts(layout, "folder/of/a")) == 1
    claim.end()
    assert left(layout) == []


def test_the_attempt_is_recorded_before_the_work_and_taken_back_after(layout, claims):
    claim = claims.take("a")
    claim.begin()
    claim.note(reader="tiff")
    claim.note(stage="tiles")
    (attempt,) = attempts(layout)
    assert (attempt.pid, attempt.reader, attempt.stage) == (os.getpid(), "tiff", "tiles")
    assert str(attempt) == "vanished at tiles with reader tiff"
    claim.end()
    assert left(layout) == []


def test_a_dropped_attempt_leaves_those_before_it(layout, claims):
    claim = claims.take("a")
    claim.begin()
    claim.die("was killed by SIGSEGV")
    second = claims.take("a")
    assert [a.how for a in second.earlier] == ["was killed by SIGSEGV"]
    second.begin()
    second.drop()
    assert [a.how for a in attempts(layout)] == ["was killed by SIGSEGV"]
    third = claims.take("a")
    third.begin()
    third.end()
    assert left(layout) == []


def test_what_was_tried_can_be_forgotten(claims):
    claim = claims.take("a")
    claim.begin()
    claim.die("was killed by SIGSEGV")
    assert claims.take("a", forget=True).earlier == ()


def test_a_claim_goes_with_its_process(layout, claims):
    elsewhere(layout, "claim.note(reader='cucim'); os._exit(9)")
    assert left(layout) == ["a.attempts.json", "a.lease"]
    claim = claims.take("a")  # at once: its process is known to be gone
    assert [a.reader for a in claim.earlier] == ["cucim"]
    assert str(claim.earlier[0]) == "vanished with reader cucim"


def test_a_living_claim_of_another_process_is_respected(layout, claims):
    process = elsewhere(layout, "print('claimed', flush=True); sys.stdin.read()", wait=False)
    try:
        assert process.stdout.readline() == "claimed\n"
        assert claims.take("a") is None
        (holder,) = find_holders(layout)
        assert holder.attempt.pid == process.pid
        assert holder.age < SECONDS
    finally:
        process.kill()
        process.communicate()
    assert claims.take("a") is not None


def test_workers_must_agree_on_how_long_a_claim_lasts(layout, claims):
    claim = claims.take("a")
    with pytest.raises(StoreError, match=r"other claims\.seconds than 5"):
        Claims(layout, 5.0).take("a")
    claim.end()


@pytest.mark.parametrize("text", ["", "{}", "[1]", "[{}]", "nonsense", '{"a": 1}'])
def test_a_damaged_record_counts_for_nothing(layout, claims, text):
    path = layout.claim("a", ".attempts.json")
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert claims.take("a").earlier == ()


def test_nobody_holds_anything_in_a_new_output(layout):
    assert find_holders(layout) == []
