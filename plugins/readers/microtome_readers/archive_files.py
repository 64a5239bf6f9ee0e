"""What tile archives say of themselves: microtome's own, and slide2vec's with their sidecars."""

from __future__ import annotations

import hashlib
import json
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from microtome.errors import MicrotomeError, SlideOpenError
from microtome.slide.types import Resolution, SlideInfo, TileGeometry
from microtome.store.archives import is_archive, read_archive
from microtome.store.exchange import make_geometry, make_info, read_geometry, read_info

_META, _ARRAYS = ".coordinates.meta.json", ".coordinates.npz"
_DAMAGE = (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile, zlib.error)
"""What json and numpy raise for files that are cut short or of another kind."""

_KEPT = ("wsi_path", "identity", "institution", "stain")
"""Attributes that stay with what is made of an archive."""


@dataclass(frozen=True, eq=False, kw_only=True)
class HeldTiles:
    """A slide's tiles in a file.

    Attributes:
        points: (n, 2) int64 ``x, y`` in level-0 pixels of the slide, sorted by (y, x).
        offsets: (n,) int64, of each image's first byte.
        sizes: (n,) int64, of each image in bytes.
        checksums: (n,) int64, CRC-32 of each image; None where nobody wrote them down.
        geometry: Of the tiles, as they were made.
        info: What is known of the slide.
        properties: What else is told of it.
    """

    points: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    checksums: NDArray[np.int64] | None
    geometry: TileGeometry
    info: SlideInfo
    properties: dict[str, str]

    @property
    def digest(self) -> str:
        """A hash over where the tiles lie, how large they are, and what is known of the images."""
        found = hashlib.sha256(repr(self.geometry).encode())
        for each in (self.points, self.sizes, self.checksums):
            found.update(b"" if each is None else each.astype("<i8").tobytes())
        return found.hexdigest()


def read_tiles(path: Path) -> HeldTiles:
    """Read where an archive's tiles lie.

    Raises:
        SlideOpenError: If it is none, or is damaged.
    """
    try:
        return _own(path) if is_archive(path) else _of_slide2vec(path)
    except SlideOpenError:
        raise
    except MicrotomeError as error:
        raise SlideOpenError(str(error)) from error


def _own(path: Path) -> HeldTiles:
    archive = read_archive(path)
    attributes = archive.attributes
    return HeldTiles(
        points=archive.coords[:, :2].astype(np.int64),
        offsets=archive.offsets,
        sizes=archive.sizes,
        checksums=archive.checksums,
        geometry=read_geometry(attributes, str(path)),
        info=read_info(attributes),
        properties={
            f"archive.{name}": str(attributes[name]) for name in _KEPT if name in attributes
        },
    )


def is_tile_archive(path: Path) -> bool:
    """Tell an archive by its first bytes, or slide2vec's by what lies beside it."""
    return is_archive(path) or all(file.is_file() for file in (path, *_sidecars(path)))


def _sidecars(path: Path) -> tuple[Path, Path]:
    base = path.name.removesuffix(".tar").removesuffix(".tiles")
    return path.with_name(f"{base}{_META}"), path.with_name(f"{base}{_ARRAYS}")


def _of_slide2vec(path: Path) -> HeldTiles:
    sidecar, arrays = _sidecars(path)
    if not is_tile_archive(path):
        raise SlideOpenError(
            f"it is no tile archive of microtome, nor of slide2vec with {sidecar.name} and "
            f"{arrays.name} beside it"
        )
    try:
        meta = json.loads(sidecar.read_text("utf-8"))
        with arrays.open("rb") as file, np.load(file, allow_pickle=False) as held:
            points = np.stack([held[axis] for axis in "xy"], axis=1).astype(np.int64)
        geometry, info = _described(meta)
    except _DAMAGE as error:
        raise SlideOpenError(
            f"its sidecars {sidecar.name} and {arrays.name} cannot be read ({error!r})"
        ) from error
    offsets, sizes = _members(path)
    if len(offsets) != len(points):
        raise SlideOpenError(
            f"it holds {len(offsets)} images, and {arrays.name} beside it {len(points)} tiles"
        )
    order = np.lexsort((points[:, 0], points[:, 1]))
    return HeldTiles(
        points=points[order],
        offsets=offsets[order],
        sizes=sizes[order],
        checksums=None,
        geometry=geometry,
        info=info,
        properties={},
    )


def _described(meta: dict[str, Any]) -> tuple[TileGeometry, SlideInfo]:
    """Read a sidecar; its level is the slide's, and tiles in an archive have their last size."""
    tiling, slide = meta["tiling"], meta["slide"]
    mpp = float(slide["base_spacing_um"])
    resolution = Resolution(mpp_x=mpp, mpp_y=mpp, mpp_source="hs2p")
    width, height = map(int, slide["dimensions"])
    geometry = make_geometry(
        int(tiling["requested_tile_size_px"]),
        float(tiling["tile_size_lv0"]),
        step_level0=float(tiling["step_px_lv0"]),
        target=(float(tiling["requested_spacing_um"]), None),
        resolution=resolution,
    )
    return geometry, make_info((width, height), resolution)


def _members(path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """List the images, ordered by name as slide2vec counts them: where each begins, its size."""
    try:
        with tarfile.open(path, "r:") as tar:
            found = sorted((m for m in tar.getmembers() if m.isfile()), key=lambda m: m.name)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise SlideOpenError(f"it is cut short or damaged ({error})") from error
    places = np.array([(m.offset_data, m.size) for m in found], np.int64).reshape(-1, 2)
    if places.sum(axis=1).max(initial=0) > path.stat().st_size:
        raise SlideOpenError("it is cut short: its last image is not all there")
    return places[:, 0], places[:, 1]
