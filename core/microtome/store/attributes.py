"""The attributes of a store: plain values that any HDF5 or JSON reader shows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.errors import StoreError
from microtome.store.atomic import wrap_errors
from microtome.store.identity import IDENTITY_FIELDS, make_identity

if TYPE_CHECKING:
    from microtome.plugin.protocols import PatchWriter, TileWriter
    from microtome.plugin.specs import WriterSpec

FOLDER_RECORD = ".microtome.json"
"""In a folder of images: the attributes that a store would carry."""

BY_CLASS = "classes"
"""Layout of a writer whose images lie in folders by class."""

ATTRIBUTES_DIGEST = "attributes_sha256"
"""Attribute of every output: a hash over the others, since few formats guard theirs."""


def plain_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Convert attributes to values that every store can hold, so that all hold the same.

    Numbers, booleans and text stay; a flat list of numbers stays a list; ``None`` and numbers
    that are not finite become text (``"None"``, ``"nan"``); mappings and other lists become
    JSON.
    """
    return {name: _plain(value) for name, value in attributes.items()}


def sealed(attributes: Mapping[str, Any], columns: Iterable[str] = ()) -> dict[str, Any]:
    """Add the hash over them, and over the names of a slide's columns, to attributes."""
    return {**attributes, ATTRIBUTES_DIGEST: attributes_digest(attributes, columns)}


def attributes_digest(attributes: Mapping[str, Any], columns: Iterable[str] = ()) -> str:
    """Hash attributes, the same before they are stored and as any store gives them back."""
    others = {name: value for name, value in attributes.items() if name != ATTRIBUTES_DIGEST}
    fields = {"attributes": plain_attributes(others), "columns": sorted(columns)}
    return make_identity("attributes", fields).digest


def parse_fields(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Read what an identity was made of out of attributes; empty where they do not say."""
    return parse_json(attributes.get(IDENTITY_FIELDS))


def parse_json(value: object) -> dict[str, Any]:
    """Read a mapping that a store may have kept as JSON text; empty where it is none."""
    if isinstance(value, Mapping):
        return dict(value)
    try:
        found = json.loads(str(value))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def parse_list(value: object) -> list[Any]:
    """Read a list that a store may have kept as JSON text; empty where it is none."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return []
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []


def write_folder_record(folder: Path, attributes: Mapping[str, Any]) -> None:
    """Write the attributes of a folder of images into it, as the last of its files.

    Raises:
        StoreError: If it cannot be written.
    """
    text = json.dumps(plain_attributes(attributes), indent=2, ensure_ascii=False)
    with wrap_errors(folder):
        (folder / FOLDER_RECORD).write_text(f"{text}\n", "utf-8")


def read_folder_record(folder: Path) -> dict[str, Any] | None:
    """Read the attributes of a folder of images; None where there is no such folder.

    Raises:
        StoreError: If the folder is there without a readable record.
    """
    return read_record_file(folder, folder / FOLDER_RECORD) if folder.exists() else None


def read_record_file(of: Path, file: Path) -> dict[str, Any]:
    """Read what `write_folder_record` wrote.

    Args:
        of: What it is the record of, for the message.
        file: The record.

    Raises:
        StoreError: If it cannot be read.
    """
    try:
        record = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{of} is not a folder of tile images that microtome wrote, or is damaged: "
            f"{file.name} cannot be read. Move it away, or use force=true."
        ) from error
    return dict(record)


def read_images_record(
    path: Path, spec: WriterSpec, writer: TileWriter | PatchWriter
) -> Mapping[str, Any]:
    """Read the attributes of a slide's tile images; empty where there are none.

    Args:
        path: The folder, or the file; of images in folders by class the record.
        spec: Of who wrote it.
        writer: Who wrote it.

    Raises:
        StoreError: If something else is there.
    """
    if spec.layout == "directory":
        return read_folder_record(path) or {}
    if not path.exists():
        return {}
    return read_record_file(path, path) if spec.layout == BY_CLASS else writer.read_record(path)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bool | int):
        return value
    if value is None or isinstance(value, str | Path):
        return _text(str(value))
    if _is_numbers(value):
        return list(value)
    return _text(json.dumps(value, ensure_ascii=False, default=_jsonable))


def _jsonable(value: Any) -> Any:
    """Give what JSON has for a value that it does not know."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(
        f"an attribute holds {type(value).__name__}, which has no plain form: {value!r}"
    )


def _text(value: str) -> str:
    """Replace what UTF-8 (a file name that is not) or HDF5 (a NUL) cannot hold."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace").replace("\0", "")


def _is_numbers(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and bool(value)
        and all(isinstance(v, int | float) and math.isfinite(v) for v in value)
    )
