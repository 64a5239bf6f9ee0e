"""What a run says, in the words of those who called it from Python."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

from microtome.api.execution import ExecutionOptions
from microtome.api.fields import describe
from microtome.api.preprocessing import FilterConfig, PreprocessingConfig, SegmentationConfig
from microtome.errors import MicrotomeError
from microtome.run.progress import TeeReporter
from microtome.store.status import SlideStatus

_OURS = re.compile(r"^.*[/\\]runs[/\\]python-\w+[/\\]slides\.csv line \d+: ")
"""Before what is told of a row of the manifest that was written for a run."""

_KEY = re.compile(r"(?<![\w.@=])(\+?[a-z_]+(?:[.@]\w+)*)=")
"""A key of a command line."""

_OTHERS = {
    "mpp": "a slide's spacing_at_level_0",
    "mpp_csv": "a slide's spacing_at_level_0",
    "force": "PreprocessingConfig(resume=False)",
    "tiler.folder": "PreprocessingConfig.read_coordinates_from",
    "tiler.magnification": "PreprocessingConfig(tiler={'magnification': …})",
    "tiler.level": "PreprocessingConfig(tiler={'level': …})",
    "tiler.edge": "PreprocessingConfig(tiler={'edge': …})",
    "+encoder@encoder.KEY": "another ExecutionOptions.output_dir",
    "+slide_encoder@slide_encoder.KEY": "another ExecutionOptions.output_dir",
    "+patient_encoder@patient_encoder.KEY": "another ExecutionOptions.output_dir",
}
"""Keys that no field alone is mapped onto."""


@cache
def _fields() -> dict[str, str]:
    owners = (SegmentationConfig, FilterConfig, ExecutionOptions, PreprocessingConfig)
    rows = [row for owner in owners for row in describe(owner)]
    return {key: f"{row.owner}.{row.name}" for row in rows for key in row.onto if "." in key}


def in_python(text: str) -> str:
    """Add to a message which fields the keys of a command line in it are."""
    known = {**_fields(), **_OTHERS}
    keys: dict[str, list[str]] = {}
    for key in dict.fromkeys(_KEY.findall(text)):
        if key in known:
            keys.setdefault(known[key], []).append(key)
    if not keys:
        return text
    told = "; ".join(f"{' and '.join(several)}: {field}" for field, several in keys.items())
    return f"{text} In Python, {told}."


def of_slide(message: str) -> str:
    """Give what is told of a slide, without the manifest that was written for the run."""
    return in_python(_OURS.sub("", message))


@contextmanager
def python_words() -> Iterator[None]:
    """Have errors name the fields of the Python face.

    Raises:
        MicrotomeError: That is raised within.
    """
    try:
        yield
    except MicrotomeError as error:
        if len(error.args) == 1:
            error.args = (in_python(str(error.args[0])),)
        raise


class PythonReporter(TeeReporter):
    """Passes all on to reporters, what failed in the words of the Python face."""

    def finished(self, status: SlideStatus) -> None:
        """Pass it on."""
        if status.error is not None:
            error = {**status.error, "message": of_slide(status.message)}
            status = replace(status, error=error)
        super().finished(status)
