"""Synthetic H&E slides whose truth is known: where tissue, pen and nuclei are.

Light is absorbed as Beer and Lambert say, with the stain vectors of Ruifrok & Johnston (2001),
so that methods which separate stains find what was put in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import ConfigError

Floats = NDArray[np.float32]

MASK_DOWNSAMPLE = 8
"""Level-0 pixels per pixel of the truth masks."""

HAEMATOXYLIN: Floats = np.array([0.65, 0.70, 0.29], np.float32)
EOSIN: Floats = np.array([0.07, 0.99, 0.11], np.float32)
"""Optical density of red, green and blue for one unit of stain (Ruifrok & Johnston, 2001)."""

PEN: Floats = np.array([1.10, 0.75, 0.25], np.float32)
"""Optical density of a blue marker."""

GLASS: Floats = np.array([243.0, 242.0, 244.0], np.float32)
NUCLEUS_UM = 7.0
CELL_UM = 11.0
"""Mean diameter of a nucleus and mean distance of two, in µm: those of a lymphocyte-rich tissue."""


@dataclass(frozen=True, kw_only=True)
class SlideRecipe:
    """What a synthetic slide is to be.

    Attributes:
        size: (width, height) of level 0 in pixels.
        levels: Downsample of each level, finest first; need not be whole, but sizes are rounded.
        tile: Side of the file's native tiles: a multiple of 16. None writes strips, which
            OpenSlide refuses.
        mpp: µm per level-0 pixel: sets how large nuclei are, and is recorded unless
            ``record_mpp`` is off.
        record_mpp: Whether the file says its mpp.
        magnification: Objective power on record, or None for none.
        compression: ``"jpeg"``, ``"deflate"``, ``"lzw"`` or ``"none"``; all but the first are
            lossless.
        quality: Of the JPEG tiles, 1..100.
        aperio: Whether it is an Aperio SVS (thumbnail, label and macro included) or a generic
            pyramidal TIFF.
        alpha: Whether there is an alpha channel, transparent in the leftmost eighth. Not with
            JPEG, nor in an Aperio slide.
        tissue: The share of the slide that is tissue, 0..0.6.
        pen: Whether a blue pen mark runs down the glass beside the tissue.
        seed: Of everything random: equal recipes give equal pixels.
    """

    size: tuple[int, int] = (2048, 1536)
    levels: tuple[float, ...] = (1, 4)
    tile: int | None = 256
    mpp: float = 0.25
    record_mpp: bool = True
    magnification: float | None = 40
    compression: str = "jpeg"
    quality: int = 85
    aperio: bool = True
    alpha: bool = False
    tissue: float = 0.35
    pen: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.compression not in ("jpeg", "deflate", "lzw", "none"):
            raise ConfigError(
                f"A synthetic slide cannot be compressed by {self.compression!r}: "
                "choose jpeg, deflate, lzw or none."
            )
        if self.alpha and (self.aperio or self.compression == "jpeg"):
            raise ConfigError(
                "A synthetic slide with alpha needs aperio=False and a compression other than jpeg."
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class SyntheticSlide:
    """A synthetic slide and the truth about it.

    Attributes:
        path: The file.
        recipe: What it was made by.
        image: (h, w, 3 or 4) uint8, level 0 before compression.
        tissue: (h, w) bool at `MASK_DOWNSAMPLE`, True on tissue.
        pen: The same for the pen mark.
        nuclei: (n, 2) float64 ``x, y`` of the nuclei's centres at level 0.
    """

    path: Path
    recipe: SlideRecipe
    image: NDArray[np.uint8]
    tissue: NDArray[np.bool_]
    pen: NDArray[np.bool_]
    nuclei: NDArray[np.float64]

    @property
    def mpp(self) -> float:
        """µm per level-0 pixel."""
        return self.recipe.mpp


def make_slide(path: Path | str, **options: Any) -> SyntheticSlide:
    """Make a pyramidal slide; by default a JPEG Aperio SVS that OpenSlide recognises.

    Args:
        path: The file to write; its folder is made.
        **options: Fields of `SlideRecipe`: ``size``, ``levels``, ``tile``, ``mpp``,
            ``record_mpp``, ``magnification``, ``compression``, ``quality``, ``aperio``, ``alpha``,
            ``tissue``, ``pen`` and ``seed``.

    Returns:
        The slide and its truth.

    Raises:
        ConfigError: If the options contradict each other.
    """
    slide = _paint(Path(path), SlideRecipe(**options))
    slide.path.parent.mkdir(parents=True, exist_ok=True)
    _write(slide)
    return slide


def make_plain_image(path: Path | str, **options: Any) -> SyntheticSlide:
    """Make a plain image (PNG, JPEG, BMP, GIF, WebP: as its suffix says) of synthetic tissue.

    Args:
        path: The file to write.
        **options: Fields of `SlideRecipe`; those about the file's structure change nothing.

    Returns:
        The slide and its truth. No mpp is recorded.
    """
    from PIL import Image

    options = {"size": (512, 384), "pen": False, "aperio": False, "record_mpp": False, **options}
    slide = _paint(Path(path), SlideRecipe(**options))
    Image.fromarray(slide.image).save(slide.path)
    return slide


def _paint(path: Path, recipe: SlideRecipe) -> SyntheticSlide:
    rng = np.random.default_rng(recipe.seed)
    tissue = _tissue_outline(rng, recipe)
    pen = _pen_outline(recipe) if recipe.pen else np.zeros_like(tissue)
    cover = _enlarge(tissue, recipe.size)
    nuclei, haematoxylin = _nuclei(rng, recipe, cover)
    density = _stains(rng, recipe.size, cover, haematoxylin)
    if recipe.pen:
        density += _enlarge(pen, recipe.size)[..., None] * PEN
    image = _expose(rng, density)
    return SyntheticSlide(
        path=path,
        recipe=recipe,
        image=_with_alpha(image) if recipe.alpha else image,
        tissue=tissue,
        pen=pen,
        nuclei=nuclei,
    )


def _noise(rng: np.random.Generator, size: tuple[int, int], cells: float) -> Floats:
    """Give smooth noise of unit variance with about ``cells`` bumps across the width."""
    import cv2

    width, height = size
    columns = max(2, round(cells))
    rows = max(2, round(cells * height / width))
    grid = rng.standard_normal((rows, columns), dtype=np.float32)
    return np.asarray(cv2.resize(grid, size, interpolation=cv2.INTER_CUBIC), np.float32)


def _mask_size(size: tuple[int, int]) -> tuple[int, int]:
    return -(-size[0] // MASK_DOWNSAMPLE), -(-size[1] // MASK_DOWNSAMPLE)


def _enlarge(mask: NDArray[np.bool_], size: tuple[int, int]) -> Floats:
    """Give a truth mask at level 0, (h, w) 0..1, its borders a few pixels soft."""
    import cv2

    height, width = mask.shape
    full = cv2.resize(
        cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.8),
        (width * MASK_DOWNSAMPLE, height * MASK_DOWNSAMPLE),
        interpolation=cv2.INTER_LINEAR,
    )
    return np.asarray(full[: size[1], : size[0]], np.float32)


def _tissue_outline(rng: np.random.Generator, recipe: SlideRecipe) -> NDArray[np.bool_]:
    import cv2

    width, height = size = _mask_size(recipe.size)
    field = _noise(rng, size, 4) + 0.35 * _noise(rng, size, 12) + 0.08 * _noise(rng, size, 40)
    x = np.linspace(0, 1, width, dtype=np.float32)
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    # A margin of glass on every side, and room for the pen on the right.
    edge = np.minimum(np.minimum(x, 0.85 - x), np.minimum(y, 1 - y))
    field -= 40 * np.clip(0.12 - edge, 0, None)
    if not recipe.tissue:
        return np.zeros((height, width), bool)
    mask = field > np.quantile(field, 1 - min(recipe.tissue, 0.6))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    return np.asarray(cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, kernel), bool)


def _pen_outline(recipe: SlideRecipe) -> NDArray[np.bool_]:
    import cv2

    width, height = _mask_size(recipe.size)
    t = np.linspace(0, 1, 64)
    x = width * (0.92 + 0.02 * np.sin(7 * t))
    y = height * (0.12 + 0.72 * t)
    points = np.stack([x, y], axis=1).round().astype(np.int32)
    canvas = np.zeros((height, width), np.uint8)
    cv2.polylines(canvas, [points], isClosed=False, color=1, thickness=max(1, width // 64))
    return canvas.astype(bool)


def _nuclei(
    rng: np.random.Generator, recipe: SlideRecipe, cover: Floats
) -> tuple[NDArray[np.float64], Floats]:
    """Place nuclei on the tissue; give their centres and the haematoxylin that they hold."""
    import cv2

    width, height = recipe.size
    spacing = max(CELL_UM / recipe.mpp, 3.0)
    grid = np.mgrid[spacing / 2 : height : spacing, spacing / 2 : width : spacing]
    centres = grid[::-1].reshape(2, -1).T
    centres = centres + rng.uniform(-0.3, 0.3, centres.shape) * spacing
    centres = np.clip(centres, 0, (width - 1, height - 1))
    x, y = centres.astype(int).T
    crowding = 0.65 + 0.25 * _noise(rng, recipe.size, 10)[y, x]
    centres = centres[(cover[y, x] > 0.9) & (rng.random(len(centres)) < crowding)]

    canvas = np.zeros((height, width), np.uint8)
    radius = max(NUCLEUS_UM / 2 / recipe.mpp, 1.0)
    axes = radius * rng.uniform(0.75, 1.3, (len(centres), 2))
    shade = rng.integers(140, 256, len(centres))
    turn = rng.uniform(0, 180, len(centres))
    for centre, axis, angle, grey in zip(centres, axes, turn, shade, strict=True):
        ellipse = (tuple(16 * centre), tuple(16 * axis))
        middle, half = (tuple(round(v) for v in pair) for pair in ellipse)
        cv2.ellipse(canvas, middle, half, float(angle), 0, 360, int(grey), -1, cv2.LINE_AA, shift=4)
    soft = cv2.GaussianBlur(canvas, (0, 0), max(radius / 8, 0.5))
    return centres, soft.astype(np.float32) * np.float32(0.85 / 255)


def _stains(
    rng: np.random.Generator, size: tuple[int, int], cover: Floats, haematoxylin: Floats
) -> Floats:
    """Give the tissue's optical density, (h, w, 3)."""
    import cv2

    fibre = rng.standard_normal((size[1], size[0]), dtype=np.float32)
    fibre = np.asarray(cv2.GaussianBlur(fibre, (0, 0), sigmaX=12, sigmaY=2), np.float32)
    fibre /= max(float(fibre.std()), 1e-6)
    eosin = 0.24 + 0.05 * _noise(rng, size, 16) + 0.05 * fibre
    eosin = np.clip(eosin, 0.10, None) * cover
    blue = haematoxylin + 0.06 * cover
    density = blue[..., None] * HAEMATOXYLIN + eosin[..., None] * EOSIN
    return np.asarray(density, np.float32)


