"""Probabilities of tiles as pictures of their slide: an overlay to look at, and a pyramid."""

from __future__ import annotations

import json
import math
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from microtome.errors import StoreError
from microtome.slide.imaging import render_view
from microtome.slide.opening import OpenedSlide
from microtome.slide.types import TileGeometry
from microtome.store.publish import write_bytes
from microtome_training.options.checks import check_heatmap
from microtome_training.options.predict import HeatmapConfig, HeatmapKind
from microtome_training.predicting.pyramid import Size, read_note, write_pyramid

_CHUNK, _PICTURE = "microtome", "microtome_picture"
"""Texts in a PNG: what it shows, and how large it is without the legend beside it."""

_FIXED = 1 << 30
"""Probabilities are summed as whole numbers of so many parts: no order of tiles shows."""

_BAND = 512
"""Rows of pixels that are worked on at a time: sums of a large picture would fill gigabytes."""

_LARGEST_GREY = 254
_OUTLINE = (20, 20, 20)
_PANEL, _DPI = 225, 150
_FOOT = 150
_ROUND = (1.0, 2.0, 5.0)


@dataclass(frozen=True, eq=False, kw_only=True)
class ProbabilityMap:
    """What a model says of the tiles of one slide.

    Attributes:
        slide_id: The slide's name.
        class_name: What the probabilities are of.
        coords: (n, 5) int32 ``x, y, read_w, read_h, level``.
        probability: (n,) float32, 0 to 1.
        geometry: Of the tiles.
        extent: (width, height) of the slide at level 0.
        positive: (n,) bool, tiles that people labelled so; None where nobody did.
    """

    slide_id: str
    class_name: str
    coords: NDArray[np.int32]
    probability: NDArray[np.float32]
    geometry: TileGeometry
    extent: tuple[int, int]
    positive: NDArray[np.bool_] | None = None


@dataclass(frozen=True, kw_only=True)
class HeatmapFiles:
    """Where a slide's pictures are; None for one that was not asked for.

    Attributes:
        png: The overlay on a thumbnail.
        tiff: The pyramid.
    """

    png: Path | None = None
    tiff: Path | None = None


def draw_heatmap(
    found: ProbabilityMap,
    slide: OpenedSlide,
    target: Path,
    *,
    options: HeatmapConfig | None = None,
    identity: str = "",
) -> HeatmapFiles:
    """Draw a slide's pictures, but for those that are there and show the same.

    Args:
        found: What is drawn.
        slide: The open slide.
        target: The files without their suffixes: ``.png`` and ``.tif`` are added.
        options: How it is drawn; the defaults if None.
        identity: What made the probabilities. Without one, pictures are drawn anew.

    Raises:
        ConfigError: If an option makes no sense.
        SlideReadError: If the slide's pixels cannot be decoded.
        StoreError: If a picture cannot be written.
    """
    options = options or HeatmapConfig()
    check_heatmap(options)
    png = target.with_name(f"{target.name}.png") if options.png else None
    wants_tiff = options.kind is not HeatmapKind.none
    tiff = target.with_name(f"{target.name}.tif") if wants_tiff else None
    shows = _shows(found, options, identity)
    if png is not None and not (identity and _png_note(png) == shows):
        write_bytes(png, _draw_png(found, slide, options, shows))
    if tiff is not None and not (identity and read_note(tiff) == shows):
        _draw_tiff(found, slide, options, shows=shows, path=tiff)
    return HeatmapFiles(png=png, tiff=tiff)


def read_overlay(path: Path) -> NDArray[np.uint8]:
    """Read a PNG that `draw_heatmap` drew, without the legend: (h, w, 3) uint8 RGB.

    Raises:
        StoreError: If it cannot be read.
    """
    try:
        with Image.open(path) as image:
            picture = np.asarray(image.convert("RGB"))
            width, height = json.loads(image.info.get(_PICTURE, json.dumps(image.size)))
    except (OSError, ValueError, TypeError) as error:
        raise StoreError(f"{path} cannot be read as a picture: {error}. Delete it.") from error
    return picture[:height, :width]


