"""Writers: HDF5 and Zarr stores, tile images, patch stores of labelled tiles. Cheap to import."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from microtome.plugin import WriterSpec, hookimpl, option, runtime


class Hdf5Compression(Enum):
    """Filters that every HDF5 library can read."""

    none = "none"
    gzip = "gzip"
    lzf = "lzf"


class ZarrCompression(Enum):
    """Codecs that every Zarr library can read."""

    none = "none"
    zstd = "zstd"
    gzip = "gzip"


class TileFormat(Enum):
    """What tiles are kept as."""

    png = "png"
    jpeg = "jpeg"


@dataclass
class Hdf5Config:
    """Options of the ``hdf5`` writer."""

    compression: Hdf5Compression = runtime(
        Hdf5Compression.none,
        help="none, gzip or lzf. Features hardly shrink, and plain ones read fastest.",
    )
    passports: bool = option(
        False,
        help="Also write the dataset `passports`, one line of text a tile, for old readers.",
    )


@dataclass
class ZarrConfig:
    """Options of the ``zarr`` writer."""

    compression: ZarrCompression = runtime(
        ZarrCompression.none,
        help="none, zstd or gzip. Features hardly shrink, and plain ones read fastest.",
    )
    shard_mb: int = runtime(
        64, help="Size of a file in MiB: one holds many chunks. A shard is held in memory once."
    )
    passports: bool = option(
        False,
        help="Also write the array `passports`, 160 bytes of text a tile, as HDF5's.",
    )


@dataclass
class PngConfig:
    """Options of the ``png`` writer."""

    compression_level: int = runtime(
        6, help="0 (large, fast) to 9 (small, slow). The pixels are the same."
    )


@dataclass
class ImageConfig:
    """How tiles become images."""

    format: TileFormat = option(
        TileFormat.png, help="png, which loses nothing, or jpeg, a tenth of the size."
    )
    quality: int = option(90, help="Of JPEG: 1 (small) to 95 (nearly as it was).")
    compression_level: int = runtime(
        6, help="Of PNG: 0 (large, fast) to 9 (small, slow). The pixels are the same."
    )


@dataclass
class TarConfig(ImageConfig):
    """Options of the ``tar`` writer."""


@dataclass
class ImageFolderConfig(ImageConfig):
    """Options of the ``imagefolder`` writer."""


@dataclass
class LmdbConfig(ImageConfig):
    """Options of the ``lmdb`` writer."""


@dataclass
class WebDatasetConfig(ImageConfig):
    """Options of the ``webdataset`` writer."""


@dataclass
class PatchesConfig:
    """Options of the ``patches`` writer."""

    compression: Hdf5Compression = runtime(
        Hdf5Compression.none,
        help="none, gzip or lzf. Plain pixels are read fastest; gzip takes about half the space.",
    )


@hookimpl
def microtome_writers() -> Iterator[WriterSpec]:
    """Register the built-in writers."""
    yield WriterSpec(
        name="hdf5",
        target="microtome_writers.hdf5:Hdf5Writer",
        summary="One HDF5 file a slide, in the layout that AtlasPatch's readers know",
        config=Hdf5Config,
        requires=("h5py",),
        install="pip install h5py",
        consumes="features",
        suffix=".h5",
        layout="file",
    )
    yield WriterSpec(
        name="zarr",
        target="microtome_writers.zarr:ZarrWriter",
        summary="One Zarr v3 group a slide, with the same content",
        config=ZarrConfig,
        requires=("zarr",),
        install="pip install 'zarr>=3.0.8'",
        consumes="features",
        suffix=".zarr",
        layout="directory",
    )
    yield WriterSpec(
        name="png",
        target="microtome_writers.png:PngWriter",
        summary="A folder of PNG tile images a slide",
        config=PngConfig,
        requires=("PIL",),
        install="pip install pillow",
        consumes="pixels",
        suffix="",
        layout="directory",
        folder="images",
        concurrent=True,
    )
    yield WriterSpec(
        name="tar",
        target="microtome_writers.archive:TarWriter",
        summary="A tar archive of tile images a slide, which is read like a slide",
        config=TarConfig,
        requires=("PIL",),
        install="pip install pillow",
        consumes="pixels",
        suffix=".tar",
        layout="file",
        folder="tiles",
        concurrent=True,
    )
    yield from _patch_stores()


def _patch_stores() -> Iterator[WriterSpec]:
    yield WriterSpec(
        name="imagefolder",
        target="microtome_writers.imagefolder:ImageFolderWriter",
        summary="Folders of labelled tile images by class, all slides together",
        config=ImageFolderConfig,
        requires=("PIL",),
        install="pip install pillow",
        suffix=".json",
        layout="classes",
        folder="imagefolder/slides",
        consumes="labelled pixels",
        concurrent=True,
    )
    yield WriterSpec(
        name="lmdb",
        target="microtome_writers.lmdb:LmdbWriter",
        summary="An LMDB environment of labelled tile images a slide",
        config=LmdbConfig,
        requires=("PIL", "lmdb"),
        install="pip install 'microtome[lmdb]'",
        suffix=".lmdb",
        layout="file",
        folder="lmdb",
        consumes="labelled pixels",
        concurrent=True,
    )
    yield WriterSpec(
        name="patches",
        target="microtome_writers.patches:PatchesWriter",
        summary="One HDF5 file of labelled tile images a slide: images, labels, coords, keys",
        config=PatchesConfig,
        requires=("PIL", "h5py"),
        install="pip install h5py pillow",
        suffix=".h5",
        layout="file",
        folder="labelled",
        consumes="labelled pixels",
        concurrent=True,
    )
    yield WriterSpec(
        name="webdataset",
        target="microtome_writers.webdataset:WebDatasetWriter",
        summary="A WebDataset shard of labelled tile images a slide",
        config=WebDatasetConfig,
        requires=("PIL",),
        install="pip install pillow",
        suffix=".tar",
        layout="file",
        folder="webdataset",
        consumes="labelled pixels",
        concurrent=True,
    )
