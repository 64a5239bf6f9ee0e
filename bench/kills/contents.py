"""Reads whatever labels, samples, trainings and predictions leave, by the library of its format.

None of it is microtome's own code. What is given back can be compared: it leaves out what tells of
a run, not of its result.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import lmdb
import numpy as np
import pyarrow.parquet as pq
import tifffile
import torch
from PIL import Image

from bench.kills.checks import OF_A_RUN, read_store

Contents = Mapping[str, Any]
"""What a file holds, by name: plain values, and digests of arrays."""

_TOLD_ONLY = frozenset(
    {
        *OF_A_RUN,
        *("seconds", "resumed_after", "provenance", "microtome_token", "lines", "path"),
        *("digest", "model"),  # of a file that PyTorch writes otherwise each time
    }
)
_DIGEST = re.compile(r"\b[0-9a-f]{64}\b")
_FOOTER = struct.Struct("<8sQQII")
_SUMS = ("labels", "coords", "keys", "images", "unlabelled")


def read_contents(path: Path, output: Path) -> Contents:
    """Read a file, or a folder that is published whole, to its end.

    Args:
        path: Of it.
        output: In which it lies: names below it are compared without that.

    Raises:
        Exception: Whatever the library raises where it is damaged.
        ValueError: If it is not whole, or of no known kind.
    """
    if path.is_dir() and path.suffix != ".zarr":
        return {each.name: _pixels(each.read_bytes()) for each in sorted(path.iterdir())}
    if path.suffix == ".h5" and path.parent.name == "labelled":
        return _patches(path)
    if path.suffix not in _READ:
        raise ValueError("it is of no kind that an output has")
    return _READ[path.suffix](path, output)


def _store(path: Path, output: Path) -> Contents:
    found = read_store(path)
    arrays = {name: _sum(array) for name, array in found.arrays.items()}
    return {**arrays, **{f"identity of {name}": each for name, each in found.identities.items()}}


def _patches(path: Path) -> Contents:
    with h5py.File(path, "r") as file:
        arrays = {name: np.asarray(file[name][...]) for name in _SUMS}
        return {**{name: _sum(each) for name, each in arrays.items()}, "id": file.attrs["identity"]}


def _lmdb(path: Path, output: Path) -> Contents:
    """Read an environment, whose pages a record follows: LMDB dies of a file that is cut short."""
    data = path.read_bytes()
    magic, pages, size, _, _ = _FOOTER.unpack(data[-_FOOTER.size :])
    if magic != b"MTpatch1" or pages + size + _FOOTER.size != len(data):
        raise ValueError("its end is missing")
    record = _told(json.loads(data[pages : pages + size]), "")
    with (
        lmdb.open(str(path), subdir=False, readonly=True, lock=False) as environment,
        environment.begin() as view,
    ):
        held = {key.decode(): value for key, value in view.cursor()}
    return {**dict(_entries(held.items())), "record": record}


def _tar(path: Path, output: Path) -> Contents:
    if not path.read_bytes().endswith(bytes(1024)):
        raise ValueError("its end is missing")
    with tarfile.open(path, "r:") as file:
        members = {each.name: file.extractfile(each) for each in file}
        return dict(_entries((name, each.read()) for name, each in members.items() if each))


def _entries(held: Any) -> Iterator[tuple[str, Any]]:
    for name, data in held:
        if data.startswith(b"{"):
            yield name, _told(json.loads(data), "")
        else:
            yield name, data.decode() if name.endswith(".cls") else _pixels(data)


def _png(path: Path, output: Path) -> Contents:
    return {"pixels": _pixels(path.read_bytes())}


def _tiff(path: Path, output: Path) -> Contents:
    with tifffile.TiffFile(path) as file:
        return {f"level {n}": _sum(each.asarray()) for n, each in enumerate(file.series[0].levels)}


def _json(path: Path, output: Path) -> Contents:
    found: Contents = _told(json.loads(path.read_text("utf-8")), str(output))
    return found


def _text(path: Path, output: Path) -> Contents:
    text = path.read_text("utf-8")
    if not text.endswith("</html>" if path.suffix == ".html" else "\n"):
        raise ValueError("its end is missing")
    return {"lines": _DIGEST.sub("", text.replace(str(output), "")).splitlines()}


def _parquet(path: Path, output: Path) -> Contents:
    table = pq.read_table(path)
    kept = {key.decode(): json.loads(value) for key, value in table.schema.metadata.items()}
    return {**table.to_pydict(), **{name: _told(each, str(output)) for name, each in kept.items()}}


def _checkpoint(path: Path, output: Path) -> Contents:
    found = torch.load(path, weights_only=True)
    weights = found.get("state_dict", found.get("network"))
    told = {name: found[name] for name in ("history", "identity") if name in found}
    return {"weights": {name: _sum(each.numpy()) for name, each in weights.items()}, **told}


_READ: Mapping[str, Callable[[Path, Path], Contents]] = {
    ".h5": _store,
    ".zarr": _store,
    ".lmdb": _lmdb,
    ".tar": _tar,
    ".png": _png,
    ".tif": _tiff,
    ".json": _json,
    ".geojson": _json,
    ".csv": _text,
    ".html": _text,
    ".parquet": _parquet,
    ".pt": _checkpoint,
}


def _told(value: Any, output: str) -> Any:
    """Leave out what tells of a run."""
    if isinstance(value, dict):
        return {k: _told(v, output) for k, v in value.items() if k not in _TOLD_ONLY}
    if isinstance(value, list):
        return [_told(each, output) for each in value]
    return value.replace(output, "") if output and isinstance(value, str) else value


def _pixels(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as image:
        return _sum(np.asarray(image))


def _sum(array: Any) -> str:
    array = np.asarray(array)
    data = repr(array.tolist()).encode() if array.dtype == object else array.tobytes()
    return f"{array.dtype} {array.shape} {hashlib.sha256(data).hexdigest()}"
