"""What of a bright-field image is glass, and what is neither glass nor tissue.

Everything downstream looks at the transmittance: the image divided by a smooth estimate of the
glass, channel by channel, so grey, tinted and unevenly lit glass all become 1.
"""

from __future__ import annotations

from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from microtome.errors import TissueError
from microtome_segmenters import morphology

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
Level = TypeVar("Level", np.uint8, np.float32)

_SMALL = 384
"""Longest side in pixels at which the glass is estimated: it varies slowly."""

_DARK = 0.16
"""Share of full white below which nothing transmitted any light: a holder, a frame, no slide."""


def refuse_fluorescence(image: Image, covered: Mask | None) -> None:
    """Refuse an image that no transmitted light made.

    In bright field the brightest large part of an image is glass: neutral, and far brighter
    than a holder's black. In fluorescence most of it is black and the rest one colour, or grey
    that tails off from black.

    Raises:
        TissueError: If the image is mostly black and what is left is not lit like a slide.
    """
    top, low = _extremes(image)
    if covered is not None:
        top, low = top[covered], low[covered]
    if not top.size:
        return
    lit = top >= _DARK * 255
    if lit.mean() > 0.6:
        return
    if lit.mean() > 0.002:
        values = top[lit].astype(np.float32)
        neutral = (low[lit] > 0.45 * values) & (values > 0.5 * np.percentile(values, 99.5))
        if neutral.mean() > 0.15:
            return
    raise TissueError(
        f"{1 - lit.mean():.0%} of the slide is black and the rest is not lit as bright field is: "
        "this looks like fluorescence, which this segmenter cannot judge. "
        "Use segmenter=none, or segmenter=file with a mask."
    )


def find_frame(image: Image, covered: Mask | None) -> Mask:
    """Mark what belongs to no slide: holder borders, frames, transparent parts.

    Args:
        image: (h, w, 3) uint8 RGB.
        covered: (h, w) False where the slide holds no data, or None.

    Returns:
        (h, w) True on dark neutral areas that touch the image's border and are wide.
    """
    height, width = image.shape[:2]
    top, low = _extremes(image)
    spread = top - low
    dark = (top < 90) & (spread < 32)
    dark = morphology.opened(dark, 1)
    _, labels = cv2.connectedComponents(dark.astype(np.uint8), connectivity=4)
    edge = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    counts = np.bincount(edge)
    counts[0] = 0
    frames = np.flatnonzero(counts > 0.03 * min(height, width))
    frame = np.isin(labels, frames)
    if covered is not None:
        frame |= ~covered
    return frame


def estimate_glass(image: Image, excluded: Mask) -> Floats:
    """Estimate what the slide would look like without anything on it.

    Args:
        image: (h, w, 3) uint8 RGB.
        excluded: (h, w) True where to look away: frames, and tissue once it is known.

    Returns:
        (h, w, 3) float32 in 0..255, smooth.
    """
    height, width = image.shape[:2]
    scale = min(1.0, _SMALL / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    usable = cv2.resize(excluded.astype(np.uint8), size, interpolation=cv2.INTER_AREA) == 0
    calm = usable & _smooth(_mean(small))
    colour = _glass_colour(small, usable, calm)
    surface = _glass_surface(small, calm, colour)
    glass = cv2.resize(surface, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(glass, np.float32)


def _glass_colour(small: Floats, usable: Mask, calm: Mask) -> Floats:
    """Find the brightest common neutral colour, blank filler apart."""
    level = _mean(small)
    top, low = _extremes(small)
    plain = calm & ((top - low) / np.maximum(top, 1) < 0.2)
    chosen = plain & (low < 254.5)
    if chosen.sum() < max(16, 0.01 * usable.sum()):
        chosen = plain
    if chosen.sum() < max(4, 0.005 * usable.sum()):
        return _brightest(small, usable)
    counts = np.bincount(level[chosen].astype(int), minlength=256).astype(np.float32)
    counts = cv2.GaussianBlur(counts[None], (0, 0), 2.5)[0]
    # The brightest mode, not the highest: shadows and smears are darker than clean glass.
    last = int(np.flatnonzero(counts >= 0.08 * counts.max())[-1])
    mode = max(0, last - 8) + int(counts[max(0, last - 8) : last + 1].argmax())
    near = chosen & (np.abs(level - mode) <= 8)
    if mode < 90 or not near.any():
        return _brightest(small, usable)
    colour: Floats = np.median(small[near], axis=0).astype(np.float32)
    return colour


def _brightest(small: Floats, usable: Mask) -> Floats:
    """Guess a glass that is nowhere to be seen: as bright as the brightest, and neutral."""
    pixels = small[usable] if usable.any() else small.reshape(-1, 3)
    level = float(np.percentile(pixels.max(1), 99.5))
    return np.full(3, max(level, 200.0), np.float32)


def _glass_surface(small: Floats, calm: Mask, colour: Floats) -> Floats:
    """Follow the glass over the image, where it can be seen, within 20 % of its colour."""
    ratio = small / colour
    level = _mean(ratio)
    top, low = _extremes(ratio)
    glass = calm & (top - low < 0.04) & (level > 0.75) & (level < 1.12)
    seen = np.dstack([small * glass[..., None], glass]).astype(np.float32)
    size = (max(1, seen.shape[1] // 4), max(1, seen.shape[0] // 4))
    # At a quarter of the size: the blur is wide, and would be slow.
    reduced = cv2.resize(seen, size, interpolation=cv2.INTER_AREA)
    spread = cv2.GaussianBlur(reduced, (0, 0), max(size) / 14)
    prior = 0.02
    surface = (spread[..., :3] + prior * colour) / (spread[..., 3:] + prior)
    bounded: Floats = np.clip(surface, 0.8 * colour, 1.12 * colour)
    return bounded


def _extremes(pixels: NDArray[Level]) -> tuple[NDArray[Level], NDArray[Level]]:
    """Give the largest and the least channel; far faster than reducing the last axis."""
    red, green, blue = cv2.split(pixels)
    top, low = cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)
    return np.asarray(top, pixels.dtype), np.asarray(low, pixels.dtype)


def _mean(pixels: Floats) -> Floats:
    """Give the mean of the channels, by their planes for the same reason."""
    red, green, blue = cv2.split(pixels)
    return np.asarray((red + green + blue) / np.float32(3), np.float32)


def _smooth(level: Floats) -> Mask:
    """Mark where neighbours differ little."""
    spread = cv2.morphologyEx(level, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    calm: Mask = spread <= max(6.0, 2.0 * float(np.percentile(spread, 25)))
    return calm
