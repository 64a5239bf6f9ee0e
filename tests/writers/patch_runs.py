"""Runs that write patch stores of two slides that somebody drew on."""

from __future__ import annotations

import json

import h5py

from microtome.__main__ import main
from microtome.plugin.registry import get_registry
from microtome.store.layout import OutputLayout
from microtome.testing import make_slide

STORES = ("imagefolder", "lmdb", "patches", "webdataset")
ALL = "writer=[hdf5,imagefolder,lmdb,patches,webdataset]"
IDS = ["a.svs", "block/b.1.svs"]
TILING = ["tiler.size=64", "tiler.magnification=20", "segmenter=none", "encoder=[]"]
CLASSES = [
    "labels.classes.tumor=[Tumor]",
    "labels.classes.necrosis=[Necrosis]",
    "labels.exclude=[Exclusion]",
]


def outline(group, x, y, w, h):
    corners = [[x, y], [x + w, y], [x + w, y + h], [x, y + h], [x, y]]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [corners]},
        "properties": {"objectType": "annotation", "classification": {"name": group}},
    }


def draw(folder, slide_id, *outlines):
    path = folder / f"{slide_id.removesuffix('.svs')}.geojson"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(outlines)}))


DRAWN = {
    "a.svs": [outline("Tumor", 120, 120, 300, 300), outline("Exclusion", 500, 0, 140, 200)],
    "block/b.1.svs": [outline("Necrosis", 0, 0, 256, 256)],
}


def run(folder, out, *words, writer=ALL, classes=CLASSES):
    slides = folder / "slides"
    given = [f"annotations={folder / 'drawn'}", *classes, "slide_id=relpath", "recursive=true"]
    return main([str(slides), f"output={out}", "engine=inline", *given, *TILING, writer, *words])


def make(folder):
    """Make two slides, one in a folder, and draw on both."""
    for slide_id in IDS:
        path = folder / f"slides/{slide_id}"
        path.parent.mkdir(parents=True, exist_ok=True)
        make_slide(path, size=(640, 512), seed=len(slide_id))
        draw(folder / "drawn", slide_id, *DRAWN[slide_id])
    return folder


def place(out, store, slide_id="a.svs"):
    return OutputLayout(out).slide(get_registry().find("writer", store).spec, slide_id)


def open_patches(out, store, slide_id="a.svs"):
    return get_registry().create("writer", store).open_patches(place(out, store, slide_id))


def labels_of(out, slide_id):
    """Give labels by place, as the store of tiles has them."""
    with h5py.File(out / f"patches/{slide_id}.h5") as file:
        rows = zip(file["coords"][:, :2].tolist(), file["columns/label"][...].tolist(), strict=True)
        return {tuple(xy): label for xy, label in rows}
