"""A training's folder: who works in it, which training it is, and what came of that already."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from microtome.errors import IdentityError, TaskError
from microtome.store.atomic import private_path, remove, sweep, wrap_errors, write_json
from microtome.store.claims import Claims, find_holder
from microtome.store.identity import Identity, difference
from microtome.store.layout import OutputLayout
from microtome_training.names import CHECKPOINTS, LAST

if TYPE_CHECKING:
    from microtome.run.progress import Reporter
    from microtome.run.settings import ClaimSettings

IDENTITY_FILE, RESULT = "identity.json", "result.json"
_BETWEEN = 1.0
"""Seconds between looks at a folder that another process works in."""


@contextmanager
def hold_folder(folder: Path, settings: ClaimSettings, reporter: Reporter) -> Iterator[None]:
    """Keep other processes out of a training's folder, or wait for one that is in it.

    Args:
        folder: Of the training.
        settings: Whether to wait, and after how long a claim that nobody renews is taken over.
        reporter: Hears who is waited for.

    Raises:
        TaskError: If somebody works in it and is not to be waited for.
        StoreError: If the claim cannot be written.
    """
    layout = OutputLayout(folder.parent)
    claims = Claims(layout, settings.seconds)
    told = False
    while (claim := claims.take(folder.name)) is None:
        holder = find_holder(layout, folder.name)
        attempt = holder and holder.attempt
        who = f"process {attempt.pid} on {attempt.host}" if attempt else "another process"
        if not settings.wait:
            raise TaskError(
                f"{who} works on the training {folder}: wait for it, or give this one a name, "
                "train.name=."
            )
        if not told:
            reporter.note(f"{who} works on the training {folder.name}: waiting for it")
        told = True
        time.sleep(_BETWEEN)
    try:
        claim.begin()
        sweep(folder.parent)
        sweep(folder, below=True)
        yield
    finally:
        claim.end()


def clear(folder: Path) -> None:
    """Remove a training: killed meanwhile, it is whole or gone.

    Raises:
        StoreError: If it cannot be moved away.
    """
    if folder.exists():
        aside = private_path(folder)
        with wrap_errors(folder):
            folder.rename(aside)
        remove(aside)


def find_finished(folder: Path, identities: Sequence[Identity]) -> dict[str, Any] | None:
    """Give what came of a training, if it is finished.

    Args:
        folder: Of the training.
        identities: Any of which it may have.

    Raises:
        IdentityError: If another training was finished there.
        TaskError: If what is there cannot be read.
    """
    path = folder / RESULT
    if not path.exists():
        return None
    found = _read(path)
    if found.get("identity") not in {each.digest for each in identities}:
        _refuse(folder, identities[0])
    return found


def begin(folder: Path, identity: Identity) -> None:
    """Take a training's folder; one without a checkpoint is nobody's.

    Raises:
        IdentityError: If it holds checkpoints of another training.
        TaskError: If what is there cannot be read.
        StoreError: If it cannot be written.
    """
    path = folder / IDENTITY_FILE
    if (folder / CHECKPOINTS / LAST).exists() and path.exists():
        if _read(path).get("identity") != identity.digest:
            _refuse(folder, identity)
        return
    if not (folder / CHECKPOINTS / LAST).exists():
        remove(folder / CHECKPOINTS)
    write_json(path, {"identity": identity.digest, "fields": dict(identity.fields)})


def _refuse(folder: Path, identity: Identity) -> NoReturn:
    path = folder / IDENTITY_FILE
    fields = _read(path).get("fields", {}) if path.exists() else {}
    raise IdentityError(
        f"{folder} is another training: {difference(fields, identity.fields)}. Give this one a "
        "name, train.name=, or replace that one with force=true."
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise TaskError(f"{path} cannot be read: use force=true to train again.") from error
