"""What every plugin promises, whatever its kind."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, ClassVar, TypeVar

import pytest

from microtome.plugin.files import add_files, find_files
from microtome.plugin.options import configure
from microtome.plugin.registry import Registered, Registry, get_registry

T = TypeVar("T")

HEAVY = (
    *("torch", "torchvision", "timm", "cucim", "openslide", "pyvips"),
    *("zarr", "h5py", "cv2", "tifffile"),
)
"""Libraries that listing plugins must not import."""


class PluginContract:
    """The base of the contracts.

    Attributes:
        kind: The kind of plugin; set by the contracts.
        plugin: The plugin's name.
        options: Values for its configuration that differ from the defaults, such as
            ``weights="random"``.
        package: The module with the hooks, for a package that is not installed.
        file: The file with the plugin, for one that is no package.
    """

    kind: ClassVar[str]
    plugin: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    package: ClassVar[ModuleType | None] = None
    file: ClassVar[str | Path | None] = None
    _kept: ClassVar[dict[str, Any]]

    @classmethod
    def setup_class(cls) -> None:
        """Begin with nothing kept."""
        cls._kept = {}

    @classmethod
    def teardown_class(cls) -> None:
        """Let go of what was kept: models are large."""
        cls._kept = {}

    def keep(self, name: str, make: Callable[[], T]) -> T:
        """Make something once a class: every test has an instance of its own."""
        if name not in self._kept:
            self._kept[name] = make()
        made: T = self._kept[name]
        return made

    @pytest.fixture
    def registry(self) -> Registry:
        """Every installed plugin, with those of ``file``; or those of ``package`` alone."""
        package, file = self.package, self.file
        if file is not None:
            return add_files(get_registry(), find_files([file]))
        if package is None:
            return get_registry()
        return self.keep("registry", lambda: _registry_of(package))

    @pytest.fixture
    def entry(self, registry: Registry) -> Registered:
        """The plugin under test; skips where a library that it needs is missing."""
        entry = registry.find(self.kind, self.plugin)
        if entry.missing:
            pytest.skip(f"{self.plugin} needs {', '.join(entry.missing)}: {entry.spec.install}")
        return entry

    @pytest.fixture
    def config(self, entry: Registered) -> Any:
        """Its configuration, with ``options``."""
        return configure(entry.spec, **self.options)

    def test_its_summary_is_one_line(self, entry: Registered) -> None:
        """Listings show it in a table."""
        assert entry.spec.summary.strip()
        assert "\n" not in entry.spec.summary

    def test_what_it_requires_can_be_installed(self, entry: Registered) -> None:
        """A user without the libraries is told a command."""
        assert not entry.spec.requires or "install" in entry.spec.install

    def test_its_configuration_can_be_overridden(self, entry: Registered) -> None:
        """Hydra makes a node of it: every type must be known, every field assignable."""
        from omegaconf import OmegaConf

        node = OmegaConf.structured(entry.spec.config)
        for field in fields(entry.spec.config):
            node[field.name] = node[field.name]
        assert entry.spec.config() == entry.spec.config()

    def test_its_target_can_be_loaded(self, registry: Registry, entry: Registered) -> None:
        """The string names something that can be called."""
        assert callable(registry.load(self.kind, entry.spec.name))

    def test_listing_it_imports_nothing_heavy(self, entry: Registered) -> None:
        """``microtome --help`` imports every package's hooks."""
        if self.file is not None:
            pytest.skip("a file is only loaded where it is named")
        top = re.split(r"[.:]", entry.spec.target, maxsplit=1)[0]
        package = top if self.package is None else self.package.__name__
        code = f"import sys, {package}; print(*set(sys.modules) & set({HEAVY!r}))"
        path = {"PYTHONPATH": ":".join(p for p in sys.path if p)}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=path
        )
        assert done.stdout.split() == []


def _registry_of(package: ModuleType) -> Registry:
    registry = Registry()
    registry.add(package, package.__name__, package.__name__)
    if registry.broken:
        pytest.fail(f"the package is broken: {registry.broken[0].reason}")
    return registry
