"""What a training makes small: cross-entropy or focal loss, weighted, over the hardest tiles."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from microtome_training.options.train import LossKind, TrainConfig


@dataclass(frozen=True, eq=False)
class PatchLoss:
    """The loss of a training.

    Attributes:
        gamma: Of the focal loss; 0 for cross-entropy.
        weights: (C,) float32, of the classes.
        ohem_ratio: Tiles of the background that count for each other one; 0 for all.
        ohem_floor: So many count at least.
    """

    gamma: float
    weights: Tensor
    ohem_ratio: float = 0.0
    ohem_floor: int = 1

    @classmethod
    def of(cls, config: TrainConfig, counts: NDArray[np.int64]) -> PatchLoss:
        """Make the loss that a training asks for.

        Args:
            config: The options.
            counts: (C,) how often an epoch shows each class.
        """
        weights = inverse_frequency(counts) if config.class_weights else np.ones(len(counts))
        return cls(
            gamma=config.focal.gamma if config.loss is LossKind.focal else 0.0,
            weights=torch.from_numpy(weights.astype(np.float32)),
            ohem_ratio=config.ohem.ratio,
            ohem_floor=config.ohem.floor,
        )

    def to(self, device: torch.device) -> PatchLoss:
        """Move the weights to a device."""
        moved = self.weights.to(device)
        return PatchLoss(self.gamma, moved, self.ohem_ratio, self.ohem_floor)

    def of_batch(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Give the loss of a training batch: of its positives and its hardest negatives.

        Args:
            logits: (n, C).
            labels: (n,) int64; 0 is the background.

        Returns:
            A scalar, in float32.
        """
        losses, weights = self.sums(logits, labels)
        return losses / weights

    def sums(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Give the weighted sum of the losses of those, and the sum of their weights.

        The loss of a batch that devices share is the sum of the one over the sum of the other.
        """
        each, weights = self.each(logits, labels)
        if self.ohem_ratio > 0:
            kept = hardest(each.detach() * weights, labels, self.ohem_ratio, self.ohem_floor)
            each, weights = each[kept], weights[kept]
        return (each * weights).sum(), weights.sum()

    def of_all(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Give the loss of all tiles, easy ones too: what validation goes by."""
        each, weights = self.each(logits, labels)
        return (each * weights).sum() / weights.sum()

    def each(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Give every tile's loss and weight, (n,) float32 each.

        The focal loss is ``-(1 - p)^gamma log p`` of the true class's probability p (Lin et al.
        2017, arXiv 1708.02002), with the class's weight as its alpha.
        """
        log_p = functional.log_softmax(logits.float(), dim=1)
        true = log_p.gather(1, labels[:, None])[:, 0]
        loss = -true
        if self.gamma > 0:
            # Away from 0, where the slope of a power below 1 has no end.
            loss = (-torch.expm1(true)).clamp_min(1e-6) ** self.gamma * loss
        return loss, self.weights[labels]


def hardest(losses: Tensor, labels: Tensor, ratio: float, floor: int) -> Tensor:
    """Choose the tiles of a batch that count: all positives, and the hardest negatives.

    Args:
        losses: (n,) of each tile.
        labels: (n,); 0 is the background, all else is positive.
        ratio: Negatives for each positive.
        floor: So many negatives at least, so that a batch without positives teaches, too.

    Returns:
        Their indices, positives first.
    """
    negatives = torch.nonzero(labels == 0)[:, 0]
    positives = torch.nonzero(labels != 0)[:, 0]
    count = min(len(negatives), max(floor, math.ceil(ratio * len(positives))))
    order = torch.argsort(losses[negatives], descending=True, stable=True)
    return torch.cat([positives, negatives[order[:count]]])


def inverse_frequency(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Weight each class by ``n / (C n_c)``, so that all count alike in sum and a tile 1 on average.

    A class of no tile gets no weight.
    """
    present = counts > 0
    share = counts.sum() / (present.sum() * np.maximum(counts, 1))
    return np.where(present, share, 0.0)
