"""Tile archives: a slide's tile images in one tar file, found by an index that comes first.

The index is a member of its own, JSON: what a folder of images keeps in its record, where each tile
lies on the slide, and where its image lies in the file. The images follow in the order of the
tiles, so that the file can be streamed as well as read at any place.
"""

from __future__ import annotations

import json
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from microtome.errors import StoreError
from microtome.store.attributes import plain_attributes

INDEX = "__microtome__/index.json"
"""Name of the first member. WebDataset passes over what lies in a folder of such a name."""

FORMAT, VERSION = "microtome tile archive", 1

_AGAIN = "Delete it and run again what made it."
_BLOCK = tarfile.BLOCKSIZE
_MODE = 0o644  # the only thing besides name and size that differs from zero in a header


@dataclass(frozen=True, kw_only=True)
class TileImage:
    """An image that an archive is to hold.

    Attributes:
        name: Of the member.
        size: In bytes.
        checksum: CRC-32 of these bytes.
        beside: Members that follow it, by name: what else WebDataset gives of the sample.
    """

    name: str
    size: int
    checksum: int
    beside: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, kw_only=True)
class TileArchive:
    """What the index of an archive says.

    Attributes:
        attributes: What a folder of images would keep, without ``coords``.
        coords: (n, 5) int32 ``x, y, read_w, read_h, level`` on the slide.
        offsets: (n,) int64, of each image's first byte in the file.
        sizes: (n,) int64, of each image in bytes.
        checksums: (n,) int64, CRC-32 of these bytes.
    """

    attributes: Mapping[str, Any]
    coords: NDArray[np.int32]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    checksums: NDArray[np.int64]

    @property
    def record(self) -> dict[str, Any]:
        """What `write_archive` was given, as a store gives attributes back."""
        return {**self.attributes, "coords": json.dumps(self.coords.tolist())}


def write_archive(
    path: Path,
    attributes: Mapping[str, Any],
    images: Sequence[TileImage],
    read: Callable[[int], bytes],
) -> None:
    """Write an archive. The same tiles and attributes give the same bytes.

    Args:
        path: Does not exist yet.
        attributes: What a folder of images would keep, with ``coords``, a list of rows.
        images: One for each row, in their order.
        read: Gives the bytes of an image by its number.
    """
    headers = [_header(image.name, image.size) for image in images]
    lengths = (
        len(head)
        + _padded(image.size)
        + sum(_BLOCK + _padded(len(b)) for b in image.beside.values())
        for head, image in zip(headers, images, strict=True)
    )
    starts = accumulate(lengths, initial=0)
    plain = plain_attributes({n: v for n, v in attributes.items() if n != "coords"})
    index = {
        "format": FORMAT,
        "version": VERSION,
        "coords": attributes["coords"],
        # Counted from the first byte behind this member, whose own size they would change.
        "offsets": [start + len(head) for start, head in zip(starts, headers, strict=False)],
        "sizes": [image.size for image in images],
        "crc32": [image.checksum for image in images],
        "attributes": plain,
    }
    text = json.dumps(index, ensure_ascii=False, allow_nan=False).encode()
    with path.open("xb") as file:
        _put(file, _header(INDEX, len(text)), text)
        for number, (header, image) in enumerate(zip(headers, images, strict=True)):
            _put(file, header, read(number))
            for name, data in image.beside.items():
                _put(file, _header(name, len(data)), data)
        file.write(bytes(2 * _BLOCK))


def read_archive(path: Path) -> TileArchive:
    """Read an archive's index, and see that the file is as long as that says.

    Raises:
        StoreError: If it is no archive of microtome's, or is cut short or damaged.
    """
    try:
        with path.open("rb") as file:
            index, first = _read_index(file)
            length = file.seek(0, os.SEEK_END)
        archive = _parse(index, first)
    except (OSError, tarfile.TarError) as error:
        raise StoreError(f"{path} is no tile archive of microtome ({error}). {_AGAIN}") from error
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise StoreError(
            f"{path} is damaged: its index cannot be read ({reason}). {_AGAIN}"
        ) from error
    ends = archive.offsets + archive.sizes
    if length < int(ends.max(initial=first)) + 2 * _BLOCK:
        raise StoreError(
            f"{path} is cut short: it has {length:,} bytes, and its index tells of more. {_AGAIN}"
        )
    return archive


