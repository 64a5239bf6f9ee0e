"""What a training makes small, against formulas written out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from microtome_training.options.train import LossKind, OhemOptions, TrainConfig
from microtome_training.training.losses import PatchLoss, hardest, inverse_frequency

LOGITS = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 3.0], [0.5, 0.5]])
LABELS = torch.tensor([0, 1, 0, 1])
EVEN = torch.ones(2)


def by_hand(gamma):
    found = []
    for row, label in zip(LOGITS.tolist(), LABELS.tolist(), strict=True):
        p = math.exp(row[label]) / sum(map(math.exp, row))
        found.append(-((1 - p) ** gamma) * math.log(p))
    return found


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_the_focal_loss_is_that_of_its_paper(gamma):
    each, _ = PatchLoss(gamma, EVEN).each(LOGITS, LABELS)
    np.testing.assert_allclose(each.numpy(), by_hand(gamma), rtol=1e-5)


def test_without_gamma_it_is_cross_entropy_with_weights():
    weights = torch.tensor([0.4, 2.5])
    loss = PatchLoss(0.0, weights).of_all(LOGITS, LABELS)
    assert float(loss) == pytest.approx(
        float(functional.cross_entropy(LOGITS, LABELS, weight=weights)), rel=1e-6
    )


def test_its_slope_is_finite_where_a_tile_is_certain():
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    PatchLoss(0.5, EVEN).of_all(logits, torch.tensor([0])).backward()
    assert torch.isfinite(logits.grad).all()


def test_half_precision_is_computed_in_float32():
    each, _ = PatchLoss(2.0, EVEN).each(LOGITS.to(torch.bfloat16), LABELS)
    assert each.dtype == torch.float32


def test_the_hardest_negatives_are_kept_for_each_positive():
    losses = torch.tensor([0.1, 0.9, 0.5, 0.7, 0.2, 0.3])
    labels = torch.tensor([0, 0, 1, 0, 0, 0])
    assert sorted(hardest(losses, labels, 3.0, 1).tolist()) == [1, 2, 3, 5]
    assert sorted(hardest(losses, labels, 1.0, 1).tolist()) == [1, 2]


def test_a_batch_without_positives_keeps_some():
    labels = torch.zeros(6, dtype=torch.int64)
    assert hardest(torch.arange(6.0), labels, 3.0, 2).tolist() == [5, 4]


def test_every_class_but_the_background_is_positive():
    labels = torch.tensor([0, 1, 2, 0, 0])
    kept = hardest(torch.tensor([0.1, 0.0, 0.0, 0.3, 0.2]), labels, 0.5, 1)
    assert sorted(kept.tolist()) == [1, 2, 3]


def test_mining_leaves_easy_negatives_out_of_the_loss():
    loss = PatchLoss(0.0, EVEN, ohem_ratio=0.5, ohem_floor=1)
    each, _ = loss.each(LOGITS, LABELS)
    # Of the negatives, rows 0 and 2, the second is the harder.
    assert float(loss.of_batch(LOGITS, LABELS)) == pytest.approx(float(each[[1, 2, 3]].mean()))


def test_devices_add_up_to_the_loss_of_the_whole_batch():
    loss = PatchLoss(2.0, torch.tensor([0.4, 2.5]))
    parts = [loss.sums(LOGITS[part], LABELS[part]) for part in (slice(0, 3), slice(3, 4))]
    losses, weights = (sum(part[n] for part in parts) for n in range(2))
    assert float(losses / weights) == pytest.approx(float(loss.of_batch(LOGITS, LABELS)), rel=1e-6)


def test_weights_go_inversely_with_frequency():
    weights = inverse_frequency(np.array([90, 10]))
    np.testing.assert_allclose(weights, [100 / 180, 100 / 20])
    assert weights @ [90, 10] == pytest.approx(100)
    assert inverse_frequency(np.array([5, 0, 5])).tolist() == [1, 0, 1]


def test_each_part_is_switched_by_its_option():
    counts = np.array([9, 1])
    plain = PatchLoss.of(
        TrainConfig(loss=LossKind.cross_entropy, class_weights=False, ohem=OhemOptions(ratio=0.0)),
        counts,
    )
    assert (plain.gamma, plain.weights.tolist(), plain.ohem_ratio) == (0.0, [1.0, 1.0], 0.0)
    full = PatchLoss.of(TrainConfig(), counts)
    assert (full.gamma, full.ohem_ratio) == (2.0, 3.0)
    assert full.weights[1] == pytest.approx(5.0)
