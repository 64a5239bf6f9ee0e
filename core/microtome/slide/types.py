"""The values that travel down the pipeline, each frozen.

The frame: points are ``(x, y)`` at level 0, the top left corner; sizes are ``(width, height)``
at the level they belong to; units are in the names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

RGB = tuple[int, int, int]
WHITE: RGB = (255, 255, 255)


@dataclass(frozen=True, kw_only=True)
class SlideRef:
    """A slide that a run was asked for, before it is opened.

    Attributes:
        path: The file that a reader opens: of a staged slide, its copy.
        slide_id: The name of its outputs.
        mpp: Level-0 µm per pixel given by the user, which wins over the file.
        mpp_source: How it was given: ``"override"``, ``"mpp_csv"`` or ``"manifest"``.
        mask_path: A tissue mask given by the user.
        annotation_path: A file of outlines given by the user.
        companions: The slide's other files, where one slide is many (DICOM, MRXS, VMS).
        extra: Other columns of the manifest, as text.
        source: What the slide is called in every record: the path or URL that it was found
            under; ``path`` unless given.
        version: Of a staged slide's source, which changes with its content.
    """

    path: Path
    slide_id: str
    mpp: float | None = None
    mpp_source: str = "override"
    mask_path: Path | None = None
    annotation_path: Path | None = None
    companions: tuple[Path, ...] = ()
    extra: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    version: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", self.source or str(self.path))

    @property
    def patient_id(self) -> str:
        """Whose slide it is, by the manifest's ``patient_id`` or ``case_id``; empty if unknown."""
        return self.extra.get("patient_id") or self.extra.get("case_id") or ""


@dataclass(frozen=True, kw_only=True)
class Level:
    """One level of a pyramid.

    Attributes:
        width: In pixels of this level.
        height: In pixels of this level.
        downsample: Level-0 pixels per pixel of this level: 1.0 at level 0.
        tile: (width, height) of the native tile or strip, where known.
    """

    width: int
    height: int
    downsample: float
    tile: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """How large a slide's level-0 pixels are, and who said so.

    Attributes:
        mpp_x: µm per level-0 pixel, or None where nothing says.
        mpp_y: The same downwards; differs from ``mpp_x`` only where the axes differ by over 1 %.
        mpp_source: ``"override"``, ``"mpp_csv"``, ``"manifest"``, a property's name, or
            ``"assumed from <property>"`` for 10 / objective power.
        assumed: Whether the mpp was guessed from the objective power.
        magnification: The nominal magnification, or None where nothing says.
        magnification_source: A property's name, or ``"mpp"`` for the mpp bucket.
    """

    mpp_x: float | None = None
    mpp_y: float | None = None
    mpp_source: str = "unknown"
    assumed: bool = False
    magnification: float | None = None
    magnification_source: str = "unknown"

    @property
    def mpp(self) -> float | None:
        """The mean of both axes, in µm per level-0 pixel."""
        if self.mpp_x is None or self.mpp_y is None:
            return None
        return (self.mpp_x + self.mpp_y) / 2


@dataclass(frozen=True, kw_only=True)
class SlideInfo:
    """What an open slide says of itself.

    A reader fills everything but ``resolution``, which the core resolves from ``properties``
    and the user's override. A reader whose format says it in another way may fill ``mpp`` and
    ``objective_power``; they win over ``properties``.

    Attributes:
        path: The file.
        reader: Name of the reader plugin.
        levels: Finest first; ``levels[0].downsample`` is 1.0.
        channels: 3 for RGB, 4 for RGBA: the last axis of the buffers that the reader fills.
        background: What transparent pixels become.
        vendor: As OpenSlide names it, where known.
        properties: Raw metadata under OpenSlide's names (``openslide.mpp-x``, ``aperio.MPP``,
            ``tiff.XResolution``, ``tiff.ResolutionUnit``, ``tiff.ImageDescription``, …).
        mpp: (x, y) µm per level-0 pixel where the reader knows better than ``properties``.
        objective_power: The same for the magnification.
        exact: Whether every reader of this file gives these pixels. Where not, the reader is part
            of every identity downstream.
        resolution: Resolved by the core.
    """

    path: Path
    reader: str
    levels: tuple[Level, ...]
    channels: int = 3
    background: RGB = WHITE
    vendor: str | None = None
    properties: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    mpp: tuple[float, float] | None = None
    objective_power: float | None = None
    exact: bool = True
    resolution: Resolution = field(default_factory=Resolution)

    @property
    def bounds(self) -> tuple[int, int, int, int] | None:
        """``x, y, width, height`` at level 0 of what was scanned, to which some viewers crop."""
        names = (f"openslide.bounds-{name}" for name in ("x", "y", "width", "height"))
        found = [self.properties.get(name, "") for name in names]
        if not all(value.isdecimal() for value in found):
            return None
        x, y, width, height = map(int, found)
        return x, y, width, height

    @property
    def width(self) -> int:
        """Level-0 width in pixels."""
        return self.levels[0].width

    @property
    def height(self) -> int:
        """Level-0 height in pixels."""
        return self.levels[0].height


