"""Folders of tile images by class, all slides together, as loaders of image folders read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import StoreError
from microtome.store.attributes import parse_list, read_record_file
from microtome.store.classes import class_folders, images_folder
from microtome.store.damage import image_damage
from microtome.store.patches import CLASSES, flat_id, tile_key
from microtome_writers import ImageFolderConfig
from microtome_writers.images import Codec, damaged, decode
from microtome_writers.stored import Patches

_SUFFIXES = ("png", "jpg")


class ImageFolderWriter:
    """Writes tiles as ``images/<class>/<slide>/<key>.png``."""

    def __init__(self, config: ImageFolderConfig) -> None:
        self._codec = Codec("imagefolder", config)

    def open(self, path: Path, slide_id: str, attributes: Mapping[str, Any]) -> ImageFolderSink:
        """Begin one slide at a path that does not exist yet.

        Args:
            path: The folder to make one for each class in.
            slide_id: The slide.
            attributes: Those of the slide; ``classes`` among them.

        Raises:
            StoreError: If a class has a name that no folder can have.
        """
        path.mkdir()
        classes = [str(name) for name in parse_list(attributes[CLASSES])]
        for name in classes:
            if name.startswith(".") or not name.strip() or {"/", "\\", "\0"} & {*name}:
                raise StoreError(
                    f"The class {name!r} cannot be the name of a folder. Name the classes "
                    "otherwise (labels.classes), or use writer=lmdb, patches or webdataset."
                )
        return ImageFolderSink(path, slide_id, classes, self._codec)

    def open_patches(self, path: Path) -> ImageFolderPatches:
        """Open a finished slide by its record."""
        if not path.is_file():
            raise StoreError(f"{path} is not there: that slide is not in these folders.")
        return ImageFolderPatches(path, read_record_file(path, path))

    def read_record(self, path: Path) -> Mapping[str, Any]:
        """Give back the record."""
        return read_record_file(path, path)

    def damage(self, path: Path, *, deep: bool) -> Iterator[str]:
        """Say what is wrong with the images; with ``deep`` every one is read."""
        patches = self.open_patches(path)
        wanted = {patches.find(row) for row in range(len(patches))}
        folders = class_folders(path, patches.slide_id).values()
        there = {file for folder in folders for file in folder.iterdir()}
        if lost := sorted(wanted - there):
            yield f"{len(lost)} of {len(wanted)} images are missing, {lost[0]} for one"
        if more := sorted(there - wanted):
            yield f"{len(more)} images belong to no tile, {more[0]} for one"
        for file in sorted(wanted & there) if deep else ():
            if wrong := image_damage(file):
                yield f"{file.name}: {wrong}"


class ImageFolderSink:
    """Takes the tiles of one slide."""

    def __init__(self, folder: Path, slide_id: str, classes: list[str], codec: Codec) -> None:
        self._folder, self._slide_id, self._classes = folder, slide_id, classes
        self._codec = codec

    def write(
        self, coords: NDArray[np.int32], pixels: NDArray[np.uint8], labels: NDArray[np.int16]
    ) -> None:
        """Write tiles.

        Args:
            coords: (n, 5) ``x, y, read_w, read_h, level``.
            pixels: (n, h, w, 3).
            labels: (n,) index into the classes.
        """
        places = zip(coords[:, :2].tolist(), pixels, labels.tolist(), strict=True)
        for (x, y), tile, label in places:
            folder = self._folder / self._classes[label]
            folder.mkdir(exist_ok=True)
            name = f"{tile_key(self._slide_id, x, y)}.{self._codec.suffix}"
            (folder / name).write_bytes(self._codec.encode(tile))

    def close(self) -> None:
        """Finish: every image is a file of its own, written already."""


class ImageFolderPatches(Patches):
    """The tiles of one slide in folders by class."""

    def __init__(self, path: Path, record: Mapping[str, Any]) -> None:
        super().__init__(path, record)
        self._images = images_folder(path, self.slide_id)
        kinds = [s for s in _SUFFIXES if len(self) and self._file(0, s).exists()]
        self._suffix = (kinds or _SUFFIXES)[0]

    def find(self, row: int) -> Path:
        """Give the file of a tile."""
        return self._file(row, self._suffix)

    def close(self) -> None:
        """Release nothing: no file stays open."""

    def _file(self, row: int, suffix: str) -> Path:
        folder: Path = self._images / self.classes[self.labels[row]] / flat_id(self.slide_id)
        return folder / f"{self.keys[row]}.{suffix}"

    def _read(self, row: int) -> NDArray[np.uint8]:
        file = self.find(row)
        try:
            data = file.read_bytes()
        except OSError as error:
            raise damaged(str(file), error.strerror or str(error)) from error
        return decode(data, str(file))
