"""How large a slide's pixels are: every vendor's way of saying so, in one order.

Whoever says it first is believed, and named in the result. A user's override wins over all.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from microtome.errors import ResolutionError
from microtome.slide.types import Resolution, SlideInfo

PLAUSIBLE_MPP = (0.1, 10.0)
"""µm per level-0 pixel that a scanner of tissue can have."""

PLAUSIBLE_POWER = (0.5, 250.0)
"""Objective powers that a microscope can have, with a lens behind the objective."""

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

_NUMBER = r"((?:[0-9]++(?:\.[0-9]++)?|\.[0-9]++)(?:[eE][-+]?[0-9]+)?)"
_LEADING_NUMBER = re.compile(r"\s*\+?([0-9]*[.,]?[0-9]+(?:[eE][-+]?[0-9]+)?)")
_MPP_TEXT = re.compile(rf"\bmpp\b\s*[:=]\s*{_NUMBER}", re.IGNORECASE)
_OME_SIZE = re.compile(r'\bPhysicalSize([XY])(Unit)?\s*=\s*"([^"]*)"')
_OME_POWER = re.compile(rf'\bNominalMagnification\s*=\s*"{_NUMBER}"')

_WAY_OUT = "Give the right µm per pixel with mpp=0.5 or mpp_csv=FILE."

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
        ResolutionError: If the mpp or the objective power is implausible, the axes contradict each
            other, or the override is no positive number.
    """
    if override is not None:
        return _overridden(info, override, source)
    power, power_source = _objective_power(info)
    low, high = PLAUSIBLE_POWER
    if power is not None and not low <= power <= high:
        raise ResolutionError(
            f"{info.path}: {power_source} gives an objective power of {power:.6g}, outside the "
            f"plausible {low:g} to {high:g}. {_WAY_OUT}"
        )
    stated = next(_statements(info), None)
    assumed = stated is None and power is not None
    if stated is None and power is not None:
        guess = OBJECTIVE_MPP / power
        stated = _Stated(guess, guess, f"assumed from {power_source}")
    if stated is None:
        return Resolution()
    x, y = _checked_axes(info, stated)
    if power is None:
        power, power_source = magnification_of((x + y) / 2), "mpp"
    return Resolution(
        mpp_x=x,
        mpp_y=y,
        mpp_source=stated.source,
        assumed=assumed,
        magnification=power,
        magnification_source=power_source if power else "unknown",
    )


def magnification_of(mpp: float) -> float | None:
    """Give the nominal magnification that goes with an mpp, or None where it is too coarse."""
    return next((power for below, power in MPP_BUCKETS if mpp < below), None)


def _overridden(info: SlideInfo, mpp: float, source: str) -> Resolution:
    if not (math.isfinite(mpp) and mpp > 0):
        raise ResolutionError(
            f"{info.path}: the {source} gives {mpp:g} µm per pixel, which is no size. Give a "
            "positive number, such as mpp=0.25."
        )
    power = magnification_of(mpp)
    return Resolution(
        mpp_x=mpp,
        mpp_y=mpp,
        mpp_source=source,
        magnification=power,
        magnification_source="mpp" if power else "unknown",
    )


def _checked_axes(info: SlideInfo, stated: _Stated) -> tuple[float, float]:
    low, high = PLAUSIBLE_MPP
    x, y = stated.x, stated.y
    for mpp in (x, y):
        if not low <= mpp <= high:
            raise ResolutionError(
                f"{info.path}: {stated.source} gives {mpp:.6g} µm per pixel, outside the plausible "
                f"{low:g} to {high:g}. {_WAY_OUT}"
            )
    apart = abs(x - y) / min(x, y)
    if apart > SQUARE_AXES:
        raise ResolutionError(
            f"{info.path}: {stated.source} gives pixels of {x:.6g} × {y:.6g} µm, {apart:.0%} from "
            f"square. {_WAY_OUT}"
        )
    if apart > SAME_AXES:
        return x, y
    return (x + y) / 2, (x + y) / 2


def _objective_power(info: SlideInfo) -> tuple[float | None, str]:
    if info.objective_power and info.objective_power > 0:
        return info.objective_power, f"the {info.reader} reader"
    for name in _POWER_PROPERTIES:
        power = _number(info.properties.get(name))
        if power:
            return power, name
    match = _OME_POWER.search(info.properties.get("tiff.ImageDescription", ""))
    power = _number(match[1]) if match else None
    return (power, "OME NominalMagnification") if power else (None, "unknown")


