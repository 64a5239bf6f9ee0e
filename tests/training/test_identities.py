"""What makes a training another one, and what makes features another's."""

from __future__ import annotations

import shutil
from dataclasses import replace
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from tile_tables import make_tiles

from microtome.__main__ import main
from microtome.errors import TaskError
from microtome.store.identity import make_identity
from microtome_training.classifier import Takes
from microtome_training.options.split import SplitOptions
from microtome_training.options.train import Source, TrainConfig
from microtome_training.predicting.predict import check_fit
from microtome_training.reading import MadeFeatures, find_features
from microtome_training.stores import read_tiles
from microtome_training.training.cohort import Cohort, gather
from microtome_training.training.prepare import identify

RUN = ("engine=inline", "device=cpu", "threads=1")
TRAIN = (
    "task=train", "model=linear", "features=handcrafted", "num_workers=0", "max_epochs=1",
    "split.val_size=0.25", "evaluate.bootstrap=0", "heatmaps=false",
)  # fmt: skip


def with_slide(tiles, **changes):
    first, *rest = tiles.slides
    return replace(tiles, slides=(replace(first, **changes), *rest))


def changes(cohort):
    """Give cohorts that differ in one thing each."""
    tiles, features = cohort.tiles, cohort.features
    return {
        "classes": replace(cohort, tiles=replace(tiles, classes=("normal", "stroma"))),
        "coords": replace(cohort, tiles=with_slide(tiles, identity="others")),
        "split": replace(cohort, splits={"a": "val", "b": "train"}),
        "source": replace(cohort, source=Source.pixels),
        "patches": replace(cohort, patches=SimpleNamespace(identities=lambda: {"a": "1"})),
        "encoder": replace(cohort, features=replace(features, encoder={"plugin": "uni"})),
        "features": replace(
            cohort, features=replace(features, identities={**features.identities, "b": "3"})
        ),
    }


@pytest.fixture
def small():
    tiles = make_tiles({"a": (3, 2), "b": (2, 2)})
    return Cohort(
        tiles=tiles,
        splits={"a": "train", "b": "val"},
        labels=tiles.label.astype(np.int64),
        source=Source.features,
        features=MadeFeatures(encoder={"plugin": "gigapath"}, identities={"a": "1", "b": "2"}),
    )


def test_what_makes_another_training(small):
    config = TrainConfig(features="x")
    known = identify(small, config)
    for name, other in changes(small).items():
        found = identify(other, config)
        assert found.digest != known.digest, name
        assert {key for key in known.fields if found.fields.get(key) != known.fields[key]} <= {
            name, "features",
        }, name  # fmt: skip


def test_where_a_slide_lies_makes_no_other_training(small, tmp_path):
    config = TrainConfig(features="x")
    moved = replace(small, tiles=with_slide(small.tiles, store=tmp_path / "a.h5"), notes=("told",))
    assert identify(moved, config).digest == identify(small, config).digest


@pytest.fixture(scope="module")
def encoded(labelled, cohort, tmp_path_factory):
    """Give an output with stored features. Not to be written to."""
    output = shutil.copytree(labelled, tmp_path_factory.mktemp("encoded") / "out")
    assert main([str(cohort.manifest), f"output={output}", *RUN, "encoder=handcrafted",
                 "tiler.size=128", "tiler.mpp=0.5"]) == 0  # fmt: skip
    return output


def pass_for_imported(output, layout, digest, *, only=""):
    """Let stored features say what imported ones say of themselves."""
    for path in sorted((output / "patches").glob(f"{only or '*'}.h5")):
        with h5py.File(path, "r+") as file:
            imported = {"layout": {"plugin": layout, "output_version": 1}, "values": digest}
            fields = {"coords": file.attrs["identity"], "imported": imported}
            file["features/handcrafted"].attrs.update(
                make_identity("features", fields).attributes()
            )


@pytest.fixture
def imported(encoded, tmp_path):
    output = shutil.copytree(encoded, tmp_path / "imported")
    pass_for_imported(output, "trident", "first")
    return output


def test_other_features_in_the_place_of_imported_ones_are_trained_on_anew(imported, capsys):
    words = [f"output={imported}", *RUN, *TRAIN]
    assert main(words) == 0
    assert main(words) == 0
    assert "already trained" in capsys.readouterr().out
    pass_for_imported(imported, "trident", "second", only="slide_01")
    assert main(words) == 1
    assert "features.slide_01 changed" in capsys.readouterr().err


def test_features_that_were_encoded_have_their_own_identities(encoded, make_job):
    config = TrainConfig(features="handcrafted", split=SplitOptions(val_size=0.25))
    cohort = gather(make_job(encoded), config)
    assert cohort.features.encoder["plugin"] == "handcrafted"
    with h5py.File(encoded / "patches/slide_01.h5") as file:
        known = file["features/handcrafted"].attrs["identity"]
    assert identify(cohort, config).fields["features"]["slide_01"] == known


def test_features_out_of_two_tools_are_not_trained_on(imported, make_job):
    job = make_job(imported)
    tiles = read_tiles(job)
    assert find_features(tiles, "handcrafted", job.registry).encoder == {"imported": "trident"}
    pass_for_imported(imported, "clam", "first", only="slide_02")
    with pytest.raises(TaskError, match="imported was 'trident' and is 'clam'"):
        find_features(tiles, "handcrafted", job.registry)


@pytest.mark.parametrize(
    ("learned_from", "told"),
    [
        ({"imported": "trident"}, ""),
        ({"imported": "clam"}, "imported was 'clam' and is 'trident'"),
        ({"plugin": "handcrafted"}, ""),  # maybe by that: nothing says
        ({}, ""),
    ],
)
def test_a_model_of_imported_features_takes_those_of_the_same_tool(
    imported, make_job, learned_from, told
):
    job = make_job(imported)
    (slide, *_) = read_tiles(job).slides
    with slide.open(job.registry) as stored:
        dim = stored.feature_shape("handcrafted")[1]
    takes = Takes(
        kind="features", size=128, mpp=0.5, features="handcrafted", encoder=learned_from, dim=dim
    )
    classifier = SimpleNamespace(takes=takes, path="best.pt")
    if told:
        with pytest.raises(TaskError, match=told):
            check_fit(classifier, slide, job)
    else:
        check_fit(classifier, slide, job)


def test_a_model_of_imported_features_may_take_encoded_ones(encoded, make_job):
    job = make_job(encoded)
    (slide, *_) = read_tiles(job).slides
    takes = Takes(
        kind="features", size=128, mpp=0.5, features="handcrafted", encoder={"imported": "clam"}
    )
    check_fit(SimpleNamespace(takes=takes, path="best.pt"), slide, job)
