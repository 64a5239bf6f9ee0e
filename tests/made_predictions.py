"""Predictions that no model made."""

from __future__ import annotations

import numpy as np

from microtome_training.predictions import Predictions

CLASSES = ("normal", "tumor", "stroma")


def make_predictions(
    tiles=400, slides=8, classes=2, *, seed=0, patients=False, digits=None, split="test", **fields
):
    """Make predictions of a model that is right more often than not.

    Every second slide is of the background alone. Scores are rounded to some digits, for ties.
    """
    rng = np.random.default_rng(seed)
    slide = np.sort(np.arange(tiles) % slides).astype(np.int32)
    positive = (slide % 2 == 0) & (rng.random(tiles) < 0.4)
    label = np.where(positive, rng.integers(1, classes, tiles), 0).astype(np.int16)
    logits = rng.normal(size=(tiles, classes)) + rng.normal(size=(slides, 1))[slide]
    logits[np.arange(tiles), label] += 1.5
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    if digits is not None:
        shares[:, 1:] = np.round(shares[:, 1:], digits)
        shares[:, 0] = 1 - shares[:, 1:].sum(1)
    shares = np.clip(shares, 0, 1)
    coords = np.zeros((tiles, 5), np.int32)
    coords[:, 0] = np.arange(tiles) * 64
    coords[:, 2:4] = 64
    given = {
        "slide_ids": tuple(f"slide{n:02}" for n in range(slides)),
        "patient_ids": tuple(f"p{n // 2}" if patients else "" for n in range(slides)),
        "splits": (split,) * slides,
        "slide": slide,
        "coords": coords,
        "label": label,
        "probabilities": shares.astype(np.float32),
        "classes": CLASSES[:classes],
    }
    return Predictions(**given | fields)
