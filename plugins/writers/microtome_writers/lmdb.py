"""An LMDB environment of labelled tile images a slide, one file.

Behind LMDB's pages, which know nothing of it, the file ends in the record and checksums: the tree
is memory-mapped, and a damaged one would end the process that looks into it.
"""

from __future__ import annotations

import errno
import json
import os
import struct
import tempfile
import threading
import weakref
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from numpy.typing import NDArray

from microtome.errors import StoreError
from microtome.store.attributes import plain_attributes
from microtome.store.patches import PatchRecord
from microtome_writers import LmdbConfig
from microtome_writers.images import Codec, Place, Scratch, ScratchSink, damaged, decode
from microtome_writers.stored import Patches

INDEX = "__microtome__"
"""Key of what an environment holds, as JSON: keys, labels, coords, classes and attributes."""

_PAGE = 4096
_COMMIT_BYTES = 64 << 20
"""After so much a transaction ends, since it holds in memory what it writes."""

_FOOTER = struct.Struct("<8sQQII")
"""Magic, sizes of LMDB's pages and of the record behind them, and the CRC-32 of each."""

_MAGIC = b"MTpatch1"
_BLOCK = 1 << 20


class LmdbWriter:
    """Writes tiles as images by key."""

    def __init__(self, config: LmdbConfig) -> None:
        self._codec = Codec("lmdb", config)

    def open(self, path: Path, slide_id: str, attributes: Mapping[str, Any]) -> ScratchSink:
        """Begin one slide at a path that does not exist yet."""
        return ScratchSink(path, self._codec.encode, partial(_finish, path))

    def open_patches(self, path: Path) -> LmdbPatches:
        """Open a finished slide."""
        return LmdbPatches(path)

    def read_record(self, path: Path) -> Mapping[str, Any]:
        """Give back what the sink was given to record."""
        record: dict[str, Any] = _read_end(path)["record"]
        return record

    def damage(self, path: Path, *, deep: bool) -> Iterator[str]:
        """Say what is wrong with the images; with ``deep`` every one is read."""
        _read_end(path)
        if not deep:
            return
        if not _is_whole(path):
            yield "its pages and their checksum differ"
            return
        with self.open_patches(path) as patches:
            wanted = {key.encode() for key in patches.keys} | {INDEX.encode()}
            shared = _share(path)  # held while it is looked into
            with shared.environment.begin() as view:
                there = set(view.cursor().iternext(keys=True, values=False))
            if wanted != there:
                more, lost = len(there - wanted), len(wanted - there)
                yield f"it holds {more} entries too many and lacks {lost}"
                return
            for row in range(len(patches)):
                patches.read([row])


class LmdbPatches(Patches):
    """The tiles of one slide in an LMDB environment."""

    _shared: _Shared | None = None

    def __init__(self, path: Path) -> None:
        end = _read_end(path)
        super().__init__(path, end["record"])
        self._checksums = end["crc32"]

    def close(self) -> None:
        """Release the file; the next `read` opens it again."""
        self._shared = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shared": None}

    def _read(self, row: int) -> NDArray[np.uint8]:
        shared = self._shared = self._shared or _share(self.path)
        key = self.keys[row]
        what = f"{key} in {self.path}"
        try:
            with shared.environment.begin() as view:
                data = view.get(key.encode())
        except lmdb.Error as error:
            raise damaged(what, str(error)) from error
        if data is None or zlib.crc32(data) != self._checksums[row]:
            raise damaged(what, "its content and its checksum differ")
        return decode(data, what)


class _Shared:
    """An environment that is open: LMDB opens a file once a process, and its children have it."""

    def __init__(self, path: Path) -> None:
        try:
            self.environment = lmdb.open(
                os.fspath(path), subdir=False, readonly=True, lock=False, readahead=False
            )
        except lmdb.Error as error:
            raise StoreError(_not_ours(path, str(error))) from error
        weakref.finalize(self, self.environment.close)


_OPEN: weakref.WeakValueDictionary[tuple[int, int], _Shared] = weakref.WeakValueDictionary()
_LOCK = threading.Lock()


