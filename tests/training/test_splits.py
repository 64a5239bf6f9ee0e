"""Splits: what stays together, who is where, and what would leak."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tile_tables import make_tiles, of_slide, tiled

from microtome.errors import ConfigError, InputError, TaskError
from microtome_training.options.split import SplitBy, SplitOptions
from microtome_training.splits import check_leakage, split_slides
from microtome_training.tiles import join

COHORT = {f"s{n:02d}": (9, 3 if n % 2 else 0) for n in range(20)}


def split(counts, **options):
    return split_slides(make_tiles(counts), SplitOptions(**options))


def test_each_stratum_is_shared_out_by_itself():
    found = split(COHORT, val_size=0.2, test_size=0.1)
    assert list(found) == sorted(COHORT)
    positive = Counter(part for name, part in found.items() if COHORT[name][1])
    negative = Counter(part for name, part in found.items() if not COHORT[name][1])
    assert positive == negative == {"train": 7, "val": 2, "test": 1}


def test_without_strata_all_are_shared_out_together():
    parts = Counter(split(COHORT, val_size=0.25, stratify=False).values())
    assert parts == {"train": 15, "val": 5}


@settings(max_examples=40, deadline=None)
@given(st.permutations(sorted(COHORT)), st.integers(0, 999))
def test_names_and_the_seed_decide_and_no_order(order, seed):
    found = split({name: COHORT[name] for name in order}, seed=seed)
    assert found == split(COHORT, seed=seed)


def test_another_seed_splits_otherwise():
    assert len({tuple(split(COHORT, val_size=0.3, seed=seed).values()) for seed in range(5)}) > 3


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=4, max_size=12),
    st.floats(0.05, 0.4),
    st.floats(0, 0.4),
    st.integers(0, 99),
)
def test_slides_of_a_patient_stay_together(patients, val_size, test_size, seed):
    patients = [(1, True), (1, True), (1, True), *patients]
    counts = {
        (f"s{n}-{k}", f"p{n}"): (2, int(has and k == 0))
        for n, (slides, has) in enumerate(patients)
        for k in range(slides)
    }
    tiles = make_tiles(counts)
    options = SplitOptions(val_size=val_size, test_size=test_size, seed=seed)
    found = split_slides(tiles, options)
    assert len(found) == len(counts)
    whose = {(part, name.split("-")[0]) for name, part in found.items()}
    assert len(whose) == len(patients)
    check_leakage(tiles.slides, found)


def test_slides_named_test_are_tested_on():
    counts = COHORT | {"test_1": (3, 0), "x-test": (3, 3)}
    found = split(counts)
    assert {name for name, part in found.items() if part == "test"} == {"test_1", "x-test"}
    assert {split(counts, test_name="")[name] for name in COHORT} == {"train", "val"}
    assert "test" not in split(counts, test_name="").values()
    assert split(counts, test_name="s07")["s07"] == "test"


def test_a_patient_with_a_slide_named_test_is_tested_on():
    counts = {(f"s{n}", f"p{n}"): (2, 2) for n in range(4)}
    found = split(counts | {("test_0", "p0"): (2, 2)})
    assert {name for name, part in found.items() if part == "test"} == {"s0", "test_0"}


def test_slides_apart_of_one_patient_are_leakage():
    counts = {("a", "p1"): (2, 2), ("test_b", "p1"): (2, 2), ("c", "p2"): (2, 2)}
    counts[("d", "p3")] = (2, 2)
    told = r"Leakage: a \(\w+\) and test_b \(test\) .* patient, p1\. .* split\.by=patient"
    with pytest.raises(TaskError, match=told):
        split(counts, by=SplitBy.slide)


def test_copies_of_one_slide_are_leakage():
    parts = [of_slide(tiled(n, fingerprint="same"), [0, 1]) for n in ("a", "test_a")]
    parts += [of_slide(tiled(n, fingerprint=n), [0, 1]) for n in ("b", "c")]
    with pytest.raises(TaskError, match=r"test_a \(test\) are copies of one slide"):
        split_slides(join(parts), SplitOptions())
    apart = replace(parts[1], slides=(tiled("test_a", fingerprint="other"),))
    assert split_slides(join([parts[0], apart, *parts[2:]]), SplitOptions())["test_a"] == "test"


def test_patients_are_known_or_asked_for():
    with pytest.raises(TaskError, match=r"split\.by=patient, and of s00, s01, .* and 15 more"):
        split(COHORT, by=SplitBy.patient)


def test_slides_without_a_label_are_in_no_split():
    bare = of_slide(tiled("bare"), [-1, -1])
    tiles = join([bare, *(of_slide(tiled(n), [0, 1]) for n in "abc")])
    assert set(split_slides(tiles, SplitOptions())) == {"a", "b", "c"}
    with pytest.raises(TaskError, match="no labelled tiles to split"):
        split_slides(join([bare]), SplitOptions())


def test_one_slide_cannot_be_split():
    with pytest.raises(TaskError, match=r"one slide with labelled tiles, a: .* Label a second"):
        split({"a": (5, 5)})
    with pytest.raises(TaskError, match=r"one group of slides .* for testing \(test_b\)"):
        split({"a": (5, 5), "test_b": (5, 5)})
    with pytest.raises(TaskError, match="no group of slides"):
        split({"test_a": (5, 5), "test_b": (5, 5)})


def test_a_class_that_is_missing_is_told():
    with pytest.raises(TaskError, match=r"class tumor there is no tile in val, which has [abc]\."):
        split({"a": (5, 0), "b": (5, 5), "c": (5, 0)})
    with pytest.raises(TaskError, match=r"another split\.seed than 7 .* split\.val_size than 0\.3"):
        split({"a": (5, 0), "b": (5, 5), "c": (5, 0)}, seed=7, val_size=0.3)
    with pytest.raises(TaskError, match="class tumor there is no tile in train"):
        split({"a": (5, 0), "b": (5, 0), "test_c": (5, 5)})
    assert set(split({"a": (5, 5), "b": (5, 0)}, val_size=0).values()) == {"train"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"val_size": 1.0}, r"split\.val_size=1 is a share"),
        ({"test_size": -0.1}, r"split\.test_size=-0\.1 is a share"),
        ({"val_size": 0.5, "test_size": 0.5}, "leave nothing to train on"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, told):
    with pytest.raises(ConfigError, match=told):
        split(COHORT, **options)


@pytest.fixture
def file(tmp_path):
    """Write a file of splits: `file("slide_id,split", "a,train", …)`."""

    def write(*lines):
        path = tmp_path / "split.csv"
        path.write_text("\n".join(lines), encoding="utf-8")
        return str(path)

    return write


SLIDES = {("a", "p1"): (2, 2), ("b", "p1"): (2, 2), ("test_c", "p2"): (2, 2)}


def test_a_file_says_it_all(file):
    by_slide = file("Slide ID;split;why", "a; train;x", "test_c;val", "b;train")
    assert split(SLIDES, file=by_slide) == {
        "a": "train",
        "b": "train",
        "test_c": "val",
    }


def test_a_file_may_name_patients(file):
    found = split(SLIDES, file=file("patient_id,split", "p2,test", "p1,train"))
    assert found == {"a": "train", "b": "train", "test_c": "test"}


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (("slide_id,split", "a,train", "b,train"), "says nothing of test_c"),
        (("slide_id,split", "a,train", "b,val", "test_c,val", "d,val"), "names d, which are no"),
        (("patient_id,split", "p1,train", "p2,val", "p9,val"), "names p9, which are no patients"),
        (("slide_id,split", "a,training"), "line 2: 'training' is none of train, val and test"),
        (("slide_id,split", "a,train", "a,val"), "line 3: 'a' is to be in val, and is in train"),
        (("name,split", "a,train"), "no column 'slide_id' .*columns are name, split"),
        (("slide_id,split",), "has no rows"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(file, lines, told):
    with pytest.raises(InputError, match=told):
        split(SLIDES, file=file(*lines))


def test_a_file_that_leaks_is_refused(file):
    leaking = file("slide_id,split", "a,train", "b,val", "test_c,test")
    with pytest.raises(TaskError, match=r"Leakage: a \(train\) and b \(val\)"):
        split(SLIDES, file=leaking)
    with pytest.raises(InputError, match="cannot be read"):
        split(SLIDES, file=leaking + ".missing")
