"""What options and slides come to before the first epoch, and what is told of it."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from tile_tables import make_tiles

from microtome.__main__ import main
from microtome.errors import TaskError
from microtome.plugin.options import configure
from microtome.plugin.registry import get_registry
from microtome.run.settings import Choice
from microtome.store.identity import Identity, fingerprint
from microtome_training.options.split import SplitOptions
from microtome_training.options.train import AugmentOptions, Source, TrainConfig
from microtome_training.predictions import read_predictions
from microtome_training.reading import MadeFeatures
from microtome_training.training.augment import Augmentation
from microtome_training.training.cohort import Cohort, _refuse_untaught, gather
from microtome_training.training.data import HeldSource, fits
from microtome_training.training.models import Standardise
from microtome_training.training.prepare import describe_classifier, make_network, open_source
from microtome_training.training.task import _notes

RUN = ("engine=inline", "device=cpu", "threads=1")
QUICK = (
    "task=train", "model=small_cnn", "input_size=32", "num_workers=0", "max_epochs=1",
    "split.val_size=0.25", "evaluate.bootstrap=0", "heatmaps=false",
)  # fmt: skip
SPLIT = SplitOptions(val_size=0.25)
IDENTITY = Identity("0" * 64, {})


def make_cohort(counts, *, labels=None, source=Source.pixels, **fields):
    """Give a cohort whose first slide trains, and the others validate."""
    tiles = make_tiles(counts)
    first, *rest = (slide.slide_id for slide in tiles.slides)
    return Cohort(
        tiles=tiles,
        splits={first: "train", **dict.fromkeys(rest, "val")},
        labels=tiles.label.astype(np.int64) if labels is None else np.asarray(labels, np.int64),
        source=source,
        **fields,
    )


def test_features_are_standardised_by_the_tiles_that_train():
    cohort = make_cohort(
        {"a": (3, 3), "b": (4, 2)},
        source=Source.features,
        features=MadeFeatures(encoder={}, identities={"a": "", "b": ""}),
    )
    features = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
    features[6:] += 100  # of what validates
    config = TrainConfig(features="x", model="linear")
    described = describe_classifier(cohort, config, IDENTITY)
    described = replace(described, architecture=replace(described.architecture, dim=5))
    network, _ = make_network(cohort, config, described, HeldSource(features))
    (found,) = (each for each in network.modules() if isinstance(each, Standardise))
    np.testing.assert_allclose(found.mean, features[:6].mean(0), atol=1e-5)
    np.testing.assert_allclose(1 / found.scale, features[:6].std(0), rtol=1e-4)


@pytest.mark.parametrize("flips", [False, True])
def test_flips_can_be_left_out(flips):
    options = AugmentOptions(flips=flips, brightness=0, contrast=0, saturation=0, hue=0)
    tile = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    shown = [Augmentation(options, 1)(tile, 1, str(key), 0) for key in range(20)]
    assert all(np.array_equal(each, tile) for each in shown) is not flips


@pytest.mark.parametrize(("memory_gb", "times"), [(0, 0), (1, 1)])
def test_tiles_are_held_in_memory_where_they_may_be(output, monkeypatch, memory_gb, times):
    from microtome_training.training import data

    held, plain = [], data.hold
    monkeypatch.setattr(data, "hold", lambda *given: held.append(given) or plain(*given))
    assert main([f"output={output}", *RUN, *QUICK, f"memory_gb={memory_gb}"]) == 0
    assert len(held) == times


def test_memory_is_counted_in_gib():
    source = HeldSource(np.empty((1, 1 << 20), np.uint8))
    assert fits(source, 1024, 1)
    assert not fits(source, 1025, 1)
    assert not fits(source, 1, 0)


@pytest.mark.parametrize(("input_size", "size"), [(None, 224), (64, 64)])
def test_a_network_of_fixed_size_is_built_for_the_size_that_it_is_given(input_size, size):
    cohort = make_cohort({"a": (2, 2), "b": (2, 2)})
    config = TrainConfig(model="vit_tiny_patch16_224", weights="random", input_size=input_size)
    found = describe_classifier(cohort, config, IDENTITY)
    assert found.takes.transform.resize == size
    network = found.architecture.build().eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 3, size, size)).shape == (1, 2)


def test_shuffled_labels_are_those_that_are_learned_and_measured(output, cohort, make_job):
    words = ("shuffle_labels=true", "name=shuffled")
    assert main([str(cohort.manifest), f"output={output}", *RUN, *QUICK, *words]) == 0
    folder = output / "training" / "shuffled"
    config = TrainConfig(split=SPLIT, shuffle_labels=True)
    known = gather(make_job(output, cohort.manifest), config)
    permuted = dict(zip(known.tiles.keys(), known.labels.tolist(), strict=True))
    true = dict(zip(known.tiles.keys(), known.tiles.label.tolist(), strict=True))
    found = read_predictions(folder / "predictions.parquet")
    keys = [
        f"{found.slide_ids[slide]}_x{x}_y{y}"
        for slide, (x, y) in zip(found.slide, found.coords[:, :2].tolist(), strict=True)
    ]
    assert found.label.tolist() == [permuted[key] for key in keys]
    assert found.label.tolist() != [true[key] for key in keys]
    with (folder / "split.csv").open(newline="") as file:
        rows = {row["slide_id"]: row for row in csv.DictReader(file)}
    for slide in cohort.slides:
        row, mine = rows[slide.slide_id], known.tiles.of_slides([slide.slide_id])
        assert int(row["tumor"]) == known.labels[mine].sum()
        assert row["fingerprint"] == fingerprint(slide.path)


def test_permuted_labels_that_leave_nothing_to_learn_are_refused():
    config = TrainConfig(shuffle_labels=True)
    counts = {"a": (3, 1), "b": (2, 2)}
    _refuse_untaught(make_cohort(counts), config)
    with pytest.raises(TaskError, match=r"labels permuted, the class tumor .* than 42"):
        _refuse_untaught(make_cohort(counts, labels=[0, 0, 0, 0, 1, 1, 1, 0]), config)
    lacking = make_cohort({"a": (4, 0), "b": (2, 2)}, labels=[1, 0, 0, 0, 1, 0, 0, 0])
    _refuse_untaught(lacking, config)
    with pytest.raises(TaskError, match="Of the class tumor the patch store has no tile"):
        _refuse_untaught(replace(lacking, labels=lacking.tiles.label.astype(np.int64)), config)


@pytest.mark.parametrize(
    ("patients", "told"),
    [
        ("", "no patient is known, so slides are split"),
        ("p", ""),
        ("ppp-------", "of 7 of 10 slides the patient is not known, s3, s4, s5, s6, s7 and 2 more"),
    ],
)
def test_whose_patient_is_not_known_is_told(patients, told):
    known = [patients[n] if n < len(patients) else patients for n in range(10)]
    names = [(f"s{n}", "" if patient == "-" else patient) for n, patient in enumerate(known)]
    notes = [
        note for note in _notes(make_cohort(dict.fromkeys(names, (2, 2)))) if "patient" in note
    ]
    assert len(notes) == bool(told)
    assert all(told in note for note in notes)


@pytest.mark.parametrize("name", ["openslide", "tiff"])
def test_slides_are_read_by_the_reader_that_is_chosen(labelled, make_job, monkeypatch, name):
    from microtome.api import dataset

    spec = get_registry().find("reader", name).spec
    choice = Choice(plugin=name, config=configure(spec))
    job = make_job(labelled, reader=choice)
    config = TrainConfig(split=SPLIT, model="small_cnn")
    cohort = gather(job, config)
    opened, plain = [], dataset.open_slide

    def opening(ref, **given):
        slide = plain(ref, **given)
        opened.append((slide.info.reader, given["config"]))
        return slide

    monkeypatch.setattr(dataset, "open_slide", opening)
    source, _ = open_source(cohort, describe_classifier(cohort, config, IDENTITY), job)
    source.read(np.arange(2))
    assert opened == [(name, choice.config)]
