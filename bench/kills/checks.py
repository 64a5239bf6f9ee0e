"""Looks at an output with plain h5py, zarr, Pillow and json: none of microtome's own code.

What is compared with is the output of an undisturbed run over the same slides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr
from numpy.typing import NDArray
from PIL import Image

STORES = (".h5", ".zarr")
OF_ALL = ("coords", "columns")
"""What a slide has whoever encodes it; the other groups come one by one."""

BY_TILE = (*OF_ALL, "features")
OF_A_RUN = ("creation_date", "reader", "attributes_sha256")
"""Attributes that tell of the run, not of its result: another reader may be tried after a death."""

_ABSENT = ("images/", "imagefolder/")
"""Of which a slide's output may be missing while it is replaced."""

FINISHED = ("done", "reused", "empty")

_PRIVATE = re.compile(r"\..*\.([0-9a-f]{8}-\d+-[0-9a-f]{8}|aside)\.tmp", re.DOTALL)


@dataclass(frozen=True)
class Stored:
    """One slide as a store holds it."""

    arrays: Mapping[str, NDArray[Any]]
    identities: Mapping[str, str]


@dataclass
class Verdict:
    """What was looked at.

    Attributes:
        files: Number of files and folders under final names.
        faults: What is wrong, a sentence each.
    """

    files: int = 0
    faults: list[str] = field(default_factory=list)