def rasterise(found: ProbabilityMap, size: Size) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Draw the probabilities of tiles on a picture of the whole slide.

    A pixel has the mean of the tiles that its centre is in.

    Args:
        found: The tiles.
        size: (width, height) of the picture.

    Returns:
        (h, w) float32 probability, 0 where there is no tile; (h, w) bool, where there is one.
    """
    width, height = size
    x0, x1, y0, y1 = _spans(found, size)
    weight = np.rint(found.probability.astype(np.float64) * _FIXED).astype(np.int64)
    values = np.zeros((height, width), np.float32)
    covered = np.zeros((height, width), np.bool_)
    for top in range(0, height, _BAND):
        bottom = min(top + _BAND, height)
        rows = (y0 < bottom) & (y1 > top) & (x0 < x1)
        inside = np.clip(y0[rows], top, bottom) - top, np.clip(y1[rows], top, bottom) - top
        box = (x0[rows], x1[rows], *inside)
        shape = (bottom - top, width)
        count = _sum_boxes(np.ones(int(rows.sum()), np.int64), box, shape)
        total = _sum_boxes(weight[rows], box, shape)
        covered[top:bottom] = count > 0
        values[top:bottom] = total / (np.maximum(count, 1) * float(_FIXED))
    return values, covered


def to_grey(values: NDArray[np.float32], covered: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Write probabilities as grey: 0 where there is no tile, else 1 to 255 for 0 to 1."""
    grey = np.rint(values * _LARGEST_GREY).astype(np.uint8) + np.uint8(1)
    return np.where(covered, grey, np.uint8(0)).astype(np.uint8)


def blend(
    image: NDArray[np.uint8],
    values: NDArray[np.float32],
    covered: NDArray[np.bool_],
    *,
    colours: str = "viridis",
    opacity: float = 0.5,
) -> NDArray[np.uint8]:
    """Lay colours on a picture, which is left as it is where there is no tile.

    Under colour the picture is grey, so that the hue is the probability's alone.

    Args:
        image: (h, w, 3) uint8 RGB.
        values: (h, w) float32 probability.
        covered: (h, w) bool, where there is a tile.
        colours: Name of the colour map.
        opacity: Of the colour, 0 to 1.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    table = np.rint(colormaps[colours](np.arange(256))[:, :3] * 255).astype(np.uint8)
    mixed = image.copy()
    for top in range(0, len(image), _BAND):
        rows = slice(top, top + _BAND)
        colour = table[np.rint(values[rows] * 255).astype(np.uint8)]
        grey = cv2.cvtColor(np.ascontiguousarray(image[rows]), cv2.COLOR_RGB2GRAY)
        under = np.repeat(grey[..., np.newaxis], 3, axis=2)
        blended = cv2.addWeighted(colour, opacity, under, 1 - opacity, 0)
        np.copyto(mixed[rows], blended, where=covered[rows][..., np.newaxis])
    return mixed


def _spans(found: ProbabilityMap, size: Size) -> tuple[NDArray[np.int64], ...]:
    """Give each tile's first and last-but-one pixels by their centres: x0, x1, y0, y1."""
    spans = []
    for axis in (0, 1):
        scale = size[axis] / found.extent[axis]
        low = found.coords[:, axis] * scale
        high = (found.coords[:, axis] + found.geometry.size_level0[axis]) * scale
        for edge in (low, high):
            first = np.ceil(np.round(edge - 0.5, 6)).astype(np.int64)
            spans.append(np.clip(first, 0, size[axis]))
    return tuple(spans)


def _sum_boxes(
    weight: NDArray[np.int64], box: tuple[NDArray[np.int64], ...], shape: tuple[int, int]
) -> NDArray[np.int64]:
    """Sum weights over boxes by what changes at their corners."""
    x0, x1, y0, y1 = box
    changes = np.zeros((shape[0] + 1, shape[1] + 1), np.int64)
    for rows, columns, sign in ((y0, x0, 1), (y0, x1, -1), (y1, x0, -1), (y1, x1, 1)):
        np.add.at(changes, (rows, columns), sign * weight)
    np.cumsum(changes, axis=0, out=changes)
    np.cumsum(changes, axis=1, out=changes)
    return changes[:-1, :-1]


def _shows(found: ProbabilityMap, options: HeatmapConfig, identity: str) -> dict[str, Any]:
    plain = {k: getattr(v, "value", v) for k, v in asdict(options).items()}
    return {
        "slide_id": found.slide_id,
        "class": found.class_name,
        "prediction": identity,
        "labels": None if found.positive is None else zlib.crc32(found.positive.tobytes()),
        "options": plain,
    }