def archive_damage(
    path: Path, *, deep: bool, beside: Sequence[Mapping[str, bytes]] = ()
) -> Iterator[str]:
    """Compare an archive with its index.

    Args:
        path: The archive.
        deep: Whether every image is read and compared with its checksum.
        beside: What follows each image, if anything does: as of `TileImage`.

    Yields:
        What is wrong, half a sentence each.

    Raises:
        StoreError: As `read_archive` does.
    """
    archive = read_archive(path)
    try:
        with tarfile.open(path, "r:") as tar:
            _, *members = tar.getmembers()
    except (tarfile.TarError, OSError, EOFError) as error:
        yield f"it is cut short or damaged: {error}"
        return
    by_name = {name: data for each in beside for name, data in each.items()}
    others = [member for member in members if member.name in by_name]
    if len(others) != len(by_name):
        yield f"it lacks {len(by_name) - len(others)} of {len(by_name)} labels and places"
        return
    members = [member for member in members if member.name not in by_name]
    found = [(member.offset_data, member.size) for member in members]
    told = list(zip(archive.offsets.tolist(), archive.sizes.tolist(), strict=True))
    if found != told:
        yield f"its {len(found)} images are not those that its index tells of"
        return
    names = [Path(member.name).stem for member in members]
    for name, (x, y) in zip(names, archive.coords[:, :2].tolist(), strict=True):
        if not name.endswith((f"_{x}_{y}", f"_x{x}_y{y}")):
            yield f"the image of the tile at ({x}, {y}) has the name {name!r}"
    if deep:
        with path.open("rb") as file:
            for number, member in enumerate(members):
                file.seek(member.offset_data)
                if zlib.crc32(file.read(member.size)) != archive.checksums[number]:
                    yield f"{member.name}: it is damaged, its content and its checksum differ"
            for member in others:
                file.seek(member.offset_data)
                if file.read(member.size) != by_name[member.name]:
                    yield f"{member.name}: it is damaged, or is not of that tile"


def is_archive(path: Path) -> bool:
    """Tell by its first bytes whether a file was begun as an archive of microtome's."""
    try:
        with path.open("rb") as file:
            return tarfile.TarInfo.frombuf(file.read(_BLOCK), "utf-8", "replace").name == INDEX
    except (OSError, tarfile.TarError):
        return False


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, _MODE
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _put(file: BinaryIO, header: bytes, data: bytes) -> None:
    file.write(header)
    file.write(data)
    file.write(bytes(_padded(len(data)) - len(data)))


def _read_index(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """Read the index, and say where the first byte behind it is."""
    info = tarfile.TarInfo.frombuf(file.read(_BLOCK), "utf-8", "surrogateescape")
    if info.name != INDEX:
        raise tarfile.TarError(f"its first member is not {INDEX}")
    text = file.read(info.size)
    if len(text) < info.size:
        raise ValueError("it is cut short")
    index = json.loads(text)
    if index["format"] != FORMAT or index["version"] > VERSION:
        raise ValueError(f"it is of format {index['format']} {index['version']}, newer than this")
    return index, _BLOCK + _padded(info.size)


def _parse(index: Mapping[str, Any], first: int) -> TileArchive:
    coords = np.asarray(index["coords"], np.int32).reshape(-1, 5)
    offsets, sizes, checksums = (
        np.asarray(index[name], np.int64).reshape(len(coords))
        for name in ("offsets", "sizes", "crc32")
    )
    if (offsets < 0).any() or (sizes < 0).any():
        raise ValueError("an image begins before the first")
    return TileArchive(
        attributes=dict(index["attributes"]),
        coords=coords,
        offsets=offsets + first,
        sizes=sizes,
        checksums=checksums,
    )
