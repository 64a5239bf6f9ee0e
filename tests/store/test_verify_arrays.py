"""Arrays and patients that are spoilt are told, and those that are not are clean."""

from __future__ import annotations

import dataclasses
import shutil

import h5py
import numpy as np
import pytest
import zarr

from microtome.plugin.registry import get_registry
from microtome.store.attributes import sealed
from microtome.store.checks import Checker, Expected
from microtome.store.identity import make_identity
from microtome.store.layout import OutputLayout
from microtome.store.publish import ArraySource, FeatureSet, publish_slide
from microtome.store.survey import find_tilings
from microtome.store.verify import verify_output

ROWS = 9
ARRAYS = {
    "tokens/a": np.arange(ROWS * 24, dtype=np.float16).reshape(ROWS, 2, 3, 4),
    "slide_features/a": np.linspace(0, 1, 6, dtype=np.float32),
    "slide_attention/a": np.linspace(0, 1, ROWS, dtype=np.float32),
    "regions/index": np.arange(8, dtype=np.int32).reshape(2, 4),
    "regions/coords": np.ones((2, 5), np.int32),
    "region_features/a": np.ones((2, 4, 3), np.float32),
}


def identified(stage, **fields):
    return make_identity(stage, fields).attributes()


def make_arrays(changed=()):
    values = {**ARRAYS, **dict(changed)}
    return {
        key: FeatureSet(ArraySource(array), identified(key.partition("/")[0], key=key))
        for key, array in values.items()
    }


@pytest.fixture
def whole(content):
    """Give a slide that verifies."""
    identity = identified("coords", step=1)
    return dataclasses.replace(
        content(),
        attributes={**identity, "num_patches": ROWS},
        features={
            "a": FeatureSet(
                ArraySource(np.ones((ROWS, 3), np.float32)),
                identified("features", coords=identity["identity"]),
            )
        },
        arrays=make_arrays(),
    )


@pytest.fixture
def path(store, tmp_path):
    return OutputLayout(tmp_path).slide(store.spec, "slide")


@pytest.fixture
def put(store, path):
    def put(content, at=path):
        publish_slide(at, store.writer, store.spec, content, force=False)

    return put


@pytest.fixture
def told(store, path):
    """Give what is wrong with the slide."""

    def told(*, deep=True, **expected):
        checker = Checker(registry=get_registry(), deep=deep)
        found = [w.what for w in checker.check(path, store.spec, Expected(**expected))]
        assert not checker.unguarded
        return found

    return told


def spoil(store, path, key, change):
    """Change an array in place, as nobody should."""
    if store.spec.name == "hdf5":
        with h5py.File(path, "r+") as file:
            change(file[key])
    else:
        change(zarr.open_group(path, mode="r+")[key])


def test_a_slide_with_arrays_is_clean(put, told, whole):
    put(whole)
    assert told() == []
    assert told(deep=False) == []


@pytest.mark.parametrize(
    ("key", "array", "message"),
    [
        ("regions/coords", np.ones((3, 5), np.int32), "it has 3 rows for 2 regions"),
        ("regions/coords", np.ones((2, 4), np.int32), "it is of shape (2, 4), not (R, 5)"),
        ("region_features/a", np.ones((1, 4, 3)), "it has 1 rows for 2 regions"),
        ("regions/index", np.ones((2, 4)), "it is float64 of shape (2, 4), not whole"),
        ("regions/index", np.full((2, 4), ROWS), "are no row of 9 tiles, the first in row 0"),
        ("regions/index", np.array([[0, 1, 2, 3], [0, 1, 2, -1]]), "the first in row 1"),
        ("slide_features/a", np.array([0, np.nan]), "that are not finite, the first in row 1"),
        ("other/x", np.array([np.inf]), "that are not finite, the first in row 0"),
    ],
)
def test_values_that_do_not_fit(put, told, whole, key, array, message):
    put(dataclasses.replace(whole, arrays=make_arrays({key: array})))
    (found,) = told()
    assert found.startswith(f"{key}: ")
    assert message in found


def test_rows_of_tiles_that_are_not_as_many(store, path, put, told, whole):
    put(whole)
    attributes = sealed(identified("tokens", key="b"))
    store.writer.add_array(path, "tokens/b", ArraySource(np.ones((8, 2))), attributes)
    assert told() == ["tokens/b: it has 8 rows for 9 tiles"]


def test_an_array_that_says_nothing_of_itself(store, path, put, told, whole):
    put(whole)
    store.writer.add_array(path, "extra/x", ArraySource(np.ones(3)), sealed({}))
    (found,) = told()
    assert found.startswith("extra/x: its attributes do not say what made it")


@pytest.mark.parametrize("deep", [True, False])
def test_a_value_that_was_changed_in_four_axes(store, path, put, told, whole, deep):
    put(whole)
    spoil(store, path, "tokens/a", lambda array: array.__setitem__((4, 1, 1), np.nan))
    assert told(deep=deep) == deep * [
        "tokens/a: it holds values that are not finite, the first in row 4"
    ]


def test_an_attribute_that_was_changed(store, path, put, told, whole):
    put(whole)
    spoil(store, path, "slide_features/a", lambda array: array.attrs.update(identity="other"))
    assert told() == [
        "slide_features/a: its attributes or columns are not those that were written",
        "slide_features/a: its identity is not the hash of its identity_fields",
    ]


