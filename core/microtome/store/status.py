"""What became of each slide: one small record a slide, written when it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from microtome.errors import StoreError
from microtome.store.atomic import write_json

STATES = ("done", "reused", "empty", "failed", "quarantined", "held")
"""How a slide can end: computed, found finished, without a tile, or not at all: with an error,
because too many workers died on it, or because another worker holds it."""

FAILED = ("failed", "quarantined", "held")
"""The states of a slide that is not finished."""


def _empty() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class SlideStatus:
    """How one slide ended in one run.

    Attributes:
        slide_id: Name of its outputs.
        path: The slide.
        fingerprint: Of its content; empty where it could not be read.
        state: One of `STATES`.
        stage: Where it failed, ``"open"`` or ``"encode"`` for instance; empty otherwise.
        error: ``{"type": …, "message": …}`` of a failed slide.
        reader: The reader that opened it.
        why: Why that reader.
        task: The run's task.
        encoders: Names of the feature sets asked for.
        slide_encoders: Names of the embeddings asked for.
        tiles: Number of tiles stored, or None where it is not known.
        dropped: Tiles left out by their pixels, by reason; a tile may have several.
        reasons: Tiles that are there although there is a reason against them, by reason.
        labels: Tiles of each class, where tiles are labelled; those without a label as
            ``unlabelled``.
        seconds: Wall time per stage.
        profile: Of the pass over the pixels, seconds of all threads together per stage of it.
        tiles_per_second: Of that pass, tiles looked at by wall time.
        outputs: Paths below the output folder, by what they are.
        identities: Digests, by what they identify.
        warnings: Sentences for the user.
        version: Of microtome.
        round: Of the commands that worked together; empty for a run by itself.
        asked: Digest of all that a run asked of a staged slide; empty of any other.
        started: UTC, ISO 8601.
        finished: UTC, ISO 8601.
    """

    slide_id: str
    path: str
    state: str
    fingerprint: str = ""
    stage: str = ""
    error: Mapping[str, str] | None = None
    reader: str = ""
    why: str = ""
    task: str = "process"
    encoders: tuple[str, ...] = ()
    slide_encoders: tuple[str, ...] = ()
    tiles: int | None = None
    dropped: Mapping[str, int] = field(default_factory=_empty)
    reasons: Mapping[str, int] = field(default_factory=_empty)
    labels: Mapping[str, int] = field(default_factory=_empty)
    seconds: Mapping[str, float] = field(default_factory=_empty)
    profile: Mapping[str, float] = field(default_factory=_empty)
    tiles_per_second: float | None = None
    outputs: Mapping[str, str] = field(default_factory=_empty)
    identities: Mapping[str, str] = field(default_factory=_empty)
    warnings: tuple[str, ...] = ()
    version: str = ""
    round: str = ""
    asked: str = ""
    started: str = ""
    finished: str = ""

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise StoreError(
                f"{self.state!r} is no state of a slide. Available: {', '.join(STATES)}."
            )

    @property
    def message(self) -> str:
        """Why it failed, in a sentence; empty where it did not."""
        return "" if self.error is None else self.error.get("message", "")

    @classmethod
    def from_record(cls, data: Mapping[str, Any]) -> SlideStatus:
        """Make one of what `record` gives. Fields that this version does not know are left aside.

        Raises:
            TypeError: If a field is missing.
            StoreError: If the state is none.
        """
        known = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        return cls(**{name: _frozen(value) for name, value in known.items()})

    def record(self) -> dict[str, Any]:
        """Give the record as plain values, as observers see it and as it is written."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: _plain(value) for name, value in plain.items()}


def write_status(path: Path, status: SlideStatus) -> None:
    """Write a slide's record atomically.

    Raises:
        StoreError: If it cannot be written.
    """
    write_json(path, status.record())


def read_status(path: Path) -> SlideStatus:
    """Read a slide's record. Fields that this version does not know are left aside.

    Raises:
        StoreError: If it is no such record.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
        return SlideStatus.from_record(data)
    except (OSError, ValueError, TypeError) as error:
        raise StoreError(
            f"{path} is not a status record of microtome, or is damaged. "
            "Delete it: the next run writes it again."
        ) from error


def iterate_statuses(folder: Path) -> Iterator[SlideStatus]:
    """Read every record below a folder, in the order of the names.

    Raises:
        StoreError: If one of them cannot be read.
    """
    for path in sorted(folder.rglob("*.json")):
        yield read_status(path)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return MappingProxyType(value)
    return tuple(value) if isinstance(value, list) else value
