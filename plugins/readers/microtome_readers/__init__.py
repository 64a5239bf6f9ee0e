"""Slide readers: OpenSlide, cuCIM, libvips, TIFF by itself, plain images, and tile archives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from microtome.plugin import ReaderSpec, hookimpl, option, runtime


@dataclass
class OpenSlideConfig:
    """Options of the ``openslide`` reader."""

    cache_mb: int = runtime(64, help="Decoded tiles that OpenSlide keeps per slide, in MiB.")


@dataclass
class CucimConfig:
    """Options of the ``cucim`` reader."""

    probe_timeout: float = runtime(
        60.0, help="Seconds that the child process which tries a file first may take."
    )


@dataclass
class TiffConfig:
    """Options of the ``tiff`` reader."""

    half_size: bool = option(
        False,
        help="Give a level of half the size for each level of JPEG tiles that has none, decoded "
        "at half size inside JPEG: faster, and up to 32 grey levels off the mean of its pixels. "
        "Coordinates then count levels that other libraries do not know.",
    )
    cache_mb: int = runtime(64, help="Decoded tiles and strips kept per slide, in MiB.")


@dataclass
class PillowConfig:
    """Options of the ``pillow`` reader."""

    max_megapixels: float = runtime(
        500.0, help="Larger images are refused, since a plain image is decoded as a whole."
    )


@hookimpl
def microtome_readers() -> Iterator[ReaderSpec]:
    """Register this room's readers."""
    yield ReaderSpec(
        name="openslide",
        target="microtome_readers.openslide_reader:OpenSlideReader",
        summary="Whole-slide formats through OpenSlide",
        config=OpenSlideConfig,
        requires=("openslide",),
        install="pip install openslide-python openslide-bin",
        extensions=(
            *(".svs", ".tif", ".tiff", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs"),
            *(".bif", ".biff", ".dcm", ".dicom", ".svslide"),
        ),
        priority=100,
    )
    yield ReaderSpec(
        name="tiff",
        target="microtome_readers.tiff.reader:TiffReader",
        summary="TIFF: plain JPEG pyramids directly, the others through tifffile",
        config=TiffConfig,
        requires=("tifffile", "imagecodecs", "cv2"),
        install="pip install tifffile imagecodecs opencv-python-headless",
        extensions=(".tif", ".tiff", ".svs"),
        priority=50,
        vouches=True,
    )
    yield ReaderSpec(
        name="cucim",
        target="microtome_readers.cucim_reader:CucimReader",
        summary="Tiled JPEG and JPEG 2000 TIFF through cuCIM",
        config=CucimConfig,
        requires=("cucim", "tifffile", "imagecodecs", "cv2"),
        install="pip install 'microtome[cucim]'",
        extensions=(".svs", ".tif", ".tiff"),
        priority=10,
    )
    yield ReaderSpec(
        name="vips",
        target="microtome_readers.vips_reader:VipsReader",
        summary="Tiled TIFF through libvips",
        requires=("pyvips", "tifffile", "imagecodecs", "cv2"),
        install="pip install 'microtome[vips]'",
        extensions=(".svs", ".tif", ".tiff"),
        priority=-10,
    )
    yield ReaderSpec(
        name="pillow",
        target="microtome_readers.pillow_reader:PillowReader",
        summary="Plain images through Pillow",
        config=PillowConfig,
        requires=("PIL",),
        install="pip install pillow",
        extensions=(".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif"),
    )
    yield ReaderSpec(
        name="archive",
        target="microtome_readers.archive_reader:ArchiveReader",
        summary="Tile archives, microtome's and slide2vec's: the tiles that they hold alone",
        requires=("PIL",),
        install="pip install pillow",
        extensions=(".tar",),
    )