@pytest.mark.parametrize("key", ["tokens/a", "slide_features/a", "regions/index"])
def test_a_flipped_bit(store, path, put, told, whole, key):
    put(whole)
    if store.spec.name == "hdf5":
        with h5py.File(path) as file:
            chunk = file[key].id.get_chunk_info(0)
        file, at = path, chunk.byte_offset + chunk.size // 2
    else:
        file = next(f for f in (path / key / "c").rglob("*") if f.is_file())
        at = file.stat().st_size // 2
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)
    (found,) = told()
    assert f"{key} cannot be read, it is damaged" in found


def test_what_the_record_names_must_be_there_and_be_that(put, told, whole):
    put(whole)
    digest = whole.arrays["tokens/a"].attributes["identity"]
    names = {"tokens/a": digest, "slide_features/b": digest, "regions/index": digest}
    missing, other = told(identities=names)
    assert missing == "slide_features/b is missing, its slide's record names it"
    assert other.startswith("regions/index: its identity is ")


def test_a_group_that_is_damaged_is_told_and_replaced_by_force(store, path, put, told, whole):
    if store.spec.layout == "file":
        pytest.skip("a file is one")
    put(whole)
    (path / "tokens/a/zarr.json").write_text("{")
    (found,) = told()
    assert "tokens cannot be read, it is damaged" in found
    publish_slide(path, store.writer, store.spec, whole, force=True)
    assert told() == []


@pytest.fixture
def patient(whole):
    array = FeatureSet(ArraySource(np.ones(4, np.float32)), identified("patient_features", p=1))
    return dataclasses.replace(
        whole,
        coords=np.empty((0, 5), np.int32),
        columns={},
        features={},
        attributes={**identified("patient", patient="P"), "num_patches": 0},
        arrays={"patient_features/moozy": array},
    )


@pytest.mark.parametrize("tiling", ["", "20x"])
def test_patients_are_checked_and_are_no_slides(store, put, patient, tmp_path, tiling):
    layout = OutputLayout(tmp_path, tiling)
    layout.status_folder.mkdir(parents=True)
    final = layout.patient(store.spec, "status/P 1")
    put(patient, final)
    # A patient whose id looks like a folder of ours is no tiling of its own.
    assert [found.root for found in find_tilings(tmp_path)] == [layout.root]
    found = verify_output(tmp_path, get_registry())
    assert (found.faults, found.slides, found.files) == ([], 0, 1)
    key = "patient_features/moozy"
    spoil(store, final, key, lambda array: array.__setitem__(0, np.nan))
    (final.parent / ".x.h5.aside.tmp").mkdir()
    output, left = verify_output(tmp_path, get_registry()).faults
    assert output.path == final.relative_to(tmp_path).as_posix()
    assert f"{key}: it holds values that are not finite, the first in row 0. " in output.message
    assert (left.kind, left.path) == (
        "leftover",
        (final.parent / ".x.h5.aside.tmp").relative_to(tmp_path).as_posix(),
    )


def made_of(content, key, **fields):
    """Give a slide or patient with one array more, made of something."""
    array = np.ones(4, np.float32)
    attributes = identified(key.partition("/")[0], **fields)
    if "slides" in fields:
        attributes["slides"] = ["slide"]
    arrays = {**content.arrays, key: FeatureSet(ArraySource(array), attributes)}
    return dataclasses.replace(content, arrays=arrays)


def test_an_embedding_of_features_that_are_there(put, told, whole):
    features = whole.features["a"].attributes["identity"]
    put(made_of(whole, "slide_features/b", features={"a": features}))
    assert told() == []


@pytest.mark.parametrize("key", ["slide_features/b", "slide_latents/b", "tokens/b"])
@pytest.mark.parametrize("gone", ["f" * 64, {"a": "f" * 64}])
def test_an_array_of_features_that_were_replaced(put, told, whole, key, gone):
    if key == "tokens/b":
        tokens = FeatureSet(ArraySource(np.ones((ROWS, 2))), identified("tokens", features=gone))
        put(dataclasses.replace(whole, arrays={**whole.arrays, key: tokens}))
    else:
        put(made_of(whole, key, features=gone))
    assert told() == [f"{key}: it was made of other features than its slide holds now"]


@pytest.mark.parametrize("of", ["features/a", "slide_features/a"])
def test_a_patient_of_what_its_slide_no_longer_holds(
    store, path, put, whole, patient, tmp_path, of
):
    layout = OutputLayout(tmp_path)
    layout.status_folder.mkdir()
    digest = whole.sets[of].attributes["identity"]
    named = {"a": digest} if of == "features/a" else digest
    new = made_of(patient, "patient_features/x", slides=[named])
    put(new, layout.patient(store.spec, "P"))

    def faults():
        found = verify_output(tmp_path, get_registry()).faults
        return [fault.message for fault in found if fault.path.startswith("patient_embeddings")]

    assert faults() == []  # whose slide is elsewhere cannot be compared
    put(whole)
    assert faults() == []
    other = FeatureSet(ArraySource(np.zeros((ROWS, 3))), identified("features", other=1))
    changed = {"features": {"a": other}} if of == "features/a" else {}
    arrays = {k: v for k, v in whole.arrays.items() if k != of}
    content = dataclasses.replace(whole, arrays=arrays, **changed)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    put(content)
    (message,) = faults()
    assert message.endswith(
        "patient_features/x: its slides slide hold other features or embeddings now than it is "
        "of. Run the same command again."
    )


def test_a_patient_without_an_embedding(store, put, patient, tmp_path):
    layout = OutputLayout(tmp_path)
    layout.status_folder.mkdir()
    put(dataclasses.replace(patient, arrays={}), layout.patient(store.spec, "P"))
    (fault,) = verify_output(tmp_path, get_registry()).faults
    assert "it holds no patient_features. Run the same command again." in fault.message