def _share(path: Path) -> _Shared:
    """Open an environment, or give it if it is open; by what it is, since a path is renewed."""
    try:
        found = path.stat()
    except OSError as error:
        raise StoreError(_not_ours(path, error.strerror or str(error))) from error
    with _LOCK:
        key = (found.st_dev, found.st_ino)
        shared = _OPEN.get(key)
        if shared is None:
            shared = _OPEN[key] = _Shared(path)
        return shared


def _finish(
    path: Path, attributes: Mapping[str, Any], places: list[Place], scratch: Scratch
) -> None:
    told = PatchRecord.parse(attributes, path)
    record = plain_attributes(attributes)
    index = _dumps({**record, "keys": list(told.keys), "coords": told.coords.tolist()})
    images = sorted((key.encode(), at) for key, at in zip(told.keys, places, strict=True))
    try:
        _write_pages(path, images, index, scratch)
    except lmdb.Error as error:
        _ask_for_space(path.parent, sum(map(scratch.size, places)))
        raise OSError(errno.EIO, str(error)) from error
    checksums = [scratch.checksum(place) for place in places]
    _write_end(path, _dumps({"record": record, "crc32": checksums}))


def _write_pages(
    path: Path, images: list[tuple[bytes, Place]], index: bytes, scratch: Scratch
) -> None:
    sizes = [scratch.size(place) for _, place in images]
    # Of the address space alone: room for the tree, and for pages that a later transaction leaves.
    most = 2 * (sum(sizes) + (len(sizes) + 1) * 4 * _PAGE + len(index)) + (16 << 20)
    environment = lmdb.open(
        os.fspath(path), subdir=False, map_size=-(-most // _PAGE) * _PAGE, lock=False, sync=False
    )
    try:
        todo = iter(images)
        while part := _some(todo, scratch):
            with environment.begin(write=True) as change:
                for key, place in part:
                    change.put(key, scratch.get(place), append=True)
        with environment.begin(write=True) as change:
            change.put(INDEX.encode(), index)
        environment.sync(True)
    finally:
        environment.close()


def _ask_for_space(folder: Path, size: int) -> None:
    """Have the system say what is wrong, where LMDB takes a short write for a broken disk.

    Raises:
        OSError: If there is no space, or no leave, for so many bytes.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, max(1, size))


def _some(images: Iterator[tuple[bytes, Place]], scratch: Scratch) -> list[tuple[bytes, Place]]:
    """Take images for one transaction."""
    part, size = [], 0
    for key, place in images:
        part.append((key, place))
        size += scratch.size(place)
        if size >= _COMMIT_BYTES:
            break
    return part


def _write_end(path: Path, text: bytes) -> None:
    size = path.stat().st_size
    footer = _FOOTER.pack(_MAGIC, size, len(text), _crc(path, size), zlib.crc32(text))
    with path.open("ab") as file:
        file.write(text)
        file.write(footer)


def _read_end(path: Path) -> dict[str, Any]:
    """Read the record and the checksums of the images, and see that the file is whole."""
    try:
        with path.open("rb") as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - _FOOTER.size))
            magic, pages, size, _, checksum = _FOOTER.unpack(file.read(_FOOTER.size))
            if magic != _MAGIC or pages + size + _FOOTER.size != length:
                raise StoreError(_not_ours(path, "it does not end as one"))
            file.seek(pages)
            text = file.read(size)
        if zlib.crc32(text) != checksum:
            raise StoreError(_not_ours(path, "its record and its checksum differ"))
        found: dict[str, Any] = json.loads(text)
    except (OSError, ValueError, struct.error) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(_not_ours(path, str(error))) from error
    return found


def _is_whole(path: Path) -> bool:
    """Compare LMDB's pages with their checksum."""
    with suppress(OSError), path.open("rb") as file:
        file.seek(-_FOOTER.size, os.SEEK_END)
        _, pages, _, checksum, _ = _FOOTER.unpack(file.read(_FOOTER.size))
        return _crc(path, pages) == int(checksum)
    return False


def _crc(path: Path, size: int) -> int:
    checksum, left = 0, size
    with path.open("rb") as file:
        while left and (block := file.read(min(left, _BLOCK))):
            checksum, left = zlib.crc32(block, checksum), left - len(block)
    return checksum


def _dumps(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


def _not_ours(path: Path, reason: str) -> str:
    return (
        f"{path} is not an environment of labelled tiles that microtome stored, or is damaged: "
        f"{reason}. Move it away, or use force=true."
    )
