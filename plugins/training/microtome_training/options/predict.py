"""Options of prediction, of its pictures, and of what is told of slides and lesions."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from microtome.plugin import option, runtime

MPP_TOLERANCE = 0.15
"""Share by which scanners of one nominal magnification differ in µm per pixel."""


class HeatmapKind(Enum):
    """What a heatmap's pyramidal TIFF holds."""

    overlay = "overlay"
    probability = "probability"
    none = "none"


@dataclass
class HeatmapConfig:
    """How probabilities are drawn."""

    png: bool = runtime(True, help="Draw an overlay on a thumbnail, with its scale, as PNG.")
    kind: HeatmapKind = runtime(
        HeatmapKind.overlay,
        help="The pyramidal TIFF: overlay, the slide with its probabilities in colour; "
        "probability, grey values 1..255 for 0..1 and 0 where there is no tile; none.",
    )
    mpp: float = runtime(4.0, help="µm per pixel of the TIFF, never finer than the slide.")
    max_px: int = runtime(8192, help="Longest side of the TIFF in pixels, which wins over mpp.")
    thumbnail_px: int = runtime(1600, help="Longest side of the PNG's picture in pixels.")
    colours: str = runtime("viridis", help="A colour map of matplotlib's.")
    opacity: float = runtime(0.5, help="Of the colour on the slide, 0 to 1.")


@dataclass
class PredictConfig:
    """Options of ``task=predict``."""

    checkpoint: str | None = option(
        None, help="A trained model, best.pt; by default that of the output's only training."
    )
    name: str = option(
        "auto", help="Names the predictions; by default as the model's training is named."
    )
    batch_size: int = runtime(64, help="Tiles that the model is given at once.")
    threshold: float = option(
        0.5, help="Probability from which a tile is positive, for shares and lesions."
    )
    top_k: int = option(10, help="Tiles whose mean probability is a slide's top_k_mean.")
    min_tiles: int = option(1, help="Tiles that a lesion has at least.")
    mpp_tolerance: float = option(
        MPP_TOLERANCE, help="Share by which tiles may differ from the model's in µm per pixel."
    )
    heatmap: HeatmapConfig = field(default_factory=HeatmapConfig)
