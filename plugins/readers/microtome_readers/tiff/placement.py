"""Where a box lies in its level, and pixels between pixels.

A position at level 0 falls between two pixels of a level whose downsample is not whole.
OpenSlide interpolates there (bilinear, measured equal within 2 grey levels), so a reader that
wants to give the same pixels must do the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from microtome.slide.types import Level

# OpenSlide draws with cairo, whose 24.8 fixed-point translations drop anything finer.
_FINEST = 1 / 512

Box = tuple[int, int, int, int]
"""``x, y, width, height``."""

Region = Callable[[Box], NDArray[np.uint8]]
"""Reads a box of one level, in its pixels and inside of it."""


@dataclass(frozen=True)
class Placement:
    """A box in pixels of its level.

    Attributes:
        x: Of the first pixel, rounded down.
        y: The same downwards.
        width: In pixels.
        height: In pixels.
        right: What is left of x, 0..1: how far the box lies towards the next pixel.
        down: The same of y.
    """

    x: int
    y: int
    width: int
    height: int
    right: float = 0.0
    down: float = 0.0

    @property
    def is_whole(self) -> bool:
        """Whether it lies on whole pixels."""
        return not (self.right or self.down)


def place(box: Box, downsample: float) -> Placement:
    """Place a box, whose x and y are at level 0, in its level."""
    x, right = _split(box[0] / downsample)
    y, down = _split(box[1] / downsample)
    return Placement(x, y, box[2], box[3], right, down)


def whole_boxes(boxes: NDArray[np.int64], downsample: float) -> NDArray[np.int64] | None:
    """Place boxes that all lie on whole pixels of their level.

    Args:
        boxes: (n, 4) ``x, y, width, height``: x and y at level 0, sizes at the level.
        downsample: Of the level.

    Returns:
        The same with x and y at the level, or None where any lies between pixels.
    """
    position = boxes[:, :2] / downsample
    nearest = np.rint(position)
    if (np.abs(position - nearest) >= _FINEST).any():
        return None
    return np.concatenate([nearest.astype(np.int64), boxes[:, 2:]], axis=1)


def reach(placement: Placement, level: Level) -> Box:
    """Give the whole pixels that a box needs: one more to the right and below between pixels.

    Args:
        placement: The box.
        level: Its level, which the pixels are inside of.
    """
    p = placement
    width, height = p.width + (p.right > 0), p.height + (p.down > 0)
    return p.x, p.y, min(width, level.width - p.x), min(height, level.height - p.y)


def settle(pixels: NDArray[np.uint8], placement: Placement) -> NDArray[np.uint8]:
    """Make a box out of the pixels that it reaches, interpolated where it lies between them.

    The level's last column and row are repeated where interpolation asks for one more.

    Args:
        pixels: (h, w, channels) uint8, of `reach`.
        placement: The box.

    Returns:
        (height, width, channels) uint8.
    """
    p = placement
    if p.is_whole:
        return pixels
    short = (p.height + (p.down > 0) - pixels.shape[0], p.width + (p.right > 0) - pixels.shape[1])
    if any(short):
        pixels = np.pad(pixels, ((0, short[0]), (0, short[1]), (0, 0)), mode="edge")
    return interpolate(pixels, right=p.right, down=p.down)


def read_placed(region: Region, placement: Placement, level: Level) -> NDArray[np.uint8]:
    """Read a box and interpolate it where it lies between pixels.

    Args:
        region: Reads whole pixels of the level.
        placement: The box.
        level: Its level.

    Returns:
        (height, width, channels) uint8.
    """
    return settle(region(reach(placement, level)), placement)


def interpolate(pixels: NDArray[np.uint8], *, right: float, down: float) -> NDArray[np.uint8]:
    """Shift an image by a fraction of a pixel, bilinearly.

    Args:
        pixels: (h, w, 3 or 4) uint8; one column more than wanted if ``right`` is not 0, one row
            more if ``down`` is not 0.
        right: 0..1, towards the right-hand neighbour.
        down: 0..1, towards the neighbour below.

    Returns:
        (h, w, channels) uint8, without the extra column and row.
    """
    transparent = pixels.shape[2] == 4 and bool((pixels[..., 3] != 255).any())
    values = pixels.astype(np.float32)
    if transparent:
        values[..., :3] *= values[..., 3:] / 255
    if right:
        values = _blend(values[:, :-1], values[:, 1:], share=right)
    if down:
        values = _blend(values[:-1], values[1:], share=down)
    if transparent:
        values[..., :3] *= 255 / np.maximum(values[..., 3:], 1e-3)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _blend(
    near: NDArray[np.float32], far: NDArray[np.float32], *, share: float
) -> NDArray[np.float32]:
    import cv2

    return np.asarray(cv2.addWeighted(near, 1 - share, far, share, 0), np.float32)


def _split(position: float) -> tuple[int, float]:
    nearest = round(position)
    if abs(position - nearest) < _FINEST:
        return nearest, 0.0
    return math.floor(position), position - math.floor(position)
