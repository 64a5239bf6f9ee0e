"""How large a slide's pixels are: every vendor's way of saying so, in one order.

Whoever says it first is believed, and named in the result. A user's override wins over all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from microtome.errors import ResolutionError
from microtome.slide.types import Resolution, SlideInfo

PLAUSIBLE_MPP = (0.1, 10.0)
"""µm per level-0 pixel that a scanner of tissue can have."""

MPP_BUCKETS = ((0.16, 80.0), (0.2, 60.0), (0.3, 40.0), (0.6, 20.0), (1.2, 10.0), (2.4, 5.0))
"""``(below, magnification)``: the nominal magnification that goes with an mpp."""

OBJECTIVE_MPP = 10.0
"""mpp × objective power of a usual scanner: 0.25 µm at 40x."""

SAME_AXES, SQUARE_AXES = 0.01, 0.10
"""Axes nearer than the first are one number; further apart than the second, no slide."""

_SCREEN_DPI = (72.0, 96.0)
"""What software writes when it knows no resolution."""

_INCH, _CM = 25400.0, 10000.0
_UNIT_UM = {
    **{"inch": _INCH, "inches": _INCH, "cm": _CM, "centimeter": _CM, "centimetre": _CM},
    **{"mm": 1e3, "millimeter": 1e3, "um": 1.0, "µm": 1.0, "μm": 1.0, "micron": 1.0},
    **{"micrometer": 1.0, "nm": 1e-3, "nanometer": 1e-3, "m": 1e6, "pm": 1e-6},
}
"""Units of length in µm; both code points of µ."""

_NUMBER = r"([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)"
_MPP_TEXT = re.compile(rf"\bmpp\b\s*[:=]\s*{_NUMBER}", re.IGNORECASE)
_OME_SIZE = re.compile(r'\bPhysicalSize([XY])(Unit)?\s*=\s*"([^"]*)"')
_OME_POWER = re.compile(rf'\bNominalMagnification\s*=\s*"{_NUMBER}"')

_POWER_PROPERTIES = (
    "openslide.objective-power",
    "aperio.AppMag",
    "hamamatsu.SourceLens",
    "mirax.GENERAL.OBJECTIVE_MAGNIFICATION",
    "ventana.Magnification",
    "leica.objective",
)


@dataclass(frozen=True)
class _Stated:
    """An mpp that a slide states: (x, y) µm per pixel, and where."""

    x: float
    y: float
    source: str


def resolve_resolution(
    info: SlideInfo, override: float | None = None, source: str = "override"
) -> Resolution:
    """Resolve a slide's level-0 mpp and nominal magnification.

    The order: the user's override; what the reader knows; OpenSlide's, MIRAX's, Aperio's and
    Hamamatsu's properties; ``mpp = …`` in a comment; OME-XML; TIFF resolution tags; at last
    10 / objective power, marked as assumed. The magnification is the objective power, or what
    goes with the mpp where there is none or the mpp is the user's.

    Args:
        info: Of the open slide; its ``resolution`` is ignored.
        override: µm per level-0 pixel from the user. Need not be plausible.
        source: Who the override is from: ``"override"``, ``"mpp_csv"`` or ``"manifest"``.

    Returns:
        The resolution; its mpp is None where nothing states one.

    Raises:
        ResolutionError: If the mpp is implausible, the axes contradict each other, or the
            override is no positive number.
    """
    if override is not None:
        _check_override(info, override, source)
        return _nominal(Resolution(mpp_x=override, mpp_y=override, mpp_source=source))
    power, power_source = _objective_power(info)
    stated = next(_statements(info), None)
    if stated is None and power is None:
        return Resolution()
    if stated is None and power is not None:
        assumed = OBJECTIVE_MPP / power
        stated = _Stated(assumed, assumed, f"assumed from {power_source}")
    assert_plausible = _check_stated(info, stated) if stated else None
    del assert_plausible
    raise NotImplementedError