class Truth:
    """What an output must hold, as an undisturbed run left it.

    Args:
        output: Of that run.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.slides = sorted(p.stem for p in (output / "status").glob("*.json"))
        self.stored = {
            path.relative_to(output).as_posix(): read_store(path)
            for folder in ("patches", "patient_embeddings")
            for store in STORES
            for path in output.glob(f"{folder}/*{store}")
        }
        self.pictures = {
            path.relative_to(output): path.read_bytes()
            for folder in ("tissue", "visualization", "images")
            for path in sorted((output / folder).rglob("*"))
            if path.is_file()
        }


def read_store(path: Path) -> Stored:
    """Read a slide whole, by the library of its format.

    Raises:
        Exception: Whatever the library raises where it is damaged.
    """
    if path.suffix == ".h5":
        with h5py.File(path, "r") as file:
            return _read(file, dict(_nodes(file, h5py.Dataset)))
    root = zarr.open_group(path, mode="r", zarr_format=3, use_consolidated=False)
    return _read(root, dict(_nodes(root, zarr.Array)))


def _nodes(group: Any, kind: type) -> Iterator[tuple[str, Any]]:
    yield "coords", group["coords"]
    for folder in sorted(set(group) - {"coords"}):
        for name in group[folder]:
            node = group[folder][name]
            if not isinstance(node, kind):
                raise TypeError(f"{folder}/{name} is no array")
            yield f"{folder}/{name}", node


def _read(group: Any, nodes: Mapping[str, Any]) -> Stored:
    identities = {"": str(group.attrs["identity"])}
    sets = {k: v for k, v in nodes.items() if k.partition("/")[0] not in OF_ALL}
    identities |= {k: str(v.attrs["identity"]) for k, v in sets.items()}
    if "labels_identity" in group.attrs:
        identities["columns/label"] = str(group.attrs["labels_identity"])
    return Stored({name: np.asarray(node[...]) for name, node in nodes.items()}, identities)


def check(output: Path, truth: Truth, *, forced: bool = False) -> Verdict:
    """See that everything under a final name is whole and right, whatever is missing.

    Args:
        output: The folder.
        truth: What it must agree with.
        forced: Whether a run with ``force=true`` was interrupted: a folder may then be missing
            that the status tells of.
    """
    verdict = Verdict()
    for path in _final(output):
        verdict.files += 1
        with told(verdict, path):
            verdict.faults += _look(path, output, truth, forced)
    return verdict


def check_complete(output: Path, truth: Truth) -> Verdict:
    """See that a run that ended well left everything, and nothing else.

    Args:
        output: The folder.
        truth: What it must agree with, and hold all of.
    """
    verdict = check(output, truth)
    for name in truth.stored:
        path = output / name
        with told(verdict, path):
            held = read_store(path).arrays.keys()
            if held != truth.stored[name].arrays.keys():
                verdict.faults.append(f"{path} holds {sorted(held)}")
    missing = [str(path) for path in truth.pictures if not (output / path).exists()]
    verdict.faults += [f"{path} is missing" for path in missing]
    for slide in truth.slides:
        path = output / "status" / f"{slide}.json"
        with told(verdict, path):
            record = json.loads(path.read_text())
            if record["state"] not in FINISHED:
                verdict.faults.append(f"{path} says {record['state']}: {record['error']}")
    verdict.faults += [f"{path} was left over" for path in leftovers(output)]
    return verdict


def leftovers(output: Path) -> list[Path]:
    """List what a run that ended well must have removed: private names and claims.

    What a killed run began to write in its own folder is left to the next run that starts.
    """
    claims = {p for p in output.rglob("*") if ".claims" in p.parts and p.is_file()}
    private = {p for p in output.rglob("*.tmp") if _PRIVATE.fullmatch(p.name)}
    left = private | claims | set(output.glob("tmp*"))
    return sorted(path for path in left if path.relative_to(output).parts[0] != "runs")


def is_private(path: Path) -> bool:
    """Whether a name is of one process alone, or of claims."""
    return path.name == ".claims" or _PRIVATE.fullmatch(path.name) is not None


def _final(output: Path) -> Iterator[Path]:
    """Give everything under a final name: files, and folders that are published whole."""
    for path in sorted(output.iterdir()) if output.is_dir() else ():
        if is_private(path):
            continue
        if path.is_dir() and path.suffix != ".zarr" and path.parent.name != "images":
            yield from _final(path)
        else:
            yield path


def _look(path: Path, output: Path, truth: Truth, forced: bool) -> list[str]:
    kind = path.relative_to(output).parts[0]
    looks: dict[str, Callable[[], list[str]]] = {
        "patches": lambda: _compare(path, output, truth),
        "patient_embeddings": lambda: _compare(path, output, truth),
        "images": lambda: _images(path, output, truth),
        "tissue": lambda: _picture(path, output, truth),
        "visualization": lambda: _picture(path, output, truth),
        "status": lambda: look_at_status(path, output, forced),
        "runs": lambda: look_at_record(path),
    }
    return looks[kind]() if kind in looks else [f"{path} is no output"]


def _compare(path: Path, output: Path, truth: Truth) -> list[str]:
    found, wanted = read_store(path), truth.stored[path.relative_to(output).as_posix()]
    rows = len(found.arrays["coords"])
    faults = []
    for name, array in found.arrays.items():
        expected = wanted.arrays[name]
        if name.partition("/")[0] in BY_TILE and len(array) != rows:
            faults.append(f"{path}: {name} has {len(array)} rows for {rows} tiles")
        elif array.dtype != expected.dtype or not np.array_equal(array, expected):
            faults.append(f"{path}: {name} differs from an undisturbed run's")
    lost = {k for k in wanted.arrays if k.partition("/")[0] in OF_ALL} - set(found.arrays)
    faults += [f"{path}: {name} is missing" for name in sorted(lost)]
    wrong = [k for k, v in found.identities.items() if wanted.identities[k] != v]
    return faults + [f"{path}: the identity of {name or 'the slide'} differs" for name in wrong]


def _images(folder: Path, output: Path, truth: Truth) -> list[str]:
    wanted = {p for p in truth.pictures if p.is_relative_to(folder.relative_to(output))}
    found = {p.relative_to(output) for p in folder.rglob("*")}
    faults = [f"{output / path}: there or missing against the rule" for path in wanted ^ found]
    return faults + [
        fault for path in sorted(found) for fault in _picture(output / path, output, truth)
    ]


def _picture(path: Path, output: Path, truth: Truth) -> list[str]:
    """Decode a picture, or parse JSON, and compare."""
    data = path.read_bytes()
    wanted = truth.pictures.get(path.relative_to(output), b"")
    if path.suffix == ".png":
        with Image.open(path) as image:
            image.load()
        same = data == wanted
    else:
        same = _values(data) == _values(wanted)
    return [] if same else [f"{path} differs from an undisturbed run's"]


def _values(data: bytes) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(data)
    return {name: value for name, value in values.items() if name not in OF_A_RUN}


def look_at_status(path: Path, output: Path, forced: bool, *, finished: bool = False) -> list[str]:
    """See that a slide's status tells the truth, and maybe that the slide is finished."""
    record = json.loads(path.read_text())
    if record["slide_id"] != path.stem:
        return [f"{path} is of {record['slide_id']}"]
    if record["state"] not in FINISHED:
        return [f"{path} says {record['state']}: {record['error']}"] if finished else []
    missing = [name for name in record["outputs"].values() if not (output / name).exists()]
    if forced:  # moved aside, its successor not there yet
        missing = [n for n in missing if not (n.endswith(".zarr") or n.startswith(_ABSENT))]
    return [f"{path} says {record['state']}, but {name} is missing" for name in missing]


def look_at_record(path: Path) -> list[str]:
    """Parse the records of a run; Hydra's own files are Hydra's."""
    if path.suffix == ".json":
        json.loads(path.read_text())
    return []


@contextmanager
def told(verdict: Verdict, path: Path) -> Iterator[None]:
    """Turn whatever a library raises at a damaged file into a fault."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever it is, the file is not what it must be
        verdict.faults.append(f"{path}: {type(error).__name__}: {error}")
