"""A microtome plugin: reader ``ppm``, segmenter ``darker``, tiler ``sample``, writer ``npz``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from microtome.plugin import (
    ReaderSpec,
    SegmenterSpec,
    TilerSpec,
    WriterSpec,
    hookimpl,
    option,
    runtime,
)
from microtome.slide import GridConfig


@dataclass
class DarkerConfig:
    """Options of ``segmenter=darker``."""

    threshold: int = option(215, help="Brightness (0..255) from which a pixel is glass.")


@dataclass
class SampleConfig(GridConfig):
    """Options of ``tiler=sample``: the grid's, and how many of its tiles are kept."""

    count: int = option(100, help="Most tiles of one slide.")
    seed: int = option(0, help="Of the draw.")


@dataclass
class NpzConfig:
    """Options of ``writer=npz``."""

    compress: bool = runtime(False, help="Deflate the arrays.")


@hookimpl
def microtome_readers() -> Iterable[ReaderSpec]:
    """Register the reader."""
    yield ReaderSpec(
        name="ppm",
        target="microtome_toolbox.reader:PpmReader",
        summary="Netpbm colour images (P6), mapped into memory",
        extensions=(".ppm",),
    )


@hookimpl
def microtome_segmenters() -> Iterable[SegmenterSpec]:
    """Register the segmenter."""
    yield SegmenterSpec(
        name="darker",
        target="microtome_toolbox.segmenter:DarkerSegmenter",
        summary="Everything darker than glass",
        config=DarkerConfig,
        input_mpp=8.0,
        max_px=2048,
    )


@hookimpl
def microtome_tilers() -> Iterable[TilerSpec]:
    """Register the tiler."""
    yield TilerSpec(
        name="sample",
        target="microtome_toolbox.tiler:SampleTiler",
        summary="Some tiles of the grid, drawn at random",
        config=SampleConfig,
    )


@hookimpl
def microtome_writers() -> Iterable[WriterSpec]:
    """Register the writer."""
    yield WriterSpec(
        name="npz",
        target="microtome_toolbox.writer:NpzWriter",
        summary="One NumPy archive a slide",
        config=NpzConfig,
        consumes="features",
        suffix=".npz",
        layout="file",
    )
