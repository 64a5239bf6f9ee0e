"""mpp and magnification from every vendor's field, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microtome.errors import ResolutionError
from microtome.slide.resolution import magnification_of, resolve_resolution
from microtome.slide.types import Level, SlideInfo


def info(properties=None, **fields):
    levels = (Level(width=100, height=100, downsample=1.0),)
    path = Path("slides/a.svs")
    return SlideInfo(path=path, reader="fake", levels=levels, properties=properties or {}, **fields)


def resolve(properties=None, **fields):
    return resolve_resolution(info(properties, **fields))


OME = (
    '<?xml version="1.0"?><OME><Image><Pixels PhysicalSizeX="{x}" PhysicalSizeXUnit="{unit}" '
    'PhysicalSizeY="{x}" PhysicalSizeYUnit="{unit}"/></Image></OME>'
)

STATED = {
    "openslide": ({"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.25"}, "openslide.mpp-x"),
    "mirax": ({"openslide.mirax.MPP": "0.25"}, "openslide.mirax.MPP"),
    "mirax's own": (
        {"mirax.LAYER_0_LEVEL_0_SECTION.MICROMETER_PER_PIXEL_X": "0,25"},
        "mirax.LAYER_0_LEVEL_0_SECTION.MICROMETER_PER_PIXEL_X",
    ),
    "aperio": ({"aperio.MPP": "0.2500"}, "aperio.MPP"),
    "hamamatsu, per cm": (
        {"hamamatsu.XResolution": "40000", "tiff.ResolutionUnit": "centimeter"},
        "hamamatsu.XResolution",
    ),
    "hamamatsu, per inch": (
        {"hamamatsu.XResolution": "101600", "hamamatsu.ResolutionUnit": "inch"},
        "hamamatsu.XResolution",
    ),
    "hamamatsu, no unit": ({"hamamatsu.XResolution": "40000"}, "hamamatsu.XResolution"),
    "hamamatsu, in µm": ({"hamamatsu.XResolution": "0.25"}, "hamamatsu.XResolution"),
    "comment": ({"openslide.comment": "made by X; MPP = 0.25;"}, "openslide.comment"),
    "description": ({"tiff.ImageDescription": "a|mpp:0.25|b"}, "tiff.ImageDescription"),
    "ome": ({"tiff.ImageDescription": OME.format(x=0.25, unit="µm")}, "OME PhysicalSizeX"),
    "ome, greek mu": (
        {"tiff.ImageDescription": OME.format(x=0.25, unit="μm")},
        "OME PhysicalSizeX",
    ),
    "ome, escaped": (
        {"tiff.ImageDescription": OME.format(x=0.25, unit="&#181;m")},
        "OME PhysicalSizeX",
    ),
    "ome, nm": ({"tiff.ImageDescription": OME.format(x=250, unit="nm")}, "OME PhysicalSizeX"),
    "ome, mm": ({"tiff.ImageDescription": OME.format(x=2.5e-4, unit="mm")}, "OME PhysicalSizeX"),
    "ome, no unit": (
        {"tiff.ImageDescription": '<OME><Pixels PhysicalSizeX="0.25"/></OME>'},
        "OME PhysicalSizeX",
    ),
    "tiff, cm": (
        {"tiff.XResolution": "40000", "tiff.ResolutionUnit": "centimeter"},
        "tiff.XResolution",
    ),
    "tiff, inch": (
        {"tiff.XResolution": "101600", "tiff.ResolutionUnit": "inch"},
        "tiff.XResolution",
    ),
}


@pytest.mark.parametrize("name", STATED)
def test_every_field_that_states_an_mpp_is_read(name):
    properties, source = STATED[name]
    resolution = resolve(properties)
    assert resolution.mpp == pytest.approx(0.25)
    assert resolution.mpp_source == source
    assert not resolution.assumed
    assert (resolution.magnification, resolution.magnification_source) == (40, "mpp")


ORDER = (
    ("openslide.mpp-x", "0.21"),
    ("openslide.mirax.MPP", "0.22"),
    ("aperio.MPP", "0.23"),
    ("hamamatsu.XResolution", "0.24"),
    ("openslide.comment", "mpp=0.25"),
    ("tiff.ImageDescription", "mpp=0.26"),
    ("tiff.XResolution", "37037.04"),  # per cm: 0.27
    ("openslide.objective-power", "20"),
)


@pytest.mark.parametrize("first", range(len(ORDER) - 1))
def test_the_first_that_speaks_is_believed(first):
    properties = dict(ORDER[first:]) | {"tiff.ResolutionUnit": "centimeter"}
    resolution = resolve(properties)
    assert resolution.mpp_source == ORDER[first][0]
    assert resolution.mpp == pytest.approx(0.21 + first / 100)
    assert resolution.magnification == 20
    assert resolution.magnification_source == "openslide.objective-power"


def test_what_the_reader_knows_wins_over_properties():
    resolution = resolve({"openslide.mpp-x": "0.5"}, mpp=(0.25, 0.25), objective_power=60.0)
    assert (resolution.mpp, resolution.mpp_source) == (0.25, "the fake reader")
    assert (resolution.magnification, resolution.magnification_source) == (60, "the fake reader")


def test_objective_power_alone_gives_an_assumed_mpp():
    resolution = resolve({"aperio.AppMag": "40"})
    assert resolution.mpp == 0.25
    assert resolution.assumed
    assert resolution.mpp_source == "assumed from aperio.AppMag"
    assert resolution.magnification == 40


def test_nothing_stated_is_nothing_resolved():
    resolution = resolve({"tiff.XResolution": "1", "tiff.ResolutionUnit": "none"})
    assert (resolution.mpp, resolution.magnification) == (None, None)
    assert (resolution.mpp_source, resolution.magnification_source) == ("unknown", "unknown")


@pytest.mark.parametrize("dpi", [72, 96])
@pytest.mark.parametrize("unit", ["inch", "centimeter", "openslide"])
def test_a_screens_resolution_is_no_mpp(dpi, unit):
    per_cm = dpi / 2.54
    properties = {
        "inch": {"tiff.XResolution": str(dpi), "tiff.ResolutionUnit": "inch"},
        "centimeter": {"tiff.XResolution": str(per_cm), "tiff.ResolutionUnit": "centimeter"},
        "openslide": {"openslide.mpp-x": str(1e4 / per_cm), "openslide.mpp-y": str(1e4 / per_cm)},
    }[unit]
    assert resolve(properties).mpp is None
    assert resolve(properties | {"openslide.objective-power": "20"}).mpp == 0.5


@pytest.mark.parametrize("text", ["", "0", "-0.25", "nan", "inf", "unknown", "0.0"])
def test_a_field_that_says_nothing_is_passed_over(text):
    resolution = resolve({"openslide.mpp-x": text, "aperio.MPP": "0.25"})
    assert resolution.mpp_source == "aperio.MPP"


@pytest.mark.parametrize("mpp", [0.01, 0.0999, 10.01, 28.969])
def test_an_implausible_mpp_is_refused_with_the_way_out(mpp):
    with pytest.raises(
        ResolutionError, match=r"a\.svs: openslide\.mpp-x gives .* mpp=0\.5 or mpp_csv="
    ):
        resolve({"openslide.mpp-x": str(mpp)})


@given(st.floats(0.1, 9.0), st.floats(1.0, 1.5))
def test_axes_are_one_number_two_numbers_or_no_slide(mpp, ratio):
    properties = {"openslide.mpp-x": repr(mpp), "openslide.mpp-y": repr(min(mpp * ratio, 10.0))}
    x, y = mpp, min(mpp * ratio, 10.0)
    if (y - x) / x > 0.10:
        with pytest.raises(ResolutionError, match="from square"):
            resolve(properties)
        return
    resolution = resolve(properties)
    assert resolution.mpp == pytest.approx((x + y) / 2)
    apart = resolution.mpp_x != resolution.mpp_y
    assert apart == ((y - x) / x > 0.01)


@given(st.floats(0.001, 200.0))
def test_an_override_always_wins_and_changes_the_magnification(mpp):
    stated = {"openslide.mpp-x": "0.25", "openslide.objective-power": "40"}
    resolution = resolve_resolution(info(stated), mpp, "mpp_csv")
    assert (resolution.mpp, resolution.mpp_source) == (mpp, "mpp_csv")
    assert resolution.magnification == magnification_of(mpp)
    assert not resolution.assumed


def test_an_override_helps_where_the_file_is_implausible():
    assert resolve_resolution(info({"openslide.mpp-x": "28.97"}), 0.5).mpp_source == "override"


@pytest.mark.parametrize("mpp", [0.0, -0.5, float("nan"), float("inf")])
def test_an_override_that_is_no_size_is_refused(mpp):
    with pytest.raises(ResolutionError, match="no size"):
        resolve_resolution(info(), mpp)


@pytest.mark.parametrize(
    ("mpp", "magnification"),
    [
        *((0.1, 80), (0.159, 80), (0.16, 60), (0.199, 60), (0.2, 40), (0.299, 40), (0.3, 20)),
        *((0.599, 20), (0.6, 10), (1.199, 10), (1.2, 5), (2.399, 5), (2.4, None), (9.0, None)),
    ],
)
def test_magnification_goes_by_buckets(mpp, magnification):
    """Those of requirement D7."""
    assert magnification_of(mpp) == magnification


@given(st.floats(0.01, 20.0), st.floats(0.01, 20.0))
def test_a_finer_pixel_is_never_a_lower_magnification(a, b):
    fine, coarse = sorted((a, b))
    assert (magnification_of(fine) or 0) >= (magnification_of(coarse) or 0)


def test_the_power_in_ome_is_read():
    text = '<OME><Objective NominalMagnification="40.0"/><Pixels PhysicalSizeX="0.23"/></OME>'
    resolution = resolve({"tiff.ImageDescription": text})
    assert (resolution.mpp, resolution.magnification) == (0.23, 40)
