"""Every error that microtome raises on purpose, in one tree.

Each class is also the builtin that a caller would catch. A message is one or two sentences:
what is wrong, where, what is available, what to do. The command line prints it as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_NODE = re.compile(r"(?:slide_|patient_)?encoder\.NAME\.")


def one_line(text: str) -> str:
    """Escape what would break a line, command a terminal or is no text: file names hold it all."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class MicrotomeError(Exception):
    """Root of the tree: catch it to catch everything that microtome raises on purpose."""

    def __str__(self) -> str:
        """Give the message, in one line whatever is quoted in it."""
        return one_line(super().__str__())


class ConfigError(MicrotomeError, ValueError):
    """A command line, configuration or argument that does not describe a run."""


class InputError(MicrotomeError, ValueError):
    """Slides, manifests or other input files that cannot be made sense of."""


class PluginError(MicrotomeError):
    """Something is wrong with a plugin or with the way it is registered."""


class UnknownPluginError(PluginError, LookupError):
    """No plugin of that kind has that name."""


class PluginClashError(PluginError, ValueError):
    """Two distributions register one name of one kind."""


class MissingDependencyError(PluginError, ImportError):
    """A plugin needs a library that is not installed; the message ends in the pip command."""


class SlideError(MicrotomeError):
    """One slide cannot be processed. The other slides go on."""


class SlideOpenError(SlideError, OSError):
    """A slide cannot be opened by any reader, or by the one that was asked for."""


class SlideReadError(SlideError, OSError):
    """A slide is open but some of its pixels cannot be decoded."""


class ResolutionError(SlideError, ValueError):
    """A slide's mpp or magnification is missing, implausible or contradictory."""


class GeometryError(SlideError, ValueError):
    """Tiles that a slide cannot give: a target finer than level 0, a size below one pixel."""


class TissueError(SlideError, ValueError):
    """A segmenter cannot say anything honest about a slide, or a mask does not fit it."""


class AnnotationError(SlideError, ValueError):
    """A file of annotations is malformed, or does not fit its slide."""


class SegmenterError(MicrotomeError, RuntimeError):
    """A segmenter's weights cannot be had, or do not fit its network."""


class EncoderError(MicrotomeError, RuntimeError):
    """An encoder cannot be loaded, or its output is not what its card says."""


class WeightsError(EncoderError, SegmenterError):
    """Weights cannot be had, read or fitted, whichever kind of plugin asks for them."""


class InspectorError(MicrotomeError, RuntimeError):
    """An inspector can say nothing of some tiles, or what it gives is not what its spec says."""


@contextmanager
def naming_encoder(key: str, plugin: str, kind: str = "encoder") -> Iterator[None]:
    """Name the encoder in its errors, which know no more of it than ``NAME``.

    Args:
        key: Of its node in the configuration: ``encoder.NAME.weights``.
        plugin: What it is called among the plugins: ``microtome encoders fetch NAME``.
        kind: Of the plugin, which is that of the node.
    """
    try:
        yield
    except EncoderError as error:
        told = _NODE.sub(f"{kind}.{key}.", MicrotomeError.__str__(error))
        told = told.replace("encoders fetch NAME", f"encoders fetch {plugin}")
        what = kind.replace("_", " ").capitalize()
        error.args = (f"{what} {key}: {told}",)
        raise


class EmbeddingError(MicrotomeError, RuntimeError):
    """Slides or patients that could not be embedded, told once all others are done.

    Attributes:
        failed: What failed by its id, with where and why.
        embedded: What did not, in the order given.
    """

    def __init__(
        self, message: str, *, failed: Mapping[str, str], embedded: Sequence[Any] = ()
    ) -> None:
        super().__init__(message)
        self.failed, self.embedded = dict(failed), list(embedded)


class StoreError(MicrotomeError, OSError):
    """An output cannot be read or written."""


class OutputError(StoreError):
    """The output takes nothing more, whatever the slide: the run ends here."""


class LayoutError(StoreError, ValueError):
    """Another tool's files cannot be made sense of, or cannot hold a slide."""


class TaskError(MicrotomeError, RuntimeError):
    """A task cannot be done with what there is: labels, samples, splits, checkpoints."""


class EngineError(MicrotomeError, RuntimeError):
    """Workers cannot be started, or are lost in a way that is no slide's fault."""


class IdentityError(StoreError, ValueError):
    """An existing output was made by another configuration; the message names the difference."""
