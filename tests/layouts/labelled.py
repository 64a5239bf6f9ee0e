"""Labels and predictions in a stored slide, put there without a run."""

from __future__ import annotations

import json

import h5py
import numpy as np

from microtome.plugin.registry import get_registry
from microtome.store.features import ArraySource

CLASSES = ["normal", "tumor"]


def label(path, classes=CLASSES, labels=None, attributes=()):
    """Label the tiles of a store: by turns, beginning with one that has no label."""
    with h5py.File(path, "r+") as file:
        count = len(file["coords"])
        made = np.arange(count) % (len(classes) + 1) - 1 if labels is None else labels
        for name, values in (
            ("label", np.asarray(made, np.int16)),
            ("label_fraction", np.linspace(0, 1, count, dtype=np.float32)),
        ):
            file["columns"].pop(name, None)
            file["columns"][name] = values
        file.attrs["classes"] = json.dumps(classes)
        file.attrs.update(attributes)
    return np.asarray(made)


def predict(path, name, values, classes=CLASSES):
    """Give the tiles of a store probabilities."""
    said = {"classes": classes, "identity": name.ljust(64, "0")}
    source = ArraySource(np.asarray(values, np.float32))
    get_registry().create("writer", "hdf5").add_array(path, f"predictions/{name}", source, said)