def _draw_png(
    found: ProbabilityMap, slide: OpenedSlide, options: HeatmapConfig, shows: Mapping[str, Any]
) -> bytes:
    view = render_view(slide.ref, slide.reader, slide.info, mpp=None, max_px=options.thumbnail_px)
    height, width = view.image.shape[:2]
    values, covered = rasterise(found, (width, height))
    picture = blend(view.image, values, covered, colours=options.colours, opacity=options.opacity)
    if found.positive is not None:
        picture = _outline(picture, found)
    legend = _legend(found, height, options.colours, view.mpp)
    info = PngInfo()
    info.add_text(_CHUNK, json.dumps(shows))
    info.add_text(_PICTURE, json.dumps([width, height]))
    buffer = BytesIO()
    Image.fromarray(_beside(picture, legend)).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def _draw_tiff(
    found: ProbabilityMap,
    slide: OpenedSlide,
    options: HeatmapConfig,
    *,
    shows: Mapping[str, Any],
    path: Path,
) -> None:
    resolution = slide.info.resolution
    um = None
    if resolution.mpp_x is not None and resolution.mpp_y is not None:
        um = (slide.info.width * resolution.mpp_x, slide.info.height * resolution.mpp_y)
    is_overlay = options.kind is HeatmapKind.overlay
    if is_overlay:
        view = render_view(
            slide.ref, slide.reader, slide.info, mpp=options.mpp, max_px=options.max_px
        )
        size = (view.image.shape[1], view.image.shape[0])
    else:
        size = _size(slide, options)

    def draw(size: Size) -> NDArray[np.uint8]:
        values, covered = rasterise(found, size)
        if not is_overlay:
            return to_grey(values, covered)
        image = np.asarray(cv2.resize(view.image, size, interpolation=cv2.INTER_AREA), np.uint8)
        return blend(image, values, covered, colours=options.colours, opacity=options.opacity)

    write_pyramid(path, size, draw, extent_um=um, note=shows)


def _size(slide: OpenedSlide, options: HeatmapConfig) -> Size:
    """Give the size of a picture of a whole slide, never finer than level 0."""
    width, height = slide.info.width, slide.info.height
    mpp = slide.info.resolution.mpp
    wanted = options.mpp / mpp if mpp is not None else 1.0
    downsample = max(1.0, wanted, max(width, height) / options.max_px)
    return max(1, round(width / downsample)), max(1, round(height / downsample))


def _outline(picture: NDArray[np.uint8], found: ProbabilityMap) -> NDArray[np.uint8]:
    """Draw where tiles that people labelled end."""
    positive = found.positive
    if positive is None or not positive.any():
        return picture
    height, width = picture.shape[:2]
    labelled = replace(
        found, coords=found.coords[positive], probability=found.probability[positive]
    )
    _, inside = rasterise(labelled, (width, height))
    contours, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    drawn = picture.copy()
    cv2.drawContours(drawn, contours, -1, _OUTLINE, max(1, round(max(height, width) / 800)))
    return drawn


def _legend(
    found: ProbabilityMap, height: int, colours: str, mpp: float | None
) -> NDArray[np.uint8]:
    """Draw what the colours and outlines mean and, where it is known, how long a µm is."""
    pixels = max(height, 2 * _PANEL)
    figure = Figure(figsize=(_PANEL / _DPI, pixels / _DPI), dpi=_DPI)
    buffer = BytesIO()
    foot = _FOOT / pixels
    axes = figure.add_axes((0.15, foot, 0.15, 0.95 - foot))
    bar = figure.colorbar(ScalarMappable(cmap=colours), cax=axes)
    bar.set_ticks([0, 0.25, 0.5, 0.75, 1])
    bar.set_label(f"probability of {found.class_name}", parse_math=False)
    if found.positive is not None and found.positive.any():
        _bar(figure, y=0.55 * foot, width=0.15, text="labelled", thickness=2 / pixels)
    if mpp is not None:
        most = 0.6 * _PANEL * mpp
        unit = 10.0 ** math.floor(math.log10(most))
        length = max(step * unit for step in _ROUND if step * unit <= most)
        text = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
        share = length / mpp / _PANEL
        _bar(figure, y=0.2 * foot, width=share, text=text, thickness=5 / pixels)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # of a class's name
        figure.savefig(buffer, format="png", dpi=_DPI)
    return np.array(Image.open(buffer).convert("RGB"))


def _bar(figure: Figure, *, y: float, width: float, text: str, thickness: float) -> None:
    """Draw a line of a certain length, in shares of the figure, with a text above."""
    axes = figure.add_axes((0.15, y, width, thickness))
    axes.set(xticks=(), yticks=(), facecolor="black")
    figure.text(0.15, y + 2 * thickness + 0.005, text, fontsize=8)


def _beside(picture: NDArray[np.uint8], legend: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height = max(len(picture), len(legend))
    sheet = np.full((height, picture.shape[1] + legend.shape[1], 3), 255, np.uint8)
    sheet[: len(picture), : picture.shape[1]] = picture
    sheet[: len(legend), picture.shape[1] :] = legend
    return sheet


def _png_note(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        with Image.open(path) as image:
            note = json.loads(image.info[_CHUNK])
    except (OSError, KeyError, ValueError):
        return None
    return dict(note)
