"""Tell whether two results are the same by what made them.

An identity is a hash over the values that change a result. What only changes how fast or where
it is computed is left out, and so is every field at its default, so that a new option does not
make old results stale.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from microtome.errors import ConfigError, SlideOpenError
from microtome.plugin.specs import RUNTIME, PluginSpec

IDENTITY = "identity"
"""Attribute of every output: the digest."""
IDENTITY_FIELDS = "identity_fields"
"""Attribute of every output: what was hashed, as JSON, so that a difference can be named."""

_ENDS = 1 << 20  # bytes hashed at each end of a file: headers, and where TIFF tags often lie
_LONG = 64
_DIGEST = re.compile("(sha256:)?[0-9a-f]{64}")


@dataclass(frozen=True)
class Identity:
    """What made a result.

    Attributes:
        digest: sha256 of ``fields``, in hexadecimal.
        fields: The values that were hashed.
    """

    digest: str
    fields: Mapping[str, Any]

    def attributes(self) -> dict[str, str]:
        """Give the two attributes that carry an identity in a file."""
        return {IDENTITY: self.digest, IDENTITY_FIELDS: _dumps(self.fields)}


SPEC_FIELDS = ("plugin", "output_version")
"""What `describe` says of a plugin besides its options."""


def describe(spec: PluginSpec, config: object) -> dict[str, Any]:
    """Describe a plugin's part in an identity.

    Args:
        spec: The plugin.
        config: Its configuration, a dataclass instance.

    Returns:
        ``plugin``, ``output_version``, ``plugin_sha256`` for one out of a single file, and every
        field of the configuration that changes
        results and is not at its default, as plain values.
    """
    chosen: dict[str, Any] = {"plugin": spec.name, "output_version": spec.output_version}
    if spec.file_sha256:
        chosen["plugin_sha256"] = spec.file_sha256
    if is_dataclass(config):
        chosen |= _chosen(config)
    return chosen


def make_identity(stage: str, fields: Mapping[str, Any]) -> Identity:
    """Hash what makes a stage's result.

    Args:
        stage: Name of the stage; part of the hash.
        fields: Plain values, enums, paths, dataclasses, and mappings and sequences of these.

    Raises:
        ConfigError: If a value is not finite or cannot be written as JSON.
    """
    plain = {"stage": stage, **_canonical(fields)}
    return Identity(_sha256(_dumps(plain)), plain)


def digest_of(fields: Mapping[str, Any]) -> str:
    """Hash fields that were read, their stage among them; empty where no identity holds them."""
    try:
        return make_identity(str(fields.get("stage")), fields).digest
    except ConfigError:
        return ""


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Name what differs between two identities' fields.

    Returns:
        For example ``"tiler.step was 256 and is 128; encoder.weights was its default and is
        'a.pt'"``, ``"tiles changed"`` where two digests differ, or ``"nothing that was
        recorded"``.
    """
    before, after = dict(_flatten(_canonical(old))), dict(_flatten(_canonical(new)))
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    # A node that only one side has brings its plugin's name with it, which alone would be no news.
    both = before.keys() & after.keys()
    told = [n for n in names if n in both or n.rpartition(".")[2] not in SPEC_FIELDS]
    names = told or names
    return "; ".join(_tell(name, before, after) for name in names) or "nothing that was recorded"


def fingerprint(path: Path, companions: Sequence[Path] = ()) -> str:
    """Recognise a slide's content without reading all of it, whatever its name.

    Hashes the size, the first and the last MiB of the file. Of a slide in several files, the
    names, sizes and ends of the others count too.

    Args:
        path: The slide.
        companions: Its other files, in any order.

    Returns:
        A sha256 in hexadecimal.

    Raises:
        SlideOpenError: If one of the files cannot be read.
    """
    parts = [_ends(path)]
    for other in sorted(set(companions) - {path}):
        parts.append(f"{other.name}\0{_ends(other)}")
    return _sha256("\n".join(parts))


def _chosen(config: Any) -> dict[str, Any]:
    values = {
        f.name: (_canonical(getattr(config, f.name)), _canonical(_default(f)))
        for f in fields(config)
        if not f.metadata.get(RUNTIME)
    }
    return {name: value for name, (value, default) in values.items() if value != default}


def _default(field: Field[Any]) -> Any:
    if field.default is not MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not MISSING else None


def _canonical(value: Any) -> Any:
    """Reduce a value to JSON's types, so that 20 and 20.0, a list and a tuple are equal."""
    if isinstance(value, Enum):
        return _canonical(value.value)
    if isinstance(value, np.generic | np.ndarray):
        return _canonical(value.tolist())
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(_canonical(key)): _canonical(item) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        items = [_canonical(item) for item in value]
        return sorted(items, key=_dumps) if isinstance(value, set | frozenset) else items
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _canonical(getattr(value, f.name)) for f in fields(value)}
    raise ConfigError(
        f"{value!r} cannot be part of an identity: use numbers, text, lists, mappings."
    )


def _number(value: float) -> float | int:
    if not math.isfinite(value):
        raise ConfigError(f"{value} cannot be part of an identity: only finite numbers can.")
    return int(value) if value.is_integer() else value


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _dumps(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and (value or not name):
        for key, item in value.items():
            yield from _flatten(item, f"{name}.{key}" if name else key)
    else:
        yield name, value


def _tell(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    if all(_DIGEST.fullmatch(str(values.get(name))) for values in (before, after)):
        return f"{name} changed"
    return f"{name} was {_say(before, name)} and is {_say(after, name)}"


def _say(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return "its default"
    value = values[name]
    return f"{value[:12]}…" if isinstance(value, str) and len(value) >= _LONG else repr(value)


def _ends(path: Path) -> str:
    if path.exists() and not path.is_file():  # who opens a pipe waits for its other end
        raise SlideOpenError(f"{path} cannot be read: it is no regular file.")
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            digest = hashlib.sha256(file.read(_ENDS))
            file.seek(max(size - _ENDS, min(size, _ENDS)))
            digest.update(file.read(_ENDS))
    except OSError as error:
        raise SlideOpenError(f"{path} cannot be read: {error.strerror or error}.") from error
    return f"{size} {digest.hexdigest()}"
