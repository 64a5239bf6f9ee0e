"""What every layout needs: squareness, notes, and what is known of a slide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import LayoutError
from microtome.slide.types import Resolution, SlideInfo, TileGeometry
from microtome.store.exchange import (
    ENCODER,
    SlideFacts,
    TiledSlide,
    make_coords,
    make_info,
    read_geometry,
    read_info,
    read_note,
    write_note,
)
from microtome.store.publish import FeatureSet

_SAME_MPP = 0.05
"""By which tools differ on one slide's µm per pixel, as a share."""

_BY_USER = ("override", "mpp_csv", "manifest")


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Where a slide's tiles lie.

    Attributes:
        geometry: Of the tiles.
        info: Of the slide.
        source: Its file, where known.
    """

    geometry: TileGeometry
    info: SlideInfo
    source: str = ""

    def slide(
        self,
        slide_id: str,
        points: NDArray[Any],
        *,
        features: Mapping[str, FeatureSet],
        columns: Mapping[str, NDArray[Any]] = MappingProxyType({}),
    ) -> TiledSlide:
        """Put a slide together.

        Args:
            slide_id: Its name.
            points: (n, 2) or more, ``x, y`` at level 0.
            features: By name.
            columns: Beside the coordinates.
        """
        return TiledSlide(
            slide_id=slide_id,
            source=self.source,
            info=self.info,
            geometry=self.geometry,
            coords=make_coords(points, self.geometry),
            columns=columns,
            features=features,
        )


def read_frame(note: object, side: float, facts: SlideFacts, where: str) -> Frame | None:
    """Read where tiles lie out of a note of microtome's own.

    Args:
        note: What stands where a note would.
        side: Of a tile in level-0 pixels, as the tool's own fields say it.
        facts: What is known of the slide.
        where: For messages.

    Returns:
        None without a note, and where the file says otherwise by now.
    """
    attributes = read_note(note)
    if not attributes:
        return None
    geometry = read_geometry(attributes, where)
    if abs(geometry.size_level0[0] - side) > 1:
        return None
    info = read_info(attributes)
    same = check_size((info.width, info.height), facts, where)
    check_mpp(info.resolution, facts, where)
    return Frame(geometry=geometry, info=same or info, source=str(info.path))


def known_info(
    facts: SlideFacts, size: tuple[int, int], resolution: Resolution | None, where: str
) -> SlideInfo:
    """Describe the slide of a file by itself if it is at hand, else by what the file says.

    Args:
        facts: What is known of it.
        size: (width, height) of level 0 as the file says; 0 where it does not.
        resolution: As the file says, or None.
        where: For messages.
    """
    stated = resolution or Resolution()
    check_mpp(stated, facts, where)
    if stated.mpp is None and facts.mpp is not None:
        stated = replace(stated, mpp_x=facts.mpp, mpp_y=facts.mpp, mpp_source="override")
    return check_size(size, facts, where) or make_info(size, stated)


def effective_mpp(info: SlideInfo, geometry: TileGeometry) -> tuple[float, float] | None:
    """Give the µm per pixel that tiles have on a slide; None where that of the slide is unknown."""
    mpp, sides = (info.resolution.mpp_x, info.resolution.mpp_y), geometry.size_level0
    if mpp[0] is None or mpp[1] is None:
        return None
    return mpp[0] * sides[0] / geometry.size, mpp[1] * sides[1] / geometry.size


def check_mpp(stated: Resolution, facts: SlideFacts, where: str) -> None:
    """See that a file is of the slide that is at hand by its µm per pixel, unless the user said it.

    Raises:
        LayoutError: If it is not.
    """
    if facts.info is None or facts.info.resolution.mpp_source in _BY_USER:
        return
    mpp, told = facts.info.resolution.mpp, stated.mpp
    if mpp is not None and told is not None and abs(told / mpp - 1) > _SAME_MPP:
        raise LayoutError(
            f"{where} is of a slide of {told:.4g} µm per pixel; {facts.info.path} has {mpp:.4g}. "
            "If it is this slide all the same, give it the right mpp."
        )


def check_size(size: tuple[int, int], facts: SlideFacts, where: str) -> SlideInfo | None:
    """Give the slide that is at hand, after seeing that it is the file's.

    Raises:
        LayoutError: If it is not.
    """
    info = facts.info
    if info is None:
        return None
    # By a fractional downsample, a level's size gives level 0's to a pixel of that level.
    if all(size) and not np.allclose(size, (info.width, info.height), rtol=0.01, atol=2):
        raise LayoutError(
            f"{where} is of a slide of {size[0]} × {size[1]} px; {info.path} has {info.width} × "
            f"{info.height}."
        )
    return info


def square(slide: TiledSlide, tool: str, *, at_level: bool) -> float:
    """Give the side of a slide's tiles.

    Args:
        slide: The slide.
        tool: For messages.
        at_level: In pixels of the level that is read; of level 0 otherwise.

    Raises:
        LayoutError: If they are not square.
    """
    geometry = slide.geometry
    width, height = geometry.read_size if at_level else geometry.size_level0
    if round(width) != round(height):
        raise LayoutError(
            f"{slide.slide_id}: tiles of {width:g} × {height:g} px cannot be exported, {tool} "
            "knows square ones only."
        )
    return float(width)


def extent_of(slide: TiledSlide, tool: str) -> tuple[int, int]:
    """Give the (width, height) of a slide's level 0.

    Raises:
        LayoutError: If it is not known.
    """
    if not slide.info.width or not slide.info.height:
        raise LayoutError(
            f"{slide.slide_id} cannot be exported: {tool} needs the size of the slide, which is "
            "not known of it. Import it with --slides FOLDER."
        )
    return slide.info.width, slide.info.height


def mpp_of(slide: TiledSlide, tool: str) -> float:
    """Give a slide's µm per level-0 pixel.

    Raises:
        LayoutError: If it is not known.
    """
    mpp = slide.info.resolution.mpp
    if mpp is None:
        raise LayoutError(
            f"{slide.slide_id} cannot be exported: {tool} needs µm per pixel, which is not known "
            "of it. Run it with mpp=… first."
        )
    return mpp


def feature_note(features: FeatureSet) -> str:
    """Write what made features as a note."""
    return write_note(features.attributes, ENCODER)


def whole(features: FeatureSet) -> NDArray[np.floating[Any]]:
    """Read features whole, for formats that are written whole."""
    source = features.source
    if not source.shape[0]:
        return np.empty(source.shape, source.dtype)
    return np.concatenate(list(source.chunks(source.shape[0])))
