"""Names that modules share which import torch and which do not: mistakes are told before it is."""

from __future__ import annotations

TRAIN, VAL, TEST = SPLITS = ("train", "val", "test")

PIXELS, FEATURES = "pixels", "features"
"""What a classifier may take of a tile."""

SMALL_CNN, LINEAR, MLP = "small_cnn", "linear", "mlp"
OF_FEATURES = (LINEAR, MLP)
OURS = (SMALL_CNN, *OF_FEATURES)
"""Networks that are no model of timm's."""

PRETRAINED, RANDOM = "pretrained", "random"
"""What ``train.weights`` may say, besides ``auto`` and the path of a file."""

CHECKPOINTS, BEST, LAST = "checkpoints", "best.pt", "last.pt"
"""A training's folder of models, the best of them, and what it goes on from."""

SAMPLES, TRAINING = "samples", "training"
"""Folders of this room below a tiling's root."""
