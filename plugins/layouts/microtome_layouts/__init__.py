"""Layouts: other tools' files, to export to and to import from. Cheap to import."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from microtome.plugin import LayoutSpec, TilerSpec, hookimpl, option, runtime

_H5PY = "pip install h5py"


class Embeddings(Enum):
    """What slide2vec keeps embeddings as."""

    npz = "npz"
    pt = "pt"


class TorchFiles(Enum):
    """Whether there are files of torch, too."""

    auto = "auto"
    yes = "yes"
    no = "no"


@dataclass
class ClamConfig:
    """Options of the ``clam`` layout."""

    pt: TorchFiles = option(
        TorchFiles.auto,
        help="Export `pt_files` beside `h5_files`: yes, no, or auto, where torch is installed.",
    )
    encoder: str = option(
        "", help="Import: what made the features of DIR/h5_files, which they do not say."
    )
    step_size: int | None = option(
        None,
        help="Import: CLAM's --step_size, which its files do not say, in pixels of the level; the "
        "size of a tile if not given.",
    )


@dataclass
class Slide2vecConfig:
    """Options of the ``slide2vec`` layout."""

    format: Embeddings = option(Embeddings.npz, help="Export embeddings as npz, or pt with torch.")


@dataclass
class IndexPickleConfig:
    """Options of the ``index_pickle`` layout."""

    work_level: int = option(
        7, help="Export: the level of `visualisation_coords`, of which each halves the one before."
    )
    base_mag: float | None = option(
        None, help="Export: magnification of level 0; what the slide says if not given."
    )
    sampled: bool = runtime(
        False, help="Export to `index_level_N_sampled.pkl`, the name of an index of some tiles."
    )
    file: str = runtime("", help="Import: which index of the folder, where there are several.")
    patch_size: int = option(
        256, help="Import: side of a tile in pixels of the level, which the index does not say."
    )
    step_size: int | None = option(
        None, help="Import: stride of the tiles in such pixels; the size of a tile if not given."
    )


class Origin(Enum):
    """Where a viewer begins to count pixels."""

    level0 = "level0"
    bounds = "bounds"


@dataclass
class QupathConfig:
    """Options of the ``qupath`` layout."""

    what: list[str] = option(
        ["tissue", "tiles", "predictions"],
        help="What is drawn: tissue as annotations; tiles as detections with their columns; "
        "predictions, which put probabilities and the predicted class on the tiles.",
    )
    origin: Origin = option(
        Origin.level0,
        help="Where (0, 0) is: the corner of level 0, or of the slide's bounds, for viewers that "
        "crop to them.",
    )
    predictions: str = option(
        "", help="Name of the predictions; the only ones that a slide has if not given."
    )


@dataclass
class StoredConfig:
    """Options of the ``stored`` tiler."""

    name: str = runtime("", help="Folder of this tiling below the output.")
    folder: str = runtime(
        "",
        help="Where the tiles lie: finished slides, imported ones or another output's, "
        "OUTPUT/patches; or another tool's files, the folder that `microtome import` takes.",
    )
    layout: str = runtime(
        "auto",
        help="Whose files these are: microtome, or the name of a layout, such as slide2vec; auto "
        "to look at them.",
    )
    step_size: int | None = option(
        None,
        help="CLAM's --step_size where its tiles overlap, which its files do not say, in pixels "
        "of the level.",
    )


@dataclass
class ArchiveConfig:
    """Options of the ``archive`` tiler."""

    name: str = runtime("", help="Folder of this tiling below the output.")


@hookimpl
def microtome_tilers() -> Iterator[TilerSpec]:
    """Register the tiler of tiles that there are."""
    yield TilerSpec(
        name="stored",
        target="microtome_layouts.stored:StoredTiler",
        summary="The tiles of finished slides, or of another tool's files",
        config=StoredConfig,
        labels=True,
    )
    yield TilerSpec(
        name="archive",
        target="microtome_layouts.archived:ArchiveTiler",
        summary="The tiles of a tile archive, as they are stored",
        config=ArchiveConfig,
    )


@hookimpl
def microtome_layouts() -> Iterator[LayoutSpec]:
    """Register the built-in layouts."""
    yield LayoutSpec(
        name="atlaspatch",
        target="microtome_layouts.atlaspatch:AtlaspatchLayout",
        summary="One HDF5 file a slide, `patches/<slide>.h5`",
        tool="AtlasPatch",
        loses="columns",
        requires=("h5py",),
        install=_H5PY,
    )
    yield LayoutSpec(
        name="trident",
        target="microtome_layouts.trident:TridentLayout",
        summary="A folder a tiling, in it `patches/` and `features_<encoder>/`",
        tool="TRIDENT",
        loses="columns; the level that is read; tiles that are not square at level 0",
        requires=("h5py",),
        install=_H5PY,
    )
    yield LayoutSpec(
        name="clam",
        target="microtome_layouts.clam:ClamLayout",
        summary="`patches/`, and of each encoder `h5_files/` and `pt_files/`",
        config=ClamConfig,
        tool="CLAM",
        loses="columns; µm per pixel; what tiles were resampled to; their stride; tiles that are "
        "not square at the level that is read",
        requires=("h5py",),
        install=_H5PY,
    )
    yield LayoutSpec(
        name="stamp",
        target="microtome_layouts.stamp:StampLayout",
        summary="One HDF5 file a slide and encoder, coordinates in µm",
        tool="STAMP",
        loses="columns; precision of features (float16); slides without features or without mpp; "
        "the level that is read; tiles that are not square",
        requires=("h5py",),
        install=_H5PY,
    )
    yield LayoutSpec(
        name="slide2vec",
        target="microtome_layouts.slide2vec:Slide2vecLayout",
        summary="hs2p's coordinates in `tiles/`, and of each encoder `tile_embeddings/`",
        config=Slide2vecConfig,
        tool="slide2vec",
        loses="columns but the share of tissue; slides without mpp; tiles that are not square at "
        "the level that is read",
    )
    yield LayoutSpec(
        name="lazyslide",
        target="microtome_layouts.lazyslide:LazyslideLayout",
        summary="SpatialData, a store a slide: shapes `tiles`, `tissues`, tables `<encoder>_tiles`",
        tool="LazySlide",
        loses="slides without tiles; tiles that are not square at the level that is read",
        requires=("spatialdata",),
        install="pip install 'microtome[spatialdata]'",
    )
    yield LayoutSpec(
        name="index_pickle",
        target="microtome_layouts.index_pickle:IndexPickleLayout",
        summary="One pickle of all slides, `index_level_N.pkl`: where tiles are, which are tumour",
        config=IndexPickleConfig,
        tool="the pickled index",
        loses="features; columns but the label, and of that which tumour; tiles without a label; "
        "slides whose tiles are not labelled, not square, or off the pixels of a halved level",
    )
    yield LayoutSpec(
        name="qupath",
        target="microtome_layouts.qupath:QupathLayout",
        summary="A GeoJSON a slide that QuPath opens: tissue, tiles, predictions; export only",
        config=QupathConfig,
        tool="QuPath",
        loses="features; the size that tiles are resampled to",
    )
