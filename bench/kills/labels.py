"""Sees that all stores of an output say the same of a tile."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import h5py
import lmdb

Labels = Mapping[str, int]
"""Label by key of the tile, of those that have one."""


def look_at_labels(output: Path) -> Iterator[str]:
    """Compare the labels of each slide's tiles with those of its images, wherever there are some.

    Args:
        output: With slides stored in HDF5.
    """
    for path in sorted((output / "patches").glob("*.h5")):
        with h5py.File(path, "r") as file:
            if "columns/label" not in file:
                continue
            classes = json.loads(file.attrs["classes"])
            places = file["coords"][:, :2].tolist()
            labels = file["columns/label"][...].tolist()
        keys = [f"{path.stem}_x{x}_y{y}" for x, y in places]
        wanted = {key: label for key, label in zip(keys, labels, strict=True) if label >= 0}
        if (output / "imagefolder").is_dir() and _by_class(output, path.stem, classes) != wanted:
            yield f"{output}: images of {path.stem} lie in classes that are not their labels"
        for name, read in _STORES.items():
            store = output / name.format(path.stem)
            if store.exists() and read(store) != wanted:
                yield f"{store} has other labels than {path}"


def _by_class(output: Path, slide_id: str, classes: list[str]) -> Labels:
    images = output / "imagefolder" / "images"
    return {
        image.stem: classes.index(folder.name)
        for folder in images.iterdir()
        for image in (folder / slide_id).glob("*")
    }


def _hdf5(path: Path) -> Labels:
    with h5py.File(path, "r") as file:
        keys = [key.decode() for key in file["keys"][...]]
        return dict(zip(keys, file["labels"][...].tolist(), strict=True))


def _lmdb(path: Path) -> Labels:
    with (
        lmdb.open(str(path), subdir=False, readonly=True, lock=False) as environment,
        environment.begin() as view,
    ):
        index = json.loads(view.get(b"__microtome__", b""))
    return dict(zip(index["keys"], index["labels"], strict=True))


def _tar(path: Path) -> Labels:
    with tarfile.open(path) as file:
        held = {each.name: file.extractfile(each) for each in file if each.name.endswith(".cls")}
        return {name.removesuffix(".cls"): int(each.read()) for name, each in held.items() if each}


_STORES: Mapping[str, Callable[[Path], Labels]] = {
    "labelled/{}.h5": _hdf5,
    "lmdb/{}.lmdb": _lmdb,
    "webdataset/{}.tar": _tar,
}
