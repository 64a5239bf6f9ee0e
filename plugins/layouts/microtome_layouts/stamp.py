"""STAMP: one HDF5 file a slide and encoder, coordinates in µm and features in float16."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from microtome.errors import LayoutError
from microtome.plugin import NoConfig
from microtome.slide.types import Resolution
from microtome.store.exchange import (
    NOTE,
    FoundSlide,
    LayoutFile,
    SlideFacts,
    TiledSlide,
    make_geometry,
    read_info,
    read_note,
)
from microtome_layouts.common import Frame, feature_note, known_info, mpp_of, read_frame, square
from microtome_layouts.hdf5 import (
    attributes_of,
    need,
    open_hdf5,
    points_of,
    read_features,
    some_coords,
    write_features,
    write_values,
)

VERSION = "2.5.0"
"""Of STAMP, whose layout this is; its readers refuse what a newer one wrote."""

_DIGEST = 8
_SLACK = 0.1
"""Pixels that µm may be off a whole pixel by rounding, squared up over a slide."""


class StampLayout:
    """Reads and writes ``<extractor>/<slide>.h5``.

    Attributes:
        any_level: Its files name no level: tiles may be read at any that is fine enough.
    """

    any_level = True

    def __init__(self, config: NoConfig) -> None:
        del config

    def files(self, slide: TiledSlide) -> Iterator[LayoutFile]:
        """Name a slide's files."""
        if not slide.features:
            raise LayoutError(
                f"{slide.slide_id} has no features, and STAMP's files hold coordinates with "
                "features only."
            )
        mpp_of(slide, "STAMP")
        square(slide, "STAMP", at_level=False)
        for encoder in slide.features:
            yield LayoutFile(
                path=f"{encoder}/{slide.slide_id}.h5",
                write=_writer(slide, encoder),
                features=(encoder,),
            )

    def recognises(self, folder: Path) -> bool:
        """Tell by some of its files whether a folder is of this layout."""
        return any("tile_size_um" in of_file for _, _, of_file in some_coords(folder, "*.h5"))

    def find(self, folder: Path) -> Mapping[str, FoundSlide]:
        """Find the slides in a folder of folders, one an extractor, or in one of these."""
        files: dict[str, dict[str, Path]] = {}
        noted: dict[str, Path] = {}
        for path in sorted(folder.rglob("*.h5")):
            if path.name.startswith("."):
                continue
            inside = path.relative_to(folder)
            top = folder if len(inside.parts) == 1 else folder / inside.parts[0]
            slide_id = path.relative_to(top).as_posix().removesuffix(".h5")
            attributes = _attributes(path)
            name = str(attributes.get("extractor", "")) or top.name
            others = files.setdefault(slide_id, {})
            if name in others:
                raise LayoutError(
                    f"{others[name]} and {path} are both features {name} of {slide_id}. Name the "
                    "folder of one of them."
                )
            others[name] = path
            if NOTE in attributes:
                noted.setdefault(slide_id, path)
        return {
            slide_id: FoundSlide(
                slide_id=slide_id,
                # Any would do, but only microtome's own say all of the geometry.
                coords=(noted.get(slide_id, next(iter(of.values()))),),
                features={name: (path,) for name, path in of.items()},
            )
            for slide_id, of in files.items()
        }

    def read(self, found: FoundSlide, facts: SlideFacts) -> TiledSlide:
        """Read a slide."""
        path = found.coords[0]
        points, _, attributes = points_of(path)
        resolution = _resolution(attributes, facts, path)
        side = need(attributes, "tile_size_um", path) / (resolution.mpp or 1)
        frame = read_frame(attributes.get(NOTE), side, facts, str(path))
        frame = frame or _frame(attributes, side, facts, path)
        pixels = _pixels(points, resolution, path)
        features = {}
        for name, (file,) in found.features.items():
            other = points_of(file)[0]
            if other.shape != points.shape or not np.allclose(other, points):
                raise LayoutError(f"{file} has other coordinates than {path}. Import them apart.")
            features[name] = read_features(file, "feats")
        return frame.slide(found.slide_id, pixels, features=features)


def _writer(slide: TiledSlide, encoder: str) -> Callable[[Path], None]:
    geometry, resolution = slide.geometry, slide.info.resolution
    mpp = np.array([resolution.mpp_x, resolution.mpp_y], np.float64)
    features = slide.features[encoder]

    def write(path: Path) -> None:
        with h5py.File(path, "x") as file:
            points = (slide.coords[:, :2] * mpp).astype(np.float32)
            write_values(file, "coords", points)
            made = write_features(file, "feats", features, dtype=np.float16)
            made.attrs[NOTE] = feature_note(features)
            file.attrs.update(
                {
                    "stamp_version": VERSION,
                    "extractor": encoder,
                    "unit": "um",
                    "tile_size_um": geometry.size_level0[0] * float(mpp.mean()),
                    "tile_size_px": geometry.size,
                    "code_hash": slide.identity[:_DIGEST],
                    "feat_type": "tile",
                    NOTE: slide.note,
                }
            )

    return write


def _attributes(path: Path) -> dict[str, Any]:
    try:
        with open_hdf5(path) as file:
            return attributes_of(file)
    except LayoutError:  # told when the slide is read, which then fails alone
        return {}


def _resolution(attributes: Mapping[str, Any], facts: SlideFacts, path: Path) -> Resolution:
    """Say how many µm a level-0 pixel has, which STAMP's own fields do not."""
    if attributes.get("unit", "um") != "um" or attributes.get("feat_type", "tile") != "tile":
        raise LayoutError(
            f"{path} holds {attributes.get('feat_type', 'tile')} features in "
            f"{attributes.get('unit', 'um')}, not features of tiles in µm."
        )
    note = read_note(attributes.get(NOTE))
    noted = read_info(note).resolution if note else None
    found = noted if noted is not None and noted.mpp is not None else facts.resolution
    if found is None or found.mpp is None:
        raise LayoutError(
            f"{path}: STAMP's coordinates are in µm, and pixels need µm per pixel. Give the slides "
            "with --slides FOLDER, or --mpp for all."
        )
    return found


def _pixels(points: NDArray[Any], resolution: Resolution, path: Path) -> NDArray[np.float64]:
    if not points.size:
        return np.empty((0, 2))
    pixels: NDArray[np.float64] = points[:, :2] / np.array([resolution.mpp_x, resolution.mpp_y])
    off = np.abs(pixels - np.rint(pixels)).max()
    if not off <= _SLACK + 2 * np.abs(pixels).max() * np.finfo(np.float32).eps:
        raise LayoutError(
            f"{path}: at {resolution.mpp:g} µm per pixel its tiles do not lie on whole pixels (one "
            f"is {off:.2f} px off). Its slide has another mpp."
        )
    return pixels


def _frame(attributes: Mapping[str, Any], side: float, facts: SlideFacts, path: Path) -> Frame:
    info = known_info(facts, (0, 0), None, str(path))
    size, micrometres = (need(attributes, f"tile_size_{unit}", path) for unit in ("px", "um"))
    geometry = make_geometry(
        int(size),
        side,
        step_level0=side,
        target=(micrometres / size, None),
        resolution=info.resolution,
    )
    return Frame(geometry=geometry, info=info)
