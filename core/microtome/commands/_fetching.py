"""Weights for later: fetched where there is a network, found where there is none."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from microtome.commands._names import ModelSpec, resolve, spec_of
from microtome.errors import MicrotomeError, PluginError, StoreError, naming_encoder, one_line
from microtome.plugin.options import configure
from microtome.plugin.registry import Registered, Registry
from microtome.plugin.specs import EncoderCard
from microtome.plugin.weights.bars import Told

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_WHOSE = re.compile(r"^(?:Encoder|Slide encoder|Patient encoder) [^:]+: ")


def fetch(names: Sequence[str], folder: str | None, registry: Registry, level: str = "") -> int:
    """Download what encoders need, one after the other.

    What to type on a machine without a network goes to stdout, all else to stderr.

    Args:
        names: Of the encoders, each with ``@`` and a revision if it is to be a certain one.
        folder: Where the caches go; the user's own if None.
        registry: The plugins.
        level: Of the encoders, where several of a name are of different ones.

    Returns:
        0; 1 if one failed, which does not keep the others from being fetched.
    """
    places = _places(folder)
    failed = []
    with _environment(places):
        for name in names:
            try:
                files = _fetch_one(name, registry, level)
            except MicrotomeError as error:
                failed.append(name)
                known = f"Encoder {name.partition('@')[0]}: "
                _say(f"{name}: failed. {str(error).removeprefix(known)}")
            else:
                _say(f"{name}: {_described(files)}")
    if len(failed) < len(names):
        exports = {**places, "HF_HUB_OFFLINE": "1"}
        lines = [f"export {key}={shlex.quote(value)}" for key, value in exports.items()]
        sys.stdout.write("\n".join(lines) + "\n")
    return int(bool(failed))


def offline_ready(entry: Registered, registry: Registry) -> bool:
    """Tell whether an encoder would run on this machine without a network.

    Where the caches have nothing that could be its weights, its code is not even imported.
    """
    spec = spec_of(entry)
    if spec.card is None or entry.missing or not _maybe_cached(spec, spec.card):
        return False
    with _environment({"HF_HUB_OFFLINE": "1"}):
        try:
            encoder = registry.create(spec.kind, spec.name)
            getattr(encoder, "download", getattr(encoder, "weights", tuple))()
        except MicrotomeError:
            return False
    return True


def _fetch_one(word: str, registry: Registry, level: str) -> Sequence[Path]:
    name, _, revision = word.partition("@")
    spec = _own_spec(name, registry, level)
    options = {"revision": revision} if revision else {}
    config = configure(spec, **options)
    with naming_encoder(spec.name, spec.name, spec.kind), _shown(spec.name) as told:
        encoder = registry.create(spec.kind, spec.name, config)
        if not hasattr(encoder, "download"):
            return ()
        with registry.blame(spec.kind, spec.name, "fetched"):
            files: Sequence[Path] = encoder.download(told)
    return files


def _own_spec(name: str, registry: Registry, level: str) -> ModelSpec:
    """Find an encoder by its name here, and refuse one that only other tools have.

    What is gigabytes large should be asked for by its own name.

    Raises:
        PluginError: If it is another tool's; says whose.
    """
    entry, notes = resolve(name, registry, level)
    if entry.spec.name != name.lower().replace("-", "_"):
        raise PluginError(f"{' '.join(notes)} Say {entry.spec.name}.")
    return spec_of(entry)


def _described(files: Sequence[Path]) -> str:
    if not files:
        return "needs nothing fetched"
    size = sum(path.stat().st_size for path in files)
    return f"{', '.join(map(str, files))} ({_size(size)})"


def _places(folder: str | None) -> dict[str, str]:
    """Say where the caches of the hub and of torch are to be."""
    if folder is None:
        return {}
    root = Path(folder).expanduser().resolve()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{root} cannot be made: {error.strerror}. Give another --to.") from error
    return {"HF_HUB_CACHE": str(root / "hub"), "TORCH_HOME": str(root / "torch")}


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _maybe_cached(spec: ModelSpec, card: EncoderCard) -> bool:
    """Look, by names alone, whether the caches may hold an encoder's weights."""
    defaults = {option.name: option.default for option in fields(spec.config)}
    if defaults.get("weights") != "hub":
        return True
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if card.hub_id:
        home = Path(os.environ.get("HF_HOME") or cache / "huggingface")
        hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
        place = card.hub_id if card.hub_id.startswith("datasets/") else f"models/{card.hub_id}"
        if (hub / place.replace("/", "--") / "snapshots").is_dir():
            return True
        if "huggingface_hub" in spec.requires:
            return False
    by_url = Path(os.environ.get("TORCH_HOME") or cache / "torch").expanduser()
    return any((by_url / "hub" / "checkpoints").glob("*"))


@contextmanager
def _shown(name: str) -> Iterator[Told]:
    """Show how files come on: bars in a terminal, a line for each elsewhere."""
    if not sys.stderr.isatty():
        yield _lines(name)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bars:
        yield _bars(name, bars)


def _lines(name: str) -> Told:
    seen: set[str] = set()

    def told(file: str, done: int, total: int | None) -> None:
        if file not in seen and done != total:
            _say(f"{name}: downloading {file}" + (f", {_size(total)}" if total else ""))
        seen.add(file)

    return told


def _bars(name: str, bars: Progress) -> Told:
    tasks: dict[str, TaskID] = {}

    def told(file: str, done: int, total: int | None) -> None:
        if file not in tasks:
            tasks[file] = bars.add_task(one_line(f"{name}: {file}"), total=total)
        bars.update(tasks[file], completed=done, total=total)

    return told


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _say(text: str) -> None:
    sys.stderr.write(f"{one_line(text)}\n")
