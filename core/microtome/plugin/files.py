"""Loads plugins out of single Python files, which belong to no installed package."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import traceback
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from microtome.errors import ConfigError, PluginError
from microtome.plugin.packages import resolve
from microtome.plugin.registry import Registry, get_registry
from microtome.plugin.specs import FileFormat
from microtome.plugin.wording import reason


@dataclass(frozen=True)
class PluginFile:
    """A Python file with plugins, as it was when it was found.

    Where one is unpickled its code is loaded, so that what a worker is given next, such as a
    configuration whose class the file defines, can be unpickled too.

    Attributes:
        path: Absolute, without symbolic links.
        sha256: Of its content, in hexadecimal.
    """

    path: Path
    sha256: str

    @property
    def module(self) -> str:
        """The name that its module has in every process."""
        key = os.fsencode(self.path) + self.sha256.encode()
        stem = re.sub(r"\W", "_", self.path.stem, flags=re.ASCII)
        return f"microtome_file_{stem}_{hashlib.sha256(key).hexdigest()[:16]}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle it as what loads it."""
        return _unpickle, (self.path, self.sha256)


def find_files(paths: Iterable[str | Path]) -> tuple[PluginFile, ...]:
    """Find plugin files, without running them.

    Args:
        paths: Where they are; one that is named twice counts once.

    Raises:
        ConfigError: If one does not exist or cannot be read.
    """
    resolved = dict.fromkeys(Path(path).expanduser().resolve() for path in paths)
    return tuple(PluginFile(path, _digest(_read(path))) for path in resolved)


def add_files(registry: Registry, files: tuple[PluginFile, ...]) -> Registry:
    """Give a registry that has the plugins of some files too. This runs the files' code.

    Args:
        registry: Stays as it is.
        files: From `find_files`.

    Returns:
        The registry itself if there are no files; else another, the same for the same files.

    Raises:
        PluginError: If a file cannot be loaded, or has no plugin in it.
        PluginClashError: If it registers a name that is taken.
    """
    return _extended(registry, files) if files else registry


def forget_extended() -> None:
    """Forget the registries that `add_files` made, when what they were made from has changed."""
    _extended.cache_clear()


@lru_cache(maxsize=8)
def _extended(registry: Registry, files: tuple[PluginFile, ...]) -> Registry:
    extended = registry.copy()
    for file in files:
        _add_file(extended, file)
    return extended


def _add_file(registry: Registry, file: PluginFile) -> None:
    module = _load(file, registry.formats)
    mark = registry.manager.parse_hookimpl_opts
    plugins: list[object] = [module] if any(mark(module, name) for name in dir(module)) else []
    for each in registry.formats:
        if callable(getattr(module, each.function, None)):
            plugins.append(_adapt(each, module, file))
    if not plugins:
        functions = " or ".join(["", *(f"a function {each.function}" for each in registry.formats)])
        raise PluginError(
            f"{file.path} has no plugin in it: it needs a hook such as microtome_encoders, marked "
            f"with @hookimpl{functions}."
        )
    for number, plugin in enumerate(plugins):
        registry.add(plugin, f"{file.module}:{number}", str(file.path), file_sha256=file.sha256)
        if registry.broken and registry.broken[-1].distribution == str(file.path):
            why = registry.broken[-1].reason
            raise PluginError(f"The plugins of {file.path} cannot be registered: {why}")


def _adapt(file_format: FileFormat, module: ModuleType, file: PluginFile) -> object:
    """Have a file of another tool adapted: that calls the file's function."""
    try:
        adapted: object = resolve(file_format.target)(module)
    except Exception as error:
        raise PluginError(
            f"{file_format.function} of {file.path} fails{_where(error, file)}: {reason(error)}"
        ) from error
    return adapted


def _load(file: PluginFile, formats: Iterable[FileFormat]) -> ModuleType:
    """Run a file's code as a module that can be imported by its name, once a process."""
    if file.module in sys.modules:
        return sys.modules[file.module]
    source = _read(file.path)
    if _digest(source) != file.sha256:
        raise PluginError(f"{file.path} was changed while the run started; start it again.")
    # Not by the loader's own exec_module: that may run bytecode of an earlier content.
    loader = SourceFileLoader(file.module, str(file.path))
    spec = spec_from_file_location(file.module, file.path, loader=loader)
    if spec is None:
        raise PluginError(f"{file.path} cannot be loaded as a module.")
    module = module_from_spec(spec)
    sys.modules[file.module] = module
    try:
        with ExitStack() as stack:
            for each in formats:
                stack.enter_context(resolve(each.importing)())
            exec(compile(source, str(file.path), "exec", dont_inherit=True), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[file.module]
        raise PluginError(
            f"{file.path} cannot be loaded{_where(error, file)}: {reason(error)}"
        ) from error
    return module


def _where(error: BaseException, file: PluginFile) -> str:
    """Say in which line of the file it came to an error; empty where that is not known."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(file.path)]
    return f" (line {lines[-1]})" if lines else ""


def _unpickle(path: Path, sha256: str) -> PluginFile:
    file = PluginFile(path, sha256)
    _load(file, get_registry().formats)
    return file


def _read(path: Path) -> bytes:
    if not path.is_file():
        several = " Several are written [a.py,b.py]." if "," in path.name else ""
        raise ConfigError(f"encoder_plugin={path} is no file: name a Python file.{several}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"encoder_plugin={path} cannot be read: {error.strerror}.") from error


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
