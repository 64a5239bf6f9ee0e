"""AtlasPatch: one HDF5 file a slide, with coordinates, attributes and all features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from microtome.errors import LayoutError
from microtome.plugin import NoConfig
from microtome.slide.types import Resolution
from microtome.store.attributes import plain_attributes
from microtome.store.exchange import (
    NOTE,
    FoundSlide,
    LayoutFile,
    SlideFacts,
    TiledSlide,
    make_geometry,
    read_note,
)
from microtome.store.identity import IDENTITY
from microtome_layouts.common import Frame, feature_note, known_info, read_frame
from microtome_layouts.hdf5 import (
    need,
    open_hdf5,
    points_of,
    read_features,
    some_coords,
    write_features,
    write_values,
)
from microtome_layouts.pairs import find_slides

_UNFINISHED = "__tmp_"
"""Begins the name of features that a killed run left."""


class AtlaspatchLayout:
    """Reads and writes ``patches/<slide>.h5``."""

    def __init__(self, config: NoConfig) -> None:
        del config

    def files(self, slide: TiledSlide) -> Iterator[LayoutFile]:
        """Name a slide's one file."""

        def write(path: Path) -> None:
            with h5py.File(path, "x") as file:
                write_values(file, "coords", slide.coords)
                file.attrs.update(_attributes(slide))
                group = file.create_group("features")
                for name, features in slide.features.items():
                    made = write_features(group, name, features, dtype=np.float32)
                    made.attrs[NOTE] = feature_note(features)

        path = f"patches/{slide.slide_id}.h5"
        yield LayoutFile(path=path, write=write, features=tuple(slide.features))

    def recognises(self, folder: Path) -> bool:
        """Tell by some of its files whether a folder is of this layout."""
        return any(
            shape[1:] == (5,) and "patch_size_level0" in of_file and IDENTITY not in of_file
            for shape, _, of_file in some_coords(folder / "patches", "*.h5")
        )

    def find(self, folder: Path) -> Mapping[str, FoundSlide]:
        """Find the slides in ``patches/``."""
        return {
            slide_id: replace(
                found, features=dict.fromkeys(_encoders(found.coords[0]), found.coords)
            )
            for slide_id, found in find_slides(folder / "patches").items()
        }

    def read(self, found: FoundSlide, facts: SlideFacts) -> TiledSlide:
        """Read a slide."""
        path = found.coords[0]
        points, _, attributes = points_of(path)
        if points.ndim != 2 or points.shape[1] != 5:
            raise LayoutError(f"{path}: coords are of shape {points.shape}, not (n, 5).")
        side = need(attributes, "patch_size_level0", path)
        frame = read_frame(attributes.get(NOTE), side, facts, str(path))
        frame = frame or _frame(attributes, points, facts, path)
        features = {name: read_features(path, f"features/{name}") for name in found.features}
        return frame.slide(found.slide_id, points, features=features)


def _attributes(slide: TiledSlide) -> dict[str, Any]:
    """Give the attributes that the tool's readers know, as the slide's own store had them."""
    known = read_note(slide.note)
    names = (
        *("patch_size", "patch_size_level0", "level0_magnification", "target_magnification"),
        *("overlap", "level0_width", "level0_height", "wsi_path", "mpp", "magnification", "vendor"),
    )
    established = {name: known[name] for name in names if name in known}
    own = {"num_patches": len(slide.coords), "filename": Path(slide.source).name}
    return plain_attributes(established | own) | {NOTE: slide.note}


def _encoders(path: Path) -> list[str]:
    try:
        with open_hdf5(path) as file:
            group = file.get("features")
            names = sorted(group) if isinstance(group, h5py.Group) else []
            return [name for name in names if not name.startswith(_UNFINISHED)]
    except LayoutError:  # told when the slide is read, which then fails alone
        return []


def _frame(
    attributes: Mapping[str, Any], points: NDArray[Any], facts: SlideFacts, path: Path
) -> Frame:
    names = ("patch_size", "patch_size_level0", "overlap", "level0_width", "level0_height")
    size, side, overlap, width, height = (need(attributes, name, path) for name in names)
    sizes = np.unique(points[:, 2:], axis=0) if len(points) else np.array([[round(side)] * 2 + [0]])
    if len(sizes) != 1 or sizes[0][0] != sizes[0][1]:
        raise LayoutError(f"{path}: its tiles are of {len(sizes)} sizes or not square.")
    read, level = int(sizes[0][0]), int(sizes[0][2])
    info = known_info(facts, (int(width), int(height)), _resolution(attributes), str(path))
    geometry = make_geometry(
        int(size),
        side,
        step_level0=side * (size - overlap) / size,
        level=(level, side / read if level else 1.0),
        target=(None, _number(attributes.get("target_magnification"))),
        resolution=info.resolution,
    )
    return Frame(geometry=geometry, info=info, source=str(attributes.get("wsi_path", "")))


def _resolution(attributes: Mapping[str, Any]) -> Resolution:
    mpp = _number(attributes.get("mpp"))
    return Resolution(
        mpp_x=mpp,
        mpp_y=mpp,
        mpp_source="unknown" if mpp is None else "AtlasPatch",
        magnification=_number(attributes.get("level0_magnification")),
        magnification_source="AtlasPatch",
    )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
