"""What a run wants of an encoder besides embeddings: token grids and attention."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from shutil import disk_usage
from typing import TYPE_CHECKING

import numpy as np

from microtome.errors import ConfigError, EncoderError, StoreError
from microtome.plugin.registry import Registry
from microtome.plugin.specs import EncoderSpec
from microtome.run.settings import EncoderChoice
from microtome.slide.batch import TileBatch

if TYPE_CHECKING:
    from microtome.plugin.protocols import Encoder, EncoderOutput
    from microtome.run.planning.encoders import PlannedEncoder

EMBEDDING = "embedding"
"""What every encoder gives."""

DENSE = ("tokens", "attention")
"""What some give on request, by the name in an `EncoderOutput` and of the group in a store."""

_AXES = 4
_NAMED = 12
_GIB = 1 << 30


def ask_encoder(
    choice: EncoderChoice, spec: EncoderSpec, encoder: Encoder, registry: Registry
) -> tuple[str, ...]:
    """Ask an encoder for what was chosen of it besides embeddings, before it is loaded.

    Every further object of the same encoder has to be asked, too: ``encoder.ask(*names)``.

    Returns:
        Of `DENSE`.

    Raises:
        ConfigError: If it does not give that; names some that do.
    """
    asked = tuple(name for name in DENSE if getattr(choice, name))
    if not asked:
        return ()
    gives = getattr(encoder, "gives", spec.gives)
    for name in asked:
        if name not in gives:
            raise ConfigError(
                f"encoder.{choice.name}.{name}=true, and {spec.name} gives no {name}. These do: "
                f"{_givers(name, registry)}."
            )
    ask = getattr(encoder, "ask")  # noqa: B009 - only encoders that give something have it
    ask(*asked)
    return asked


def _givers(name: str, registry: Registry) -> str:
    specs = [entry.spec for entry in registry.entries("encoder")]
    names = sorted(s.name for s in specs if isinstance(s, EncoderSpec) and name in s.gives)
    told = ", ".join(names[:_NAMED]) or "none that is installed"
    more = len(names) - _NAMED
    return f"{told} and {more} more, see microtome encoders --gives {name}" if more > 0 else told


def find_shapes(planned: PlannedEncoder, size: int) -> dict[str, tuple[int, ...]]:
    """Learn the shapes of what a loaded encoder was asked for, from one black tile.

    Args:
        planned: The encoder.
        size: Of the run's tiles.

    Returns:
        Of a tile: ``tokens`` (height, width, dim), ``attention`` (heads, height, width).

    Raises:
        EncoderError: If it does not give what it was asked for.
    """
    coords = np.array([[0, 0, size, size, 0]], np.int32)
    output = planned.begin(TileBatch(np.zeros((1, size, size, 3), np.uint8), coords))()
    check_dense(planned, output, 1)
    return {name: getattr(output, name).shape[1:] for name in planned.asked}


def check_dense(planned: PlannedEncoder, output: EncoderOutput, count: int) -> None:
    """See that an output has what was asked for, a row a tile.

    Raises:
        EncoderError: If it has not.
    """
    for name in planned.asked:
        array = getattr(output, name)
        shape = None if array is None else array.shape
        if shape is None or len(shape) != _AXES or shape[0] != count or 0 in shape[1:]:
            raise EncoderError(
                f"{planned.name} was asked for {name} and gave {shape or 'none'} for {count} tiles."
            )


def check_space(
    folder: Path, rows: int, shapes: Mapping[str, tuple[int, ...]], *, dtype: str, copies: int
) -> None:
    """Refuse what a disk has no room for, before it is computed.

    Args:
        folder: Where everything is written.
        rows: Tiles of the slide.
        shapes: Of what is kept of a tile, by name.
        dtype: Of what is stored.
        copies: How often all is written: to the scratch, and to each store.

    Raises:
        StoreError: If the disk has less free than that takes.
    """
    need = copies * rows * sum(map(prod, shapes.values())) * np.dtype(dtype).itemsize
    free = disk_usage(folder).free
    if need > free:
        what = ", ".join(f"{name} {' × '.join(map(str, s))}" for name, s in shapes.items())
        smaller = "" if dtype == "float16" else " dense_dtype=float16 halves that;"
        raise StoreError(
            f"{rows} tiles with {what} as {dtype} take {need / _GIB:.1f} GiB in {folder} until "
            f"they are stored, and {free / _GIB:.1f} GiB are free:{smaller} larger tiles are fewer."
        )
