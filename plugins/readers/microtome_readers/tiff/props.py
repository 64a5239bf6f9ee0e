"""The metadata of a TIFF under OpenSlide's names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

_UNITS = {1: "none", 2: "inch", 3: "centimeter"}
_UNIT_UM = {2: 25400.0, 3: 10000.0}
_INCH = 2
"""The unit of a TIFF that names none."""


def describe_tiff(
    texts: Mapping[str, str], resolution: tuple[float, float], unit: int | None
) -> tuple[str | None, dict[str, str]]:
    """Name a TIFF's vendor and its metadata as OpenSlide does.

    Args:
        texts: Its text tags, by their names (``ImageDescription``, ``Software``).
        resolution: (x, y) pixels per unit, 0 where there is none.
        unit: The ResolutionUnit, or None where there is none.

    Returns:
        The vendor, or None where it is none of those told by a TIFF's description; and the
        properties.
    """
    properties = {f"tiff.{name}": text for name, text in texts.items()}
    for axis, value in zip("XY", resolution, strict=True):
        if value:
            properties[f"tiff.{axis}Resolution"] = f"{value:.10g}"
    if unit is not None:
        properties["tiff.ResolutionUnit"] = _UNITS.get(unit, "")
    comment = texts.get("ImageDescription", "")
    if comment:
        properties["openslide.comment"] = comment
    if not comment.startswith("Aperio"):
        return None, properties
    return "aperio", properties | dict(_aperio(comment))


def plain_mpp(resolution: tuple[float, float], unit: int | None) -> dict[str, str]:
    """Give the mpp that OpenSlide takes from a plain TIFF's resolution, whoever wrote that."""
    length = _UNIT_UM.get(_INCH if unit is None else unit)
    if length is None:
        return {}
    pairs = zip("xy", resolution, strict=True)
    return {f"openslide.mpp-{axis}": f"{length / value:.17g}" for axis, value in pairs if value}


def _aperio(comment: str) -> Iterator[tuple[str, str]]:
    for text in comment.split("|")[1:]:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals):
            continue
        yield f"aperio.{name}", value
        if name == "MPP":
            yield "openslide.mpp-x", value
            yield "openslide.mpp-y", value
        elif name == "AppMag" and value.isdecimal():
            yield "openslide.objective-power", value
