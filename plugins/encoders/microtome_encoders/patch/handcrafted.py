"""The embedded default: statistics of stain, colour, texture and nuclei, in numpy and OpenCV.

Every sum over pixels is taken in integers, or by OpenCV in float64 on integers far below 2⁵³, so
it is exact and the order of summation cannot matter: a tile's row is bit-equal in any batch, on
any engine and at any number of threads. Floating point begins with the few dozen sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from microtome.errors import EncoderError
from microtome.plugin.protocols import EncoderOutput
from microtome.plugin.specs import EncoderCard
from microtome.slide.batch import TileBatch
from microtome_encoders.patch.columns import (
    COLUMNS,
    GLCM_DISTANCES,
    HANDCRAFTED_CARD,
    LBP_BINS,
    OCTAVES,
    Column,
)

Plane = NDArray[np.uint8]
Histogram = NDArray[np.int64]

MIN_SIDE = 16
"""Of a tile in pixels: two blocks of the coarsest octave."""

HAEMATOXYLIN = (0.65, 0.70, 0.29)
"""Optical density of haematoxylin in red, green and blue (Ruifrok & Johnston 2001)."""
EOSIN = (0.07, 0.99, 0.11)
"""Optical density of eosin in red, green and blue (Ruifrok & Johnston 2001)."""

OD_STEP = 100
"""Steps of a stain plane per unit of optical density: 255 is 2.55, above what 8 bits can hold."""
STAIN_ZEROS = (0, 0, 128)
"""The level of each stain plane that stands for none: the residual is signed."""
_GUARD_BITS = 4  # Of the sum of three rounded terms.

TISSUE_OD = 0.15
"""Density from which a pixel is tissue (Macenko et al. 2009, beta)."""
MIN_NUCLEUS_OD = 0.25
"""Otsu's threshold is never below it, so that eosin alone and blank tiles have no nuclei."""
MIN_NUCLEUS_AREA = 12
"""Of a blob in pixels: a lymphocyte (6 µm) at 10x has about 28."""


class HandcraftedEncoder:
    """Statistics of stain, colour, texture and nuclei of each tile, see `COLUMNS`.

    Runs on the CPU in exact arithmetic, whatever device and precision are asked for.

    Args:
        config: Nothing to configure.
    """

    columns: tuple[Column, ...] = COLUMNS

    def __init__(self, config: object | None = None) -> None:
        self.config = config

    @property
    def card(self) -> EncoderCard:
        """What is known of the encoder."""
        return HANDCRAFTED_CARD

    def load(self, device: str, precision: str) -> None:
        """Do nothing: there are no weights."""

    def weights(self) -> Mapping[str, str]:
        """Say that there are no weights."""
        return {"weights": "none"}

    def encode(self, batch: TileBatch) -> EncoderOutput:
        """Describe a batch.

        Raises:
            EncoderError: If tiles are smaller than `MIN_SIDE`.
        """
        if len(batch) and min(batch.pixels.shape[1:3]) < MIN_SIDE:
            raise EncoderError(
                f"The encoder handcrafted needs tiles of at least {MIN_SIDE} px a side, "
                f"not {batch.pixels.shape[2]} × {batch.pixels.shape[1]}."
            )
        rows = [describe_tile(tile) for tile in batch.pixels]
        return EncoderOutput(embedding=np.array(rows, np.float32).reshape(len(rows), len(COLUMNS)))


def describe_tile(tile: NDArray[np.uint8]) -> list[float]:
    """Compute every column for one tile.

    Args:
        tile: (h, w, 3) uint8 RGB.

    Returns:
        One number for each of `COLUMNS`, in order.
    """
    tile = np.ascontiguousarray(tile)
    channels = [np.ascontiguousarray(tile[..., c]) for c in range(3)]
    stains = [_stain_plane(channels, stain) for stain in range(3)]
    luminance = np.asarray(cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY), np.uint8)
    groups = (
        _colour(tile, channels),
        _density(channels),
        _stain(stains),
        _gradients(luminance),
        _octaves(luminance),
        *(_cooccurrence(luminance >> 4, distance) for distance in GLCM_DISTANCES),
        _binary_patterns(luminance),
        _nuclei(stains[0]),
    )
    return list(chain.from_iterable(groups))


@dataclass(frozen=True)
class _Moments:
    """Exact moments of integers, out of their histogram."""

    count: int
    first: int
    second: int
    third: int

    @classmethod
    def of(cls, histogram: Histogram) -> _Moments:
        sums = [int((histogram * _LEVELS**power).sum()) for power in range(4)]
        return cls(*sums)

    @property
    def mean(self) -> float:
        return self.first / self.count

    @property
    def std(self) -> float:
        # Python's integers are exact at any size, so nothing cancels.
        return float((self.second * self.count - self.first**2) ** 0.5 / self.count)

    @property
    def skew(self) -> float:
        n, s1, s2, s3 = self.count, self.first, self.second, self.third
        third = (s3 * n * n - 3 * s1 * s2 * n + 2 * s1**3) / n**3
        return float(np.cbrt(third))