@dataclass(frozen=True, kw_only=True, eq=False)
class SlideView:
    """A small picture of a whole slide, for a segmenter or an overlay.

    Attributes:
        slide: Which slide.
        info: Of the open slide, resolution resolved.
        image: (h, w, 3) uint8 RGB, transparent pixels composited; (0, 0, 3) for a segmenter
            that asks for no image.
        covered: (h, w) bool, False where the slide holds no data (transparent); None where it
            is all data.
        downsample: (x, y) level-0 pixels per image pixel.
        mpp: µm per image pixel, or None where the slide's mpp is unknown.
    """

    slide: SlideRef
    info: SlideInfo
    image: NDArray[np.uint8]
    covered: NDArray[np.bool_] | None
    downsample: tuple[float, float]
    mpp: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class TissueMask:
    """Where there is tissue.

    Attributes:
        array: (h, w) bool, True on tissue. Its top left corner is the slide's.
        downsample: (x, y) level-0 pixels per mask pixel.
    """

    array: NDArray[np.bool_]
    downsample: tuple[float, float]

    @property
    def fraction(self) -> float:
        """The share of the mask that is tissue, 0..1."""
        return float(self.array.mean()) if self.array.size else 0.0


@dataclass(frozen=True, kw_only=True)
class TileGeometry:
    """The size of every tile of a grid, in each frame.

    Attributes:
        size: Side in pixels that an encoder is given.
        step: Stride in pixels at the target resolution; equal to ``size`` without overlap.
        level: Index of the level that is read.
        level_downsample: Of that level.
        read_size: (width, height) in pixels of that level; resampled to ``size`` if it differs.
        pitch: (x, y) stride in pixels of that level.
        size_level0: (width, height) in level-0 pixels, exact.
        pitch_level0: (x, y) stride in level-0 pixels, exact.
        target_mpp: Asked for, µm per pixel of the tile, or None for a nominal target.
        target_magnification: Asked for, or None for a physical target.
        effective_mpp: (x, y) that the tile really has, or None where the slide's is unknown.
        edge: ``"drop"`` or ``"pad"``.
        resample: Name of the recipe that makes ``size`` out of ``read_size``.
        target_level: The level that was asked for, of whose pixels tiles are; None for a nominal
            or physical target.
    """

    size: int
    step: int
    level: int
    level_downsample: float
    read_size: tuple[int, int]
    pitch: tuple[int, int]
    size_level0: tuple[float, float]
    pitch_level0: tuple[float, float]
    target_mpp: float | None
    target_magnification: float | None
    effective_mpp: tuple[float, float] | None
    edge: str = "drop"
    resample: str = "pil-bilinear"
    target_level: int | None = None

    @property
    def resampled(self) -> bool:
        """Whether a tile is resampled after reading."""
        return self.read_size != (self.size, self.size)


@dataclass(frozen=True, kw_only=True, eq=False)
class TileGrid:
    """Where the tiles of a slide are. Holds no pixel.

    Attributes:
        coords: (n, 5) int32 ``x, y, read_w, read_h, level``, sorted by (y, x), no duplicate.
        geometry: The size of every tile.
        columns: Per-tile values beside the coordinates, (n,) each: ``tissue_fraction`` float32
            for one, and ``region`` int32 where tiles come in whole regions.
        region_tiles: Tiles along the side of a region, where they do.
        attributes: What is stored of the slide with them: ``classes``, which the column ``label``
            counts.
    """

    coords: NDArray[np.int32]
    geometry: TileGeometry
    columns: Mapping[str, NDArray[np.generic]] = field(default_factory=lambda: MappingProxyType({}))
    region_tiles: int | None = None
    attributes: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def __len__(self) -> int:
        """Count the tiles."""
        return int(self.coords.shape[0])
