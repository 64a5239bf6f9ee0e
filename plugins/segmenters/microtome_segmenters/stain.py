"""How much each pixel looks stained rather than shaded.

Shade, dust, glass edges, borders and black ink take away all colours alike; stain takes some
more than others. The evidence is therefore the spread of the transmittance over the channels,
weighted by hue and by how much of the darkness is colour. It needs no stain matrix and is blind
to grey, which is what most artefacts are.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from microtome_segmenters import morphology
from microtome_segmenters.glass import Floats, Image, Mask

GLASS = 0.94
"""Transmittance above which a pixel is surely glass: where noise is measured."""

_YELLOW = 0.3
_CYAN = 0.4
"""Weights of hues that no stain of tissue has alone; dust, glue and old glass are yellowish."""

_GLUE, _BROWN = 0.2, 0.5
"""Red over green as a share of chroma: old glue lies at 0.15 to 0.35, DAB and pigments at 0.6."""

_TINTED, _STAINED = 0.11, 0.19
"""Colour as a share of darkness: below the first, a tinted shadow; above the second, stain.
Hematoxylin, the greyest of the stains, lies at 0.25 and above, ink and shadows below 0.15."""

_FAINT, _CLEAR = 0.06, 0.12
"""Evidence from which texture matters less, and not at all."""

_INK_TEXTURE = 0.005
"""Texture over darkness of a wash of ink; the smoothest tissue seen has 0.009."""

_LEAST_NOISE = 0.0015
"""Texture of glass in a noiseless picture, as transmittance: under half a grey level."""


@dataclass(frozen=True, eq=False)
class Stain:
    """An image seen through its glass; every array is (h, w) float32.

    Attributes:
        red: Transmittance, 1 on glass.
        green: The same.
        blue: The same.
        top: The largest of the three.
        low: The least of them.
        chroma: The spread over them.
    """

    red: Floats
    green: Floats
    blue: Floats
    top: Floats
    low: Floats
    chroma: Floats


def see_through(image: Image, glass: Floats) -> Stain:
    """Divide an image by its glass.

    Args:
        image: (h, w, 3) uint8 RGB.
        glass: (h, w, 3) float32 in 0..255.
    """
    red, green, blue = (
        np.minimum(plane / lamp, np.float32(1.03))
        for plane, lamp in zip(cv2.split(image), cv2.split(glass), strict=True)
    )
    top = np.asarray(cv2.max(cv2.max(red, green), blue), np.float32)
    low = np.asarray(cv2.min(cv2.min(red, green), blue), np.float32)
    return Stain(red, green, blue, top, low, top - low)


def weigh(stain: Stain) -> Floats:
    """Give the evidence for stain: about 0 on glass and grey things, 0.1 to 0.5 on tissue."""
    red, green, blue = stain.red, stain.green, stain.blue
    chroma = stain.chroma
    safe = chroma + 1e-4
    warm = (red - green) / safe
    yellow = np.clip(_YELLOW + (1 - _YELLOW) * warm / 0.9, _YELLOW / 2, 1)
    yellow *= np.clip((warm - _GLUE) / (_BROWN - _GLUE), 0.1, 1)
    cyan = np.clip(_CYAN + (1 - _CYAN) * (blue - green) / (0.5 * safe), _CYAN / 2, 1)
    hue = np.where((blue < green) & (blue < red), yellow, np.float32(1))
    hue = np.where((red < green) & (red <= blue), cyan, hue)
    colour = chroma / (1.05 - stain.low)
    purity = np.clip((colour - _TINTED) / (_STAINED - _TINTED), 0, 1)
    evidence: Floats = (chroma * hue * purity).astype(np.float32)
    return evidence


def doubt_flat(evidence: Floats, image: Image, stain: Stain, calm: Mask) -> Floats:
    """Lower faint evidence where there is no texture: stains of the glass, smears, reflections.

    Args:
        evidence: From `weigh`.
        image: The image before any smoothing.
        stain: Of the smoothed image.
        calm: (h, w) True where glass may be measured.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    detail = cv2.absdiff(grey, cv2.GaussianBlur(grey, (0, 0), 2))
    texture = np.asarray(cv2.GaussianBlur(detail, (0, 0), 2.5), np.float32)
    glass = texture[calm & (stain.low > GLASS) & (stain.chroma < 0.04)][::7]
    noise = max(float(np.median(glass)), _LEAST_NOISE) if glass.size > 20 else 0.004
    lively = np.clip(texture / noise - 1.2, 0, 1.2) / 1.2
    clear = np.clip((evidence - _FAINT) / (_CLEAR - _FAINT), 0, 1)
    doubted: Floats = (evidence * np.maximum(0.3 + 0.7 * lively, clear)).astype(np.float32)
    # Ink out of focus is deep and has no texture at all; tissue, however blurred, has some.
    ink = (texture < _INK_TEXTURE * (1.05 - stain.low)) & (stain.chroma > 0.08)
    doubted[morphology.drop_regions(ink, 0.01 * ink.size)] = 0
    return doubted


def dark_fringe(stain: Stain, reach: int) -> Mask:
    """Mark greyish pixels around black things: ink and borders blur and break into colours."""
    core = (stain.top < 0.35) & (stain.chroma < 0.12)
    core = morphology.drop_regions(morphology.opened(core, 1), 1e-4 * core.size)
    if not core.any():
        return core
    near = morphology.dilate(core, reach)
    return near & (stain.chroma < 0.3 * (1 - stain.low))


def optical_density(plane: Floats) -> NDArray[np.float32]:
    """Give -ln of a transmittance, at most 3.9."""
    return -np.log(np.maximum(plane, 0.02))