def _histogram(plane: NDArray[Any]) -> Histogram:
    counts = cv2.calcHist([plane], [0], None, [256], [0, 256])
    return counts.ravel().astype(np.int64)


def _percentiles(histogram: Histogram, percents: Sequence[int]) -> list[int]:
    """Give the smallest level that has at least so much of the pixels at or below it."""
    cumulated = np.cumsum(histogram)
    ranks = [-(-int(cumulated[-1]) * percent // 100) for percent in percents]
    return [int(np.searchsorted(cumulated, rank)) for rank in ranks]


def _colour(tile: NDArray[np.uint8], channels: Sequence[Plane]) -> Iterator[float]:
    for channel in channels:
        moments = _Moments.of(_histogram(channel))
        yield from (moments.mean / 255, moments.std / 255, moments.skew / 255)
    saturation = cv2.extractChannel(cv2.cvtColor(tile, cv2.COLOR_RGB2HSV), 1)
    moments = _Moments.of(_histogram(np.asarray(saturation, np.uint8)))
    yield from (moments.mean / 255, moments.std / 255)


def _optical_density() -> NDArray[np.float64]:
    """Tabulate -log10(I / 255) for the 256 values of a channel, black counting as 1."""
    return -np.log10(np.maximum(np.arange(256), 1) / 255)


def _stain_tables() -> list[list[NDArray[np.int16]]]:
    """Tabulate what each value of each channel adds to each stain, in fixed point.

    The residual is the direction at right angles to both stains, as in Ruifrok & Johnston.
    """
    first, second = np.array(HAEMATOXYLIN), np.array(EOSIN)
    vectors = (first, second, np.cross(first, second))
    unmix = np.linalg.inv(np.array([v / np.linalg.norm(v) for v in vectors]))
    terms = _optical_density()[None, None] * unmix.T[..., None] * (OD_STEP << _GUARD_BITS)
    return [list(stain) for stain in np.rint(terms).astype(np.int16)[:, :, :, None]]


def _stain_plane(channels: Sequence[Plane], stain: int) -> Plane:
    """Give a stain's amount in steps of 1 / `OD_STEP` from its level in `STAIN_ZEROS`."""
    red, green, blue = map(cv2.LUT, channels, _STAIN_TABLES[stain])
    rounding = ((2 * STAIN_ZEROS[stain] + 1) << _GUARD_BITS) // 2
    total = cv2.add(cv2.add(red, green), blue)
    amount: Any = (np.asarray(total, np.int16) + np.int16(rounding)) >> _GUARD_BITS
    saturated: Any = cv2.add(amount, 0, dtype=cv2.CV_8U)  # type: ignore[call-overload]
    return np.asarray(saturated, np.uint8)


_LEVELS = np.arange(256, dtype=np.int64)
_STAIN_TABLES = _stain_tables()
# A third of the density of each channel, in thousandths: their sum fits 12 bits.
_DENSITY_TABLE = np.rint(_optical_density() * 1000 / 3).astype(np.int16)[:, None]


def _sum_of_squares(values: NDArray[Any]) -> int:
    # Rounded, since OpenCV squares a square root here: exact up to 2⁵⁰, or tiles of 16k px.
    return round(cv2.norm(values, cv2.NORM_L2SQR))


def _density(channels: Sequence[Plane]) -> Iterator[float]:
    red, green, blue = (cv2.LUT(channel, _DENSITY_TABLE) for channel in channels)
    total = np.asarray(cv2.add(cv2.add(red, green), blue), np.int16)
    count, first, second = total.size, int(cv2.sumElems(total)[0]), _sum_of_squares(total)
    yield first / count / 1000
    yield float((second * count - first**2) ** 0.5 / count / 1000)
    yield int(np.count_nonzero(total > TISSUE_OD * 1000)) / count


def _stain(stains: Sequence[Plane]) -> Iterator[float]:
    moments = []
    for plane, zero in zip(stains, STAIN_ZEROS, strict=True):
        histogram = _histogram(plane)
        moments.append(_Moments.of(histogram))
        yield (moments[-1].mean - zero) / OD_STEP
        yield moments[-1].std / OD_STEP
        yield from ((level - zero) / OD_STEP for level in _percentiles(histogram, (10, 50, 90)))
    haematoxylin, eosin, _ = moments
    both = haematoxylin.first + eosin.first
    yield haematoxylin.first / both if both else 0.0
    total = np.asarray(cv2.add(stains[0], stains[1], dtype=cv2.CV_16U), np.uint16)
    product = (_sum_of_squares(total) - haematoxylin.second - eosin.second) // 2
    count = haematoxylin.count
    covariance = (product * count - haematoxylin.first * eosin.first) / count**2
    spread = haematoxylin.std * eosin.std
    yield covariance / spread if spread else 0.0


def _gradients(luminance: Plane) -> Iterator[float]:
    """Divide by 4 × 255: the largest response of the Sobel filter."""
    gradients = [cv2.Sobel(luminance, cv2.CV_16S, dx, 1 - dx) for dx in (1, 0)]
    count = luminance.size
    yield sum(int(cv2.norm(g, cv2.NORM_L1)) for g in gradients) / count / 1020
    yield sum(_sum_of_squares(g) for g in gradients) / count / 1020**2
    laplacian = cv2.Laplacian(luminance, cv2.CV_16S)
    first, second = int(cv2.sumElems(laplacian)[0]), _sum_of_squares(laplacian)
    yield (second * count - first**2) / count**2 / 255**2


def _octaves(luminance: Plane) -> Iterator[float]:
    """Split the variance by scale: each octave's is what a 2 × 2 average takes away."""
    side = 2 * OCTAVES[-1]
    height, width = (length // side * side for length in luminance.shape)
    sums = luminance[:height, :width].astype(np.uint16)  # of 16 × 16 pixels at most: it fits
    power = _sum_of_squares(sums)
    for size in OCTAVES:
        pairs = sums[::2] + sums[1::2]
        sums = pairs[:, ::2] + pairs[:, 1::2]
        coarser = _sum_of_squares(sums)
        # Both are sums of squared block sums; a mean square divides by pixels and block area.
        yield (4 * power - coarser) / (4 * size**2 * height * width) / 255**2
        power = coarser


_I, _J = np.divmod(_LEVELS, 16)


def _cooccurrence(levels: NDArray[Any], distance: int) -> Iterator[float]:
    """Count pairs of 16 grey levels in four directions, both ways, and describe the table."""
    d = distance
    pairs = (
        (levels[:, :-d], levels[:, d:]),
        (levels[:-d], levels[d:]),
        (levels[:-d, :-d], levels[d:, d:]),
        (levels[:-d, d:], levels[d:, :-d]),
    )
    one_way = np.sum([_histogram((a << 4) | b) for a, b in pairs], axis=0).reshape(16, 16)
    counts = (one_way + one_way.T).ravel()
    total = int(counts.sum())
    yield int((counts * (_I - _J) ** 2).sum()) / total / 15**2
    mean = int((counts * _I).sum()) / total
    variance = int((counts * _I**2).sum()) / total - mean**2
    product = int((counts * _I * _J).sum()) / total - mean**2
    # A table with one level is perfectly correlated; below this it is rounding alone.
    yield product / variance if variance > 1e-9 else 1.0
    share = counts[counts > 0] / total
    yield float((share * share).sum())
    yield float((counts / (1 + np.abs(_I - _J))).sum() / total)
    yield abs(float((share * np.log2(share)).sum()))


def _pattern_table() -> NDArray[np.uint8]:
    """Map 8 comparisons around a circle to the number of ones, or 9 if they change over twice."""
    bits = (_LEVELS[:, None] >> np.arange(8)) & 1
    changes = (bits != np.roll(bits, 1, axis=1)).sum(axis=1)
    return np.where(changes <= 2, bits.sum(axis=1), LBP_BINS - 1).astype(np.uint8)


_PATTERNS = _pattern_table()
# Around the centre in order; corners are taken at the pixel, not interpolated on the circle.
_NEIGHBOURS = ((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0))


def _binary_patterns(luminance: Plane) -> Iterator[float]:
    height, width = (length - 2 for length in luminance.shape)
    centre = luminance[1:-1, 1:-1]
    code = np.zeros((height, width), np.uint8)
    for bit, (top, left) in enumerate(_NEIGHBOURS):
        neighbour = luminance[top : top + height, left : left + width]
        code |= (neighbour >= centre).view(np.uint8) << bit
    counts = np.bincount(_PATTERNS, weights=_histogram(code), minlength=LBP_BINS)
    yield from (float(count) / code.size for count in counts)


def _nuclei(haematoxylin: Plane) -> Iterator[float]:
    smooth = cv2.GaussianBlur(haematoxylin, (5, 5), 0)
    otsu, _ = cv2.threshold(smooth, 0, 255, cv2.THRESH_OTSU)
    threshold = max(int(otsu), round(MIN_NUCLEUS_OD * OD_STEP))
    _, dark = cv2.threshold(smooth, threshold, 255, cv2.THRESH_BINARY)
    dark = cv2.morphologyEx(dark, cv2.MORPH_OPEN, _CROSS)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(dark)
    kept = stats[:, cv2.CC_STAT_AREA] >= MIN_NUCLEUS_AREA
    kept[0] = False  # the background
    area, width, height = (
        stats[kept, column].astype(np.int64)
        for column in (cv2.CC_STAT_AREA, cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT)
    )
    count, covered, pixels = len(area), int(area.sum()), haematoxylin.size
    yield threshold / OD_STEP
    yield count / pixels * 1e6
    yield covered / pixels
    if not count:
        yield from (0.0,) * 6
        return
    yield covered / count
    yield float((int((area**2).sum()) * count - covered**2) ** 0.5 / count)
    yield float((area / (width * height)).sum()) / count
    yield float((np.maximum(width, height) / np.minimum(width, height)).sum()) / count
    within = kept.view(np.uint8)[labels]
    inside = int(cv2.sumElems(cv2.multiply(haematoxylin, within))[0])
    outside = int(cv2.sumElems(haematoxylin)[0]) - inside
    yield inside / covered / OD_STEP
    yield (inside / covered - outside / max(pixels - covered, 1)) / OD_STEP


_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
