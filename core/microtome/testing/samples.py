"""Small values for tests of segmenters and tilers: views, slide descriptions and masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from microtome.slide.types import Level, Resolution, SlideInfo, SlideRef, SlideView, TissueMask
from microtome.testing.synthetic import SyntheticSlide


def make_info(
    *,
    size: tuple[int, int] = (20000, 15000),
    levels: tuple[float, ...] = (1, 4, 16),
    mpp: float | None = 0.25,
    magnification: float | None = 40,
) -> SlideInfo:
    """Describe a slide that does not exist.

    Args:
        size: (width, height) of level 0 in pixels.
        levels: Downsamples, finest first.
        mpp: µm per level-0 pixel.
        magnification: Nominal.
    """
    width, height = size
    return SlideInfo(
        path=Path("sample.svs"),
        reader="sample",
        levels=tuple(
            Level(width=round(width / d), height=round(height / d), downsample=float(d))
            for d in levels
        ),
        resolution=Resolution(
            mpp_x=mpp,
            mpp_y=mpp,
            mpp_source="sample",
            magnification=magnification,
            magnification_source="sample",
        ),
    )


def make_mask(info: SlideInfo, *, downsample: float = 64, seed: int | None = 0) -> TissueMask:
    """Make a mask with ragged regions and holes.

    Args:
        info: The slide that it is for.
        downsample: Level-0 pixels per mask pixel.
        seed: Of the regions; None for a mask without tissue.
    """
    import cv2

    width = max(1, round(info.width / downsample))
    height = max(1, round(info.height / downsample))
    array = np.zeros((height, width), bool)
    if seed is not None:
        grid = np.random.default_rng(seed).standard_normal((7, 9)).astype(np.float32)
        array |= cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) > 0.3
    return TissueMask(array=array, downsample=(info.width / width, info.height / height))


def make_view(
    slide: SyntheticSlide,
    *,
    mpp: float | None = 8.0,
    max_px: int = 4096,
    ref: SlideRef | None = None,
) -> SlideView:
    """Make the small picture of a synthetic slide that a segmenter is given.

    Args:
        slide: The slide.
        mpp: Resolution of the picture in µm per pixel; None for a slide without mpp, in a
            picture of up to ``max_px``.
        max_px: The picture's longest side; 0 for a segmenter that looks at none.
        ref: The slide as a run knows it, with its mask's path for one.
    """
    import cv2

    width, height = slide.recipe.size
    info = make_info(
        size=slide.recipe.size,
        levels=slide.recipe.levels,
        mpp=None if mpp is None else slide.mpp,
        magnification=slide.recipe.magnification,
    )
    shrink = max(1.0, max(width, height) / max_px) if max_px else 1.0
    if mpp is not None:
        shrink = max(shrink, mpp / slide.mpp)
    size = (max(1, round(width / shrink)), max(1, round(height / shrink)))
    image = cv2.resize(slide.image[..., :3], size, interpolation=cv2.INTER_AREA)
    return SlideView(
        slide=ref or SlideRef(path=slide.path, slide_id=slide.path.stem),
        info=info,
        image=np.asarray(image, np.uint8) if max_px else np.empty((0, 0, 3), np.uint8),
        covered=None,
        downsample=(width / size[0], height / size[1]),
        mpp=None if mpp is None else slide.mpp * width / size[0],
    )


def sample_mask(mask: TissueMask, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Give a slide's mask at another size, by its nearest pixels.

    Args:
        mask: The mask.
        shape: (h, w) of a picture of the same slide.
    """
    height, width = mask.array.shape
    rows = ((np.arange(shape[0]) + 0.5) * height / shape[0]).astype(int)
    columns = ((np.arange(shape[1]) + 0.5) * width / shape[1]).astype(int)
    return mask.array[np.ix_(rows, columns)]