def _statements(info: SlideInfo) -> Iterator[_Stated]:
    """Give every mpp that a slide states, the most trustworthy first."""
    if info.mpp and min(info.mpp) > 0:
        yield _Stated(*info.mpp, f"the {info.reader} reader")
    for read in _SOURCES:
        stated = read(info.properties)
        if stated is not None:
            yield stated


def _pair(
    x_name: str, y_name: str, to_um: Callable[[float], float] = float
) -> Callable[[Mapping[str, str]], _Stated | None]:
    """Read two properties, the second of which may be missing."""

    def read(properties: Mapping[str, str]) -> _Stated | None:
        x, y = _number(properties.get(x_name)), _number(properties.get(y_name))
        if x is None:
            return None
        stated = _Stated(to_um(x), to_um(y or x), x_name)
        return None if _of_a_screen(stated.x) else stated

    return read


def _hamamatsu(properties: Mapping[str, str]) -> _Stated | None:
    """Read Hamamatsu's resolution: pixels per unit where it has one, or else µm per pixel."""
    unit = properties.get("hamamatsu.ResolutionUnit") or properties.get("tiff.ResolutionUnit", "")
    per_unit = _UNIT_UM.get(unit.strip().lower())

    def to_um(value: float) -> float:
        if value <= PLAUSIBLE_MPP[1]:
            return value
        # No scanner has more than 10 µm a pixel: this is a density, per cm unless said.
        return (per_unit or _CM) / value

    return _pair("hamamatsu.XResolution", "hamamatsu.YResolution", to_um)(properties)


def _in_text(name: str) -> Callable[[Mapping[str, str]], _Stated | None]:
    def read(properties: Mapping[str, str]) -> _Stated | None:
        match = _MPP_TEXT.search(properties.get(name, ""))
        mpp = _number(match[1]) if match else None
        return _Stated(mpp, mpp, name) if mpp else None

    return read


def _ome(properties: Mapping[str, str]) -> _Stated | None:
    """Read OME-XML's PhysicalSizeX and Y, in µm unless it names another unit."""
    text = html.unescape(properties.get("tiff.ImageDescription", ""))
    if "<OME" not in text:
        return None
    found: dict[str, str] = {}
    for axis, unit, value in _OME_SIZE.findall(text):
        found.setdefault(axis + unit, value)  # the first image's
    sizes = []
    for axis in "XY":
        size = _number(found.get(axis))
        scale = _UNIT_UM.get(found.get(f"{axis}Unit", "µm").strip().lower())
        sizes.append(size * scale if size and scale else None)
    x, y = sizes
    return _Stated(x, y or x, "OME PhysicalSizeX") if x else None


def _tiff(properties: Mapping[str, str]) -> _Stated | None:
    """Read TIFF's pixels per cm or inch; a resolution without a unit says nothing."""
    unit = _UNIT_UM.get(properties.get("tiff.ResolutionUnit", "").strip().lower())
    if unit is None:
        return None
    return _pair("tiff.XResolution", "tiff.YResolution", lambda value: unit / value)(properties)


_SOURCES: tuple[Callable[[Mapping[str, str]], _Stated | None], ...] = (
    _pair("openslide.mpp-x", "openslide.mpp-y"),
    _pair("openslide.mirax.MPP", "openslide.mirax.MPP"),
    _pair(
        "mirax.LAYER_0_LEVEL_0_SECTION.MICROMETER_PER_PIXEL_X",
        "mirax.LAYER_0_LEVEL_0_SECTION.MICROMETER_PER_PIXEL_Y",
    ),
    _pair("aperio.MPP", "aperio.MPP"),
    _hamamatsu,
    _in_text("openslide.comment"),
    _in_text("tiff.ImageDescription"),
    _ome,
    _tiff,
)


def _of_a_screen(mpp: float) -> bool:
    """Tell 72 and 96 dpi, which OpenSlide too takes from a plain TIFF's tags as an mpp."""
    return any(math.isclose(mpp, _INCH / dpi, rel_tol=2e-3) for dpi in _SCREEN_DPI)


def _number(text: str | None) -> float | None:
    """Parse a positive number, with a comma or a unit as scanners may write it."""
    match = _LEADING_NUMBER.match(text or "")
    value = float(match[1].replace(",", ".")) if match else math.nan
    return value if math.isfinite(value) and value > 0 else None