def _expose(rng: np.random.Generator, density: Floats) -> NDArray[np.uint8]:
    """Give what a camera sees of the light that passes, with a little noise."""
    height, width = density.shape[:2]
    light = GLASS + _noise(rng, (width, height), 3)[..., None]
    noise = rng.standard_normal((height, width, 1), dtype=np.float32)
    image = light * np.exp(np.float32(-np.log(10)) * density) + noise
    return np.asarray(np.clip(image, 0, 255).round(), np.uint8)


def _with_alpha(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    alpha = np.full(image.shape[:2], 255, np.uint8)
    alpha[:, : image.shape[1] // 8] = 0
    return np.dstack([image, alpha])


def _write(slide: SyntheticSlide) -> None:
    import tifffile

    recipe = slide.recipe
    with tifffile.TiffWriter(slide.path) as tiff:
        for level, image in enumerate(_pyramid(slide)):
            tiff.write(
                image,
                **_page(recipe),
                **_resolution(recipe, recipe.levels[level]),
                tile=(recipe.tile, recipe.tile) if recipe.tile else None,
                subfiletype=0 if level == 0 else 1,
                description=_description(recipe, image.shape) if recipe.aperio else "",
            )
            # Aperio's order, by which OpenSlide tells them apart: level 0, the thumbnail, the
            # other levels, label, macro.
            if level == 0 and recipe.aperio:
                _write_associated(tiff, recipe, "", _shrunk(slide.image, 512))
        if recipe.aperio:
            label = np.full((200, 200, 3), 235, np.uint8)
            _write_associated(tiff, recipe, "label", label, subfiletype=1)
            macro = _shrunk(slide.image, 640)
            _write_associated(tiff, recipe, "macro", macro, subfiletype=9)


def _pyramid(slide: SyntheticSlide) -> Iterator[NDArray[np.uint8]]:
    import cv2

    width, height = slide.recipe.size
    for downsample in slide.recipe.levels:
        if downsample == 1:
            yield slide.image
        else:
            size = (max(1, round(width / downsample)), max(1, round(height / downsample)))
            yield np.asarray(cv2.resize(slide.image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _shrunk(image: NDArray[np.uint8], longest: int) -> NDArray[np.uint8]:
    import cv2

    height, width = image.shape[:2]
    scale = min(1.0, longest / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _page(recipe: SlideRecipe) -> dict[str, Any]:
    """Give what tifffile needs to write a page as the recipe says."""
    page: dict[str, Any] = {"photometric": "rgb", "metadata": None, "software": "microtome"}
    if recipe.alpha:
        page["extrasamples"] = ["unassalpha"]
    if recipe.compression == "jpeg":
        # tifffile converts to YCbCr and tags the page so.
        page |= {"compression": "jpeg", "compressionargs": {"level": recipe.quality}}
        page["subsampling"] = (2, 2)
    elif recipe.compression != "none":
        page["compression"] = recipe.compression
    return page


def _resolution(recipe: SlideRecipe, downsample: float) -> dict[str, Any]:
    if not recipe.record_mpp:
        return {}
    per_cm = 1e4 / (recipe.mpp * downsample)
    return {"resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER"}


def _description(recipe: SlideRecipe, shape: tuple[int, ...]) -> str:
    width, height = recipe.size
    tile = recipe.tile or 0
    text = (
        f"Aperio Image Library v12.0.15 \r\n{width}x{height} [0,0 {width}x{height}] ({tile}x{tile})"
    )
    if shape[:2] != (height, width):
        text += f" -> {shape[1]}x{shape[0]}"
    fields = [f" JPEG/RGB Q={recipe.quality}"]
    if recipe.magnification is not None:
        fields.append(f"AppMag = {recipe.magnification:g}")
    if recipe.record_mpp:
        fields.append(f"MPP = {recipe.mpp:g}")
    return text + "|".join([*fields, "Title = synthetic"])


def _write_associated(
    tiff: Any, recipe: SlideRecipe, kind: str, image: NDArray[np.uint8], **tags: Any
) -> None:
    height, width = image.shape[:2]
    full = f"{recipe.size[0]}x{recipe.size[1]} -> {width}x{height} - "
    what = f"{kind} {width}x{height}" if kind else full
    description = f"Aperio Image Library v12.0.15 \r\n{what}"
    tiff.write(image, **_page(recipe), **tags, rowsperstrip=16, description=description)
