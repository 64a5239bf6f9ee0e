"""What an output holds: its tilings, and of each slide its record and who works on it."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from filelock import SoftFileLease

from microtome.errors import InputError, StoreError
from microtome.plugin.specs import WriterSpec
from microtome.store.atomic import is_alive
from microtome.store.attributes import FOLDER_RECORD
from microtome.store.claims import Attempt, Holder, find_holder, read_attempts
from microtome.store.layout import OWN_FOLDERS, OutputLayout
from microtome.store.status import SlideStatus, read_status

_LEASE, _ATTEMPTS, _RECORD = ".lease", ".attempts.json", ".json"
_USUAL_SECONDS = 60.0
"""How long a claim lasts that does not say."""

_FIRST_PID_NAMESPACE = 0xEFFFFFFC
"""Inode of the one that a machine starts with (PROC_PID_INIT_INO in Linux's proc_ns.h)."""


@dataclass(frozen=True, kw_only=True)
class SlideView:
    """What is known of a slide in one tiling.

    Attributes:
        layout: Of the tiling.
        slide_id: The slide.
        status: How it ended last; None where no run has finished it, or its record is damaged.
        holder: Who claims it, if anybody.
        stale: Whether that is nobody any more.
        earlier: What workers died of, where it is neither claimed nor finished.
        damage: What is wrong with its record, in a sentence.
    """

    layout: OutputLayout
    slide_id: str
    status: SlideStatus | None = None
    holder: Holder | None = None
    stale: bool = False
    earlier: tuple[Attempt, ...] = field(default=())
    damage: str = ""

    @property
    def tiling(self) -> str:
        """Name of the tiling; empty for none."""
        same = self.layout.root == self.layout.output
        return "" if same else self.layout.relative(self.layout.root)

    @property
    def is_running(self) -> bool:
        """Whether a living worker has it."""
        return self.holder is not None and not self.stale


def find_tilings(output: Path, folders: Collection[str] = ()) -> list[OutputLayout]:
    """Find the tilings of an output, those without a name first.

    Args:
        output: The output folder.
        folders: Names of other folders in which no tiling lies, as of `taken_folders`.

    Raises:
        InputError: If the folder is no output.
    """
    top = OutputLayout(output)
    aside = {*OWN_FOLDERS} | {folder.partition("/")[0] for folder in folders}
    found = [OutputLayout(output, name) for name in _tiling_names(output, aside)]
    if not found and not any((output / name).is_dir() for name in sorted(aside)):
        raise InputError(
            f"{output} is not an output of microtome: it holds neither status nor tissue nor runs. "
            "Give the folder that output=… named."
        )
    return found or [top]


def _tiling_names(output: Path, aside: Collection[str]) -> Iterator[str]:
    """Walk folders that are nobody's, each once: links may lead round in a circle."""
    seen: set[tuple[int, int]] = set()
    _is_new(output, seen)
    for folder, names, _ in os.walk(output, followlinks=True):
        if any((Path(folder) / mark).is_dir() for mark in ("status", ".claims")):
            yield "" if Path(folder) == output else Path(folder).relative_to(output).as_posix()
        names[:] = sorted(n for n in names if n not in aside and _is_new(Path(folder, n), seen))


def _is_new(folder: Path, seen: set[tuple[int, int]]) -> bool:
    try:
        found = folder.stat()
    except OSError:
        return False
    key = (found.st_dev, found.st_ino)
    if key in seen:
        return False
    seen.add(key)
    return True


def find_slides(layout: OutputLayout) -> list[str]:
    """List the slides of a tiling that have a record or a claim."""
    claims = layout.claims_folder
    names = {*_names(layout.status_folder, _RECORD)}
    return sorted(names.union(_names(claims, _LEASE), _names(claims, _ATTEMPTS)))


def find_patients(layout: OutputLayout, writers: Iterable[WriterSpec]) -> dict[Path, WriterSpec]:
    """Find what writers wrote of a tiling's patients, and which one reads it."""
    specs = [spec for spec in writers if spec.consumes == "features" and spec.suffix]
    found = (each for spec in specs for each in written(layout.patients_folder, spec))
    return {path: spec for path, _, spec in found}


def written(top: Path, spec: WriterSpec) -> Iterator[tuple[Path, str, WriterSpec]]:
    """Find what a writer wrote below a folder, each with the id that its name says."""
    for folder, names, files in os.walk(top):
        names[:] = sorted(name for name in names if not name.startswith("."))
        here = Path(folder)
        if not spec.suffix:
            if FOLDER_RECORD in files:
                yield here, here.relative_to(top).as_posix(), spec
            continue
        of_kind = names if spec.layout == "directory" else files
        for name in [n for n in of_kind if n.endswith(spec.suffix) and n[0] != "."]:
            path = here / name
            yield path, path.relative_to(top).as_posix().removesuffix(spec.suffix), spec
        names[:] = [name for name in names if not name.endswith(spec.suffix)]


def look(layout: OutputLayout, slide_id: str) -> SlideView:
    """Look at a slide, as it is now."""
    holder = find_holder(layout, slide_id)
    status, damage = None, ""
    path = layout.status(slide_id)
    if path.exists():
        try:
            status = _read(path, slide_id)
        except StoreError as error:
            damage = str(error)
    earlier: tuple[Attempt, ...] = ()
    if holder is None and status is None:
        earlier = read_attempts(layout.claim(slide_id, _ATTEMPTS))
    return SlideView(
        layout=layout,
        slide_id=slide_id,
        status=status,
        holder=holder,
        stale=holder is not None and _is_stale(layout, holder),
        earlier=earlier,
        damage=damage,
    )


def _read(path: Path, slide_id: str) -> SlideStatus:
    """Read a record and see that it is what its readers take it for.

    Raises:
        StoreError: If it is not.
    """
    status = read_status(path)
    texts = [status.slide_id, status.path, status.stage, status.reader, status.finished]
    texts += [*status.encoders, *status.slide_encoders, *status.warnings, status.fingerprint]
    maps = (status.seconds, status.outputs, status.identities, status.error or {})
    sound = all(isinstance(text, str) for text in texts)
    sound &= all(isinstance(found, Mapping) for found in maps)
    sound &= status.tiles is None or isinstance(status.tiles, int)
    if sound:
        numbers, *rest = (list(found.values()) for found in maps)
        sound = all(isinstance(value, int | float) for value in numbers)
        sound &= all(isinstance(value, str) for values in rest for value in values)
    if not sound or status.slide_id != slide_id:
        what = "is damaged" if not sound else f"is the record of {status.slide_id!r}"
        raise StoreError(f"{path} {what}. Delete it: the next run writes it again.")
    return status


def _is_stale(layout: OutputLayout, holder: Holder) -> bool:
    """Whether a claim's worker is gone: dead on this machine, or not heard of for too long."""
    path = layout.claim(holder.slide_id, _LEASE)
    owner = SoftFileLease(path, thread_local=False).owner
    seconds = owner.lease_duration if owner is not None else None
    if holder.age > (seconds or _USUAL_SECONDS):
        return True
    return owner is not None and owner.hostname == _here() and not is_alive(owner.pid)


def _here() -> str:
    """Name this machine as leases do: with its space of process numbers, if not the first."""
    name = socket.gethostname()
    try:
        space = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return name
    return name if space == _FIRST_PID_NAMESPACE else f"{name}?pidns-{space:x}"


def _names(folder: Path, suffix: str) -> list[str]:
    """List the slides that have a file in a folder."""
    return [
        path.relative_to(folder).as_posix().removesuffix(suffix)
        for path in folder.rglob(f"*{suffix}")
        if path.is_file()
    ]
