"""Specs of what runs a run, and of other tools' files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from microtome.plugin.specs.base import PluginSpec


@dataclass(frozen=True, kw_only=True)
class EngineSpec(PluginSpec):
    """What starts the workers of a run. Its target is called as ``target(config)``: an `Engine`.

    An engine changes no result, so neither its name nor its options are part of an identity.

    Attributes:
        early: What may start before a command line is composed, while nothing is known but the
            engine's name: a context manager, as ``"package.module:name"``, open until the run is
            over. Empty for none.
    """

    kind: ClassVar[str] = "engine"

    early: str = ""


@dataclass(frozen=True, kw_only=True)
class TaskSpec(PluginSpec):
    """What a run can do instead of taking slides to features. Its target gives a `Task`.

    It is called as ``target(config)``. A run chooses it with ``task=NAME``; its options are at
    its own name, ``NAME.key=value``, or on a command line that chooses it ``key=value``.

    Attributes:
        needs_slides: Whether it has nothing to do without slides; otherwise it may go by what the
            output holds.
        takes_slides: Whether it may take slides through the pipeline. To one that goes by what is
            there already, options of tissue, tiles, labels and encoders say nothing, and a command
            line that gives it some is refused.
        folders: Names of the folders that it makes below a tiling's root, which no tiling may have.
    """

    kind: ClassVar[str] = "task"

    needs_slides: bool = False
    takes_slides: bool = True
    folders: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LayoutSpec(PluginSpec):
    """Another tool's files. Its target is called as ``target(config)`` and gives a `Layout`.

    No part of a run: ``microtome export`` and ``microtome import`` go by it. An option marked
    `runtime` changes nothing in the files.

    Attributes:
        tool: The tool's name as it writes it.
        loses: What a slide's files in this layout cannot hold, in words.
    """

    kind: ClassVar[str] = "layout"
    in_runs: ClassVar[bool] = False

    tool: str
    loses: str = ""


@dataclass(frozen=True, kw_only=True)
class FileFormat:
    """A kind of plugin file that another tool defines, and how it is adapted.

    Attributes:
        function: The name of the function by which such a file is known.
        target: What adapts it, ``"package.module:name"``: called with the file's module, it gives
            an object with hooks, which is registered.
        importing: A context manager, as ``"package.module:name"``, in which the code of any
            plugin file is run: the place to answer for modules that only the other tool has.
    """

    function: str
    target: str
    importing: str
