"""TRIDENT: a folder a tiling, in it coordinates and a folder of features an encoder."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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
)
from microtome_layouts.common import Frame, extent_of, known_info, square
from microtome_layouts.hdf5 import need, some_coords
from microtome_layouts.pairs import coords_writer, features_writer, find_slides, read_slide

_TILING = re.compile(r"[\d.]+x_\d+px_\d+px_overlap")
_COORDS, _FEATURES = "_patches.h5", "features_"


class TridentLayout:
    """Reads and writes ``<mag>x_<size>px_<overlap>px_overlap/``.

    Attributes:
        any_level: Its files name no level: tiles may be read at any that is fine enough.
    """

    any_level = True

    def __init__(self, config: NoConfig) -> None:
        del config

    def files(self, slide: TiledSlide) -> Iterator[LayoutFile]:
        """Name a slide's files."""
        attributes = _attributes(slide)
        top, name = attributes["savetodir"], slide.slide_id

        yield LayoutFile(
            path=f"{top}/patches/{name}{_COORDS}", write=coords_writer(slide, attributes)
        )
        for encoder in slide.features:
            more = {"encoder": encoder, "name": name, "savetodir": top}
            yield LayoutFile(
                path=f"{top}/{_FEATURES}{encoder}/{name}.h5",
                write=features_writer(slide, encoder, attributes, more),
                features=(encoder,),
            )

    def recognises(self, folder: Path) -> bool:
        """Tell by some of its files whether a folder is of this layout."""
        tops = (folder, *(each for each in folder.iterdir() if _TILING.fullmatch(each.name)))
        return any(
            "target_magnification" in attributes
            for top in tops
            for _, attributes, _ in some_coords(top / "patches", f"*{_COORDS}")
        )

    def find(self, folder: Path) -> Mapping[str, FoundSlide]:
        """Find the slides of the one tiling in a folder, or that the folder is."""
        top = _tiling(folder)
        folders = sorted(each for each in top.glob(f"{_FEATURES}*") if each.is_dir())
        encoders = {each.name.removeprefix(_FEATURES): each for each in folders}
        return find_slides(top / "patches", _COORDS, encoders)

    def read(self, found: FoundSlide, facts: SlideFacts) -> TiledSlide:
        """Read a slide."""
        return read_slide(found, facts, _side, _frame)


def _attributes(slide: TiledSlide) -> dict[str, Any]:
    side = square(slide, "TRIDENT", at_level=False)
    geometry, info = slide.geometry, slide.info
    width, height = extent_of(slide, "TRIDENT")
    target = geometry.target_magnification
    if geometry.target_mpp is not None:
        target = round(10 / geometry.target_mpp, 4)
    if geometry.target_level is not None and info.resolution.magnification is not None:
        target = round(info.resolution.magnification * geometry.size / side, 4)
    if target is None:
        raise LayoutError(
            f"{slide.slide_id}: TRIDENT names folders by magnification, which is not known of it. "
            "Import or tile it with one."
        )
    overlap = geometry.size - geometry.step
    level0 = info.resolution.magnification or round(target * side / geometry.size, 4)
    return {
        "patch_size": geometry.size,
        "patch_size_level0": round(side),
        "level0_magnification": _nominal(level0),
        "target_magnification": _nominal(target),
        "overlap": overlap,
        "name": slide.slide_id,
        "savetodir": f"{target:g}x_{geometry.size}px_{overlap}px_overlap",
        "level0_width": width,
        "level0_height": height,
        NOTE: slide.note,
    }


def _tiling(folder: Path) -> Path:
    if (folder / "patches").is_dir():
        return folder
    found = sorted(each.name for each in folder.iterdir() if _TILING.fullmatch(each.name))
    if len(found) != 1:
        named = ", ".join(found) or "no <mag>x_<size>px_<overlap>px_overlap"
        raise LayoutError(f"{folder} holds {named}. Name the folder of one tiling.")
    return folder / found[0]


def _side(attributes: Mapping[str, Any], path: Path) -> float:
    if "patch_size_level0" in attributes:
        return need(attributes, "patch_size_level0", path)
    names = ("patch_size", "level0_magnification", "target_magnification")
    size, level0, target = (need(attributes, name, path) for name in names)
    return size * level0 / target


def _frame(
    attributes: Mapping[str, Any], points: NDArray[Any], facts: SlideFacts, path: Path
) -> Frame:
    del points
    side = _side(attributes, path)
    names = ("patch_size", "target_magnification", "overlap", "level0_magnification")
    size, target, overlap, level0 = (need(attributes, name, path) for name in names)
    extent = tuple(int(need(attributes, f"level0_{s}", path)) for s in ("width", "height"))
    resolution = Resolution(magnification=level0, magnification_source="TRIDENT")
    info = known_info(facts, (extent[0], extent[1]), resolution, str(path))
    geometry = make_geometry(
        int(size),
        side,
        step_level0=side * (size - overlap) / size,
        target=(None, target),
        resolution=info.resolution,
    )
    return Frame(geometry=geometry, info=info)


def _nominal(magnification: float) -> float:
    return int(magnification) if float(magnification).is_integer() else magnification
