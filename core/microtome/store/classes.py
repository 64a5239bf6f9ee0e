"""Publish a slide's images into folders by class, which all slides share.

::

    images/<class>/<slide>/<key>.png     what loaders of image folders read, at any time
    slides/<slide>.json                  the record: whose images are all there

The record is written last and removed first: while it is there, all images of its slide are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from microtome.errors import StoreError
from microtome.store.atomic import (
    flush,
    flush_folder,
    private_path,
    publish,
    remove,
    take_turn,
    wrap_errors,
)
from microtome.store.attributes import BY_CLASS, FOLDER_RECORD
from microtome.store.folders import rename_new
from microtome.store.patches import flat_id

if TYPE_CHECKING:
    from microtome.plugin.specs import WriterSpec

IMAGES = "images"


def images_folder(record: Path, slide_id: str) -> Path:
    """Say where the folders by class are of which a slide has some.

    Args:
        record: The slide's record: `OutputLayout.slide` of the writer.
        slide_id: The slide.
    """
    return record.parents[slide_id.count("/")].with_name(IMAGES)


def class_folders(record: Path, slide_id: str) -> dict[str, Path]:
    """Find a slide's folders, by class."""
    images, name = images_folder(record, slide_id), flat_id(slide_id)
    if not images.is_dir():
        return {}
    found = {each.name: each / name for each in sorted(images.iterdir())}
    return {of: folder for of, folder in found.items() if folder.is_dir()}


def publish_images(final: Path, spec: WriterSpec, slide_id: str) -> AbstractContextManager[Path]:
    """Write a slide's images under a private name and publish them as their writer's spec says.

    Args:
        final: `OutputLayout.slide` of the writer.
        spec: The writer.
        slide_id: The slide.
    """
    if spec.layout == BY_CLASS:
        return publish_classes(final, slide_id)
    return publish(final, layout=spec.layout)


@contextmanager
def publish_classes(record: Path, slide_id: str) -> Iterator[Path]:
    """Write a slide's images under a private name and publish them when the block ends.

    A folder of images is complete when it appears. Killed between two of them, the slide has no
    record, and the next run makes it again. What the slide had before gives way, also in classes
    that it has no tile of any more. If the block raises, nothing is published.

    Args:
        record: The final name of its record.
        slide_id: The slide.

    Yields:
        A path that does not exist yet, for the block to make a folder of: in it one folder for each
        class with tiles, and the record as `write_folder_record` writes it.

    Raises:
        StoreError: If it cannot be published, or the block wrote no record.
    """
    images = images_folder(record, slide_id)
    with wrap_errors(record):
        record.parent.mkdir(parents=True, exist_ok=True)
        images.mkdir(parents=True, exist_ok=True)
    private, old = private_path(record), private_path(record)
    try:
        yield private
        if not (private / FOLDER_RECORD).is_file():
            raise StoreError(f"{record} was not written: no record was left at its private path.")
        with wrap_errors(record):
            flush(private)
            with take_turn(images):
                _clear(record, slide_id, old)
                _move_in(private, images, flat_id(slide_id))
                os.replace(private / FOLDER_RECORD, record)  # noqa: PTH105 - as publish does
            flush_folder(record.parent)
    finally:
        remove(private)
        remove(old)


def _clear(record: Path, slide_id: str, old: Path) -> None:
    """Take away what a slide has: its record first, then its folders, each whole."""
    if record.exists():
        record.unlink()
        flush_folder(record.parent)
    old.mkdir()
    for of, folder in class_folders(record, slide_id).items():
        folder.rename(old / of)
        with suppress(OSError):  # others have tiles of that class
            folder.parent.rmdir()


def _move_in(private: Path, images: Path, name: str) -> None:
    for folder in sorted(each for each in private.iterdir() if each.is_dir()):
        (images / folder.name).mkdir(exist_ok=True)
        rename_new(folder, images / folder.name / name)
        flush_folder(images / folder.name)
    flush_folder(images)
