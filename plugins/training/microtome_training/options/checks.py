"""Refuses options that make no sense. Cheap to import: mistakes are told at once."""

from __future__ import annotations

from collections.abc import Container

from microtome.errors import ConfigError
from microtome_training.options.evaluate import MeasureOptions
from microtome_training.options.predict import HeatmapConfig

_LEAST = {"top_k": 1, "bins": 1, "bootstrap": 0, "shown_slides": 0, "shown_tiles": 0}


def check_measures(options: MeasureOptions) -> None:
    """Refuse options that make no sense.

    Raises:
        ConfigError: Saying which, and what it may be.
    """
    shares = {"threshold": [options.threshold], "confidence": [options.confidence]}
    for name, values in (shares | {"specificities": list(options.specificities)}).items():
        for value in values:
            if not 0 < value < 1:
                raise ConfigError(f"evaluate.{name}={value:g} must be above 0 and below 1.")
    for name, low in _LEAST.items():
        if getattr(options, name) < low:
            raise ConfigError(f"evaluate.{name}={getattr(options, name)} must be {low} or more.")


def check_heatmap(options: HeatmapConfig) -> None:
    """Refuse options that make no sense.

    Raises:
        ConfigError: If there are some.
    """
    if options.colours != HeatmapConfig().colours and options.colours not in _colour_maps():
        raise ConfigError(
            f"heatmap.colours={options.colours!r} is no colour map of matplotlib's. Perceptually "
            "uniform ones are viridis, plasma, inferno, magma and cividis."
        )
    if not 0 <= options.opacity <= 1:
        raise ConfigError(f"heatmap.opacity={options.opacity:g} must be from 0 to 1.")
    for name in ("mpp", "max_px", "thumbnail_px"):
        if not getattr(options, name) > 0:
            raise ConfigError(f"heatmap.{name}={getattr(options, name):g} must be above 0.")


def _colour_maps() -> Container[str]:
    from matplotlib import colormaps

    return colormaps
