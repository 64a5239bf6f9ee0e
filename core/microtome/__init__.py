"""Whole-slide images to analysis-ready data, every stage a plugin.

::

    import microtome

    slide = microtome.open_slide("slide.svs")
    mask = slide.tissue()
    grid = slide.tiles(mask, size=256, magnification=20)
    tile = slide.read(grid, 0)
    features = slide.encode(grid, "handcrafted")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from microtome._version import __version__

if TYPE_CHECKING:
    from microtome.api import Slide, open_result, open_slide, run_slides

__all__ = ["Slide", "__version__", "open_result", "open_slide", "run_slides"]


def __getattr__(name: str) -> Any:
    """Import the Python face when it is first used, so that plugins stay cheap to import."""
    if name in __all__:
        from microtome import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the Python face."""
    return sorted(__all__)
