"""What every kind of plugin says of itself, and how its options are declared."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

RUNTIME = "microtome.runtime"


def runtime(default: Any, *, help: str = "") -> Any:
    """Declare a configuration field that does not change results.

    Such a field (a batch size, a device, a number of workers) is left out of identities, so
    changing it does not make finished work stale.

    Args:
        default: The field's default: an immutable value, or a ``list`` (copied).
        help: One sentence for the documentation.
    """
    metadata = {RUNTIME: True, "help": help}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def option(default: Any, *, help: str) -> Any:
    """Declare a configuration field that changes results, with a sentence of help.

    Args:
        default: The field's default: an immutable value, or a ``list`` (copied).
        help: One sentence for the documentation.
    """
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class NoConfig:
    """The configuration of a plugin that has nothing to configure."""


@dataclass(frozen=True, kw_only=True)
class PluginSpec:
    """What every kind of plugin says of itself.

    Attributes:
        name: The name in configurations: lower case, ``[a-z0-9_]+``, unique in its kind.
        target: Where the code is, ``"package.module:Name"``; ``":Name"`` for the module with the
            hook itself, as in a single file.
        summary: One line for listings.
        config: A plain, non-frozen dataclass with the plugin's options and their defaults.
            Types must be ones that OmegaConf knows (``int``, ``float | None``, ``list[str]``,
            an ``Enum``), imported at run time. Mark fields that change no result with
            `runtime`.
        requires: Names of modules that the code imports, checked without importing them.
        install: The command that installs them, shown when one is missing.
        output_version: Raised only when the plugin's results change; part of every identity.
        file_sha256: Of the single file that the plugin is from, which the registry fills in; part
            of every identity. Empty for one of a package.
    """

    kind: ClassVar[str]
    in_runs: ClassVar[bool] = True

    name: str
    target: str
    summary: str
    config: type = NoConfig
    requires: tuple[str, ...] = ()
    install: str = ""
    output_version: int = 1
    file_sha256: str = ""
