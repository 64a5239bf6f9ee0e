"""Plugins that are defined where they are used: in a notebook or a script."""

from __future__ import annotations

from typing import TypeVar

from microtome.errors import PluginError
from microtome.plugin.files import forget_extended
from microtome.plugin.registry import get_registry
from microtome.plugin.specs import SPECS

T = TypeVar("T")


def register(plugin: T) -> T:
    """Register plugins of your own in this process; also as a decorator of a class of hooks.

    ::

        @microtome.register
        class Mine:
            @staticmethod
            @hookimpl
            def microtome_encoders():
                yield EncoderSpec(name="mine", target="__main__:MyEncoder", summary="My encoder")

    Registered again under its name, as when a cell is run twice, it replaces what it was. Other
    processes do not see it, so it goes with ``engine=inline``, the default of the Python API where
    slides are not spread over GPUs; a file given as ``encoder_plugin`` goes everywhere. Nor does an
    identity tell what is in it: raise its spec's ``output_version`` when its results change.

    Args:
        plugin: A class, an object or a module with hooks, each marked by ``@hookimpl``.

    Returns:
        The plugin itself.

    Raises:
        PluginError: If it has no hook, or one gives what is no spec.
        PluginClashError: If it takes a name that another plugin has.
    """
    registry = get_registry()
    mark = registry.manager.parse_hookimpl_opts
    hooks = [f"microtome_{kind}s" for kind in SPECS]
    if not any(mark(plugin, hook) for hook in hooks if hasattr(plugin, hook)):
        raise PluginError(
            f"{plugin!r} has no plugin in it: it needs a hook such as microtome_encoders, marked "
            "with @hookimpl."
        )
    name = str(getattr(plugin, "__name__", type(plugin).__name__))
    distribution = f"registered {name}"
    registry.remove(name, distribution)
    registry.add(plugin, name, distribution)
    forget_extended()
    if registry.broken and registry.broken[-1].distribution == distribution:
        raise PluginError(f"{name} cannot be registered: {registry.broken.pop().reason}")
    return plugin
