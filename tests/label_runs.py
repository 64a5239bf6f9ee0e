"""What tests of runs that label tiles draw, and how they look at the labels."""

from __future__ import annotations

import h5py
import numpy as np

from microtome.plugin.registry import get_registry
from microtome.store.verify import verify_output

GRID = {"grid": {"magnification": 20, "size": 128}}
LABELS = {"classes": {"tumor": ["Tumor", "metastases"]}}
SQUARE = ("Tumor", (256, 256, 1024, 1024))  # 3 × 3 tiles of 256 px at level 0, of 8 × 6


def asap(path, *objects):
    """Write rectangles as ASAP does: a group, and x, y, x, y."""
    path.parent.mkdir(exist_ok=True)
    lines = []
    for number, (group, (x, y, right, bottom)) in enumerate(objects):
        points = enumerate([(x, y), (right, y), (right, bottom), (x, bottom)])
        corners = "".join(f'<Coordinate Order="{i}" X="{a}" Y="{b}"/>' for i, (a, b) in points)
        lines.append(
            f'<Annotation Name="no. {number}" Type="Polygon" PartOfGroup="{group}">'
            f"<Coordinates>{corners}</Coordinates></Annotation>"
        )
    body = "".join(lines)
    path.write_text(
        f"<?xml version='1.0'?><ASAP_Annotations><Annotations>{body}</Annotations>"
        "</ASAP_Annotations>"
    )
    return path


def read(path):
    """Give the labels of a stored slide by the place of its tiles, and its attributes."""
    with h5py.File(path) as file:
        label, share = file["columns/label"][:], file["columns/label_fraction"][:]
        assert (label.dtype, share.dtype) == (np.int16, np.float32)
        places = map(tuple, file["coords"][:, :2].tolist())
        return dict(zip(places, label.tolist(), strict=True)), dict(file.attrs)


def faults(out):
    """Verify an output to the last value."""
    return [str(fault.message) for fault in verify_output(out, get_registry()).faults]


def of_class(labels, number=1):
    return {place for place, label in labels.items() if label == number}


def square(x, y, right, bottom):
    return {(a, b) for a in range(x, right, 256) for b in range(y, bottom, 256)}
