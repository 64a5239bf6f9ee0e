"""What a training is shown, and in which order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from microtome.errors import ConfigError, SlideReadError, TaskError
from microtome.plugin.registry import get_registry
from microtome.plugin.specs import Transform
from microtome_training.options.train import AugmentOptions, AugmentWhich
from microtome_training.patchsource import find_patches
from microtome_training.stores import read_tiles
from microtome_training.training.augment import Augmentation
from microtome_training.training.data import (
    Batches,
    Epoch,
    HeldSource,
    PixelSource,
    hold,
    load,
    shuffle,
)

LABELS = np.array([0, 0, 1, 0, 2, 0, 0], np.int64)
ROWS = np.arange(7)
AS_IT_IS = Transform(resize=None, crop=None)


def show(number, **options):
    return shuffle(ROWS, LABELS, number=number, seed=1, **{"aug_factor": 3, **options})


def test_positives_appear_so_often_each_a_copy_of_its_own():
    epoch = show(1)
    shown = sorted(zip(epoch.rows.tolist(), epoch.copies.tolist(), strict=True))
    copies = {2: range(3), 4: range(3)}
    assert shown == [(row, copy) for row in range(7) for copy in copies.get(row, range(1))]


def test_the_order_goes_by_seed_and_epoch_alone():
    first, again, second = show(1), show(1), show(2)
    assert first.rows.tolist() == again.rows.tolist()
    assert first.rows.tolist() != second.rows.tolist()


def test_batches_are_of_nearly_one_size():
    epoch = show(1)
    assert [len(part) for part in epoch.batches(4)] == [4, 4, 3]
    assert [len(part) for part in epoch.batches(10)] == [6, 5]


def augmented(epoch, key, copy, **options):
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    return Augmentation(AugmentOptions(**options), seed=3)(pixels, epoch, key, copy)


def test_a_transform_goes_by_seed_epoch_key_and_copy():
    one = augmented(1, "a", 0)
    np.testing.assert_array_equal(one, augmented(1, "a", 0))
    for other in (augmented(2, "a", 0), augmented(1, "b", 0), augmented(1, "a", 1)):
        assert not np.array_equal(one, other)


def test_flips_and_turns_keep_the_pixels():
    plain = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    tiles = [augmented(1, str(number), 0, **plain) for number in range(40)]
    assert len({tile.tobytes() for tile in tiles}) == 8
    assert len({np.sort(tile, axis=None).tobytes() for tile in tiles}) == 1


@pytest.mark.parametrize(
    ("which", "changed"),
    [("all", [True, True]), ("positive", [False, True]), ("none", [False] * 2)],
)
def test_who_is_transformed_is_an_option(which, changed):
    augmentation = Augmentation(AugmentOptions(which=AugmentWhich[which]), 1)
    assert [augmentation.applies_to(label) for label in (0, 1)] == changed


@pytest.mark.parametrize("options", [{"brightness": 1.0}, {"hue": 0.6}, {"contrast": -0.1}])
def test_transforms_that_make_no_sense_are_refused(options):
    with pytest.raises(ConfigError, match=f"augment.{next(iter(options))}"):
        Augmentation(AugmentOptions(**options), 1)


def test_worker_processes_change_nothing():
    pixels = np.random.default_rng(0).integers(0, 255, (7, 8, 8, 3), np.uint8)
    epoch = show(1)
    batches = Batches(
        HeldSource(pixels), LABELS, list("abcdefg"), epoch, epoch.batches(4),
        Augmentation(AugmentOptions(), 1),
    )  # fmt: skip
    pairs = zip(load(batches, 0), load(batches, 2), strict=True)
    for (here, labels), (there, others) in pairs:
        torch.testing.assert_close(here, there, rtol=0, atol=0)
        assert labels.tolist() == others.tolist()


class Broken(HeldSource):
    def read(self, rows):
        if 3 in rows:
            raise SlideReadError("slide_01: a tile cannot be decoded")
        return super().read(rows)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_process_cannot_read_is_told_as_if_here(workers):
    epoch = Epoch(rows=ROWS, copies=np.zeros(7, np.int64), number=1)
    source = Broken(np.zeros((7, 8, 8, 3), np.uint8))
    batches = Batches(source, LABELS, list("abcdefg"), epoch, epoch.batches(3))
    found = load(batches, workers)
    assert next(found)[1].tolist() == LABELS[:3].tolist()
    with pytest.raises(SlideReadError) as told:
        next(found)
    assert str(told.value) == "slide_01: a tile cannot be decoded"


def test_pixels_are_those_of_the_tiles_in_any_order(labelled, make_job):
    tiles = read_tiles(make_job(labelled))
    source = PixelSource(tiles, AS_IT_IS)
    held = hold(source, 20, 2, lambda _: None)
    rows = np.array([17, 3, 3, 0])
    np.testing.assert_array_equal(source.read(rows), held.read(rows))
    assert held.held.shape == (20, 128, 128, 3)
    assert source.row_bytes == 128 * 128 * 3


def test_tiles_are_resized_as_they_are_read(labelled, make_job):
    tiles = read_tiles(make_job(labelled))
    small = PixelSource(tiles, Transform(resize=64, resize_mode="exact", crop=None))
    assert small.read(np.arange(2)).shape == (2, 64, 64, 3)


def test_a_folder_without_patches_says_what_to_do(labelled, make_job):
    tiles = read_tiles(make_job(labelled))
    with pytest.raises(TaskError, match=r"holds no patch store\. Write one first, writer="):
        find_patches(tiles, [labelled / "patches"], get_registry())
