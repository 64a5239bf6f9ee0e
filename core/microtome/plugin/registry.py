"""Finds plugins, lists them without importing their code, and makes them when chosen."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pluggy

from microtome.errors import (
    MicrotomeError,
    MissingDependencyError,
    PluginClashError,
    PluginError,
    UnknownPluginError,
)
from microtome.plugin import aliases, hookspecs
from microtome.plugin.aliases import listed
from microtome.plugin.options import configure
from microtome.plugin.packages import GROUP, canonical, entry_points, installed, resolve
from microtome.plugin.specs import SPECS, BagEncoderSpec, EncoderSpec, FileFormat, PluginSpec
from microtome.plugin.specs.checks import check
from microtome.plugin.wording import reason, unknown


@dataclass(frozen=True)
class Registered:
    """A spec and the distribution, or the path of the file, that it came from."""

    spec: PluginSpec
    distribution: str

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of required modules that are not installed."""
        return tuple(name for name in self.spec.requires if not installed(name))


@dataclass(frozen=True)
class Broken:
    """A plugin that could not be loaded, and why."""

    name: str
    distribution: str
    reason: str


class Registry:
    """Every plugin that is installed, by kind and name.

    Attributes:
        broken: What could not be loaded.
        formats: Plugin files of other tools that can be adapted.
    """

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager(hookspecs.PROJECT)
        self.manager.add_hookspecs(hookspecs)
        self.broken: list[Broken] = []
        self.formats: list[FileFormat] = []
        self._entries: dict[str, dict[str, Registered]] = {kind: {} for kind in SPECS}

    def copy(self) -> Registry:
        """Give another with the same plugins, to which more can be added."""
        made = Registry()
        for name, module in self.manager.list_name_plugin():
            made.manager.register(module, name)
        made.broken, made.formats = list(self.broken), list(self.formats)
        made._entries = {kind: dict(entries) for kind, entries in self._entries.items()}
        return made

    def add(self, module: object, name: str, distribution: str, *, file_sha256: str = "") -> None:
        """Register a module with hook implementations.

        A module whose hooks raise, give something that is no spec, or name a hook that does not
        exist is recorded as broken and leaves the rest alone.

        Args:
            module: Anything with `hookimpl` functions.
            name: The entry point's name.
            distribution: The distribution that brings it, or the path of the file.
            file_sha256: Of a single file; empty for a module of a package.

        Raises:
            PluginClashError: If one of its specs takes a name that another distribution has.
        """
        plugin_name = f"{distribution}:{name}"
        try:
            self.manager.register(module, plugin_name)
            self.manager.check_pending()
            found = list(self._specs_of(plugin_name))
            formats = list(self._formats_of(plugin_name))
        except Exception as error:  # noqa: BLE001 - a stranger's hook may raise anything
            if self.manager.has_plugin(plugin_name):
                self.manager.unregister(name=plugin_name)
            self.broken.append(Broken(name, distribution, reason(error)))
            return
        self.formats += formats
        for spec in found:
            target = spec.target
            if target.startswith(":"):
                target = f"{getattr(module, '__name__', '')}{target}"
            self._enter(replace(spec, target=target, file_sha256=file_sha256), distribution)

    def remove(self, name: str, distribution: str) -> None:
        """Forget what `add` registered by that name, if anything."""
        if self.manager.has_plugin(f"{distribution}:{name}"):
            self.manager.unregister(name=f"{distribution}:{name}")
        for entries in self._entries.values():
            for key in [k for k, entry in entries.items() if entry.distribution == distribution]:
                del entries[key]

    def _specs_of(self, plugin_name: str) -> Iterator[PluginSpec]:
        for kind, spec_type in SPECS.items():
            for spec in self._results(f"microtome_{kind}s", plugin_name):
                check(spec, spec_type)
                yield spec

    def _formats_of(self, plugin_name: str) -> Iterator[FileFormat]:
        for found in self._results("microtome_file_formats", plugin_name):
            if not isinstance(found, FileFormat):
                raise TypeError(f"microtome_file_formats gave {found!r}, which is no FileFormat")
            yield found

    def _results(self, hook: str, plugin_name: str) -> Iterator[Any]:
        """Give what one plugin returns from a hook."""
        others = [p for n, p in self.manager.list_name_plugin() if n != plugin_name]
        for result in self.manager.subset_hook_caller(hook, others)():
            yield from result

    def _enter(self, spec: PluginSpec, distribution: str) -> None:
        entries = self._entries[spec.kind]
        if spec.name in entries:
            first = entries[spec.name].distribution
            way_out = (
                "Give it another name in the file."
                if spec.file_sha256
                else f"Uninstall one of them, or name those to load: MICROTOME_PLUGINS={first}"
            )
            raise PluginClashError(
                f"Both {first} and {distribution} register the {spec.kind} {spec.name!r}. {way_out}"
            )
        entries[spec.name] = Registered(spec, distribution)

    def names(self, kind: str) -> list[str]:
        """List the names of a kind, sorted."""
        return sorted(self._entries[kind])

    def entries(self, kind: str) -> list[Registered]:
        """List what is registered of a kind, sorted by name."""
        return [self._entries[kind][name] for name in self.names(kind)]

    def find(self, kind: str, name: str) -> Registered:
        """Look up a plugin, whatever the case of its name.

        Raises:
            UnknownPluginError: If there is none; says what is available.
        """
        entry = self._entries[kind].get(name.lower())
        if entry is None:
            hint = self.meant(kind, name)
            raise UnknownPluginError(unknown(kind, name, self.names(kind), hint=hint))
        return entry

    def meant(self, kind: str, name: str) -> str:
        """Say what other tools mean by the name of an encoder; empty if nothing."""
        specs = (e.spec for e in self._entries[kind].values())
        known = (s for s in specs if isinstance(s, EncoderSpec | BagEncoderSpec))
        found = aliases.meant(name, known)
        return f"By that name {aliases.told(found)}." if found else ""

    def load(self, kind: str, name: str) -> Callable[..., Any]:
        """Import a plugin's code.

        Raises:
            UnknownPluginError: If there is no such plugin.
            MissingDependencyError: If a library that it needs is not installed.
            PluginError: If its code cannot be imported.
        """
        entry = self.find(kind, name)
        if entry.missing:
            raise MissingDependencyError(
                f"The {kind} {entry.spec.name!r} needs {listed(entry.missing)}, which "
                f"{'is' if len(entry.missing) == 1 else 'are'} not installed. "
                f"Install with: {entry.spec.install or 'pip install ' + ' '.join(entry.missing)}"
            )
        try:
            target: Callable[..., Any] = resolve(entry.spec.target)
        except (ImportError, AttributeError) as error:
            raise PluginError(
                f"The {kind} {entry.spec.name!r} of {entry.distribution} cannot be loaded from "
                f"{entry.spec.target!r}: {error}"
            ) from error
        return target

    def create(self, kind: str, name: str, config: object | None = None) -> Any:
        """Make a segmenter, tiler, encoder or writer.

        Args:
            kind: The kind of plugin.
            name: Its name.
            config: An instance of its ``config`` class; its defaults if None.
        """
        spec = self.find(kind, name).spec
        fixed = spec.fixed if isinstance(spec, EncoderSpec | BagEncoderSpec) else {}
        target = self.load(kind, name)
        with self.blame(kind, name, "made"):
            return target(configure(spec) if config is None else config, **fixed)

    @contextmanager
    def started_early(self, engine: str) -> Iterator[None]:
        """Let an engine start what it can before its options are known; see `EngineSpec.early`.

        Args:
            engine: Its name; nothing starts for one that does not exist or lacks a library.

        Raises:
            PluginError: If its start raises anything but microtome's own errors.
        """
        entry = self._entries["engine"].get(engine.lower())
        early = "" if entry is None or entry.missing else getattr(entry.spec, "early", "")
        with ExitStack() as stack:
            if early:
                with self.blame("engine", engine, "started"):
                    stack.enter_context(resolve(early)())
            yield

    @contextmanager
    def blame(self, kind: str, name: str, what: str) -> Iterator[None]:
        """Turn whatever a plugin's code raises into an error that names the plugin.

        Args:
            kind: The kind of plugin.
            name: Its name.
            what: What could not be done: ``"made"``, ``"loaded"``.

        Raises:
            PluginError: For anything but microtome's own errors.
        """
        try:
            yield
        except MicrotomeError:
            raise
        except Exception as error:
            distribution = self.find(kind, name).distribution
            raise PluginError(
                f"The {kind} {name!r} of {distribution} cannot be {what}: {reason(error)}"
            ) from error

    def notify(self, hook: str, **what: Any) -> list[str]:
        """Call an observer hook, plugin by plugin; one that raises is dropped.

        Args:
            hook: The hook's name.
            **what: Its arguments.

        Returns:
            A sentence for each observer that was dropped.
        """
        complaints = []
        for implementation in list(getattr(self.manager.hook, hook).get_hookimpls()):
            try:
                implementation.function(**{name: what[name] for name in implementation.argnames})
            except Exception as error:  # noqa: BLE001 - a stranger's observer may raise anything
                name = implementation.plugin_name
                self.manager.unregister(name=name)
                complaints.append(f"the observer {name} was dropped: {reason(error)}")
        return complaints


@cache
def get_registry() -> Registry:
    """Load every installed plugin, once a process.

    ``MICROTOME_PLUGINS=a,b`` restricts loading to distributions ``a`` and ``b``, and microtome's
    own rooms.

    Raises:
        PluginClashError: If two distributions register one name of one kind.
    """
    registry = Registry()
    allowed = os.environ.get("MICROTOME_PLUGINS")
    only = {canonical(name) for name in allowed.split(",")} if allowed is not None else None
    found = set()
    for point in entry_points():
        distribution = point.dist.name if point.dist else "unknown"
        found.add(canonical(distribution))
        if only is not None and canonical(distribution) not in only | {GROUP}:
            continue
        try:
            module = point.load()
        except Exception as error:  # noqa: BLE001 - a stranger's module may raise anything
            registry.broken.append(Broken(point.name, distribution, reason(error)))
            continue
        registry.add(module, point.name, distribution)
    for name in sorted((only or set()) - found - {GROUP, ""}):
        registry.broken.append(Broken(name, name, "MICROTOME_PLUGINS names it, and it has none"))
    return registry
