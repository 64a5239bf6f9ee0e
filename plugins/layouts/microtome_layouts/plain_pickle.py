"""Pickles of plain values, read without running what is in them."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import LayoutError

_DAMAGE = (
    *(pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError),
    *(AttributeError, OverflowError, RecursionError, MemoryError, ImportError),
)
"""What a pickle that is cut short, or no pickle, makes the unpickler raise."""


def load_plain(path: Path) -> Any:
    """Read a pickle of dictionaries, lists, tuples, sets, numbers, text, and arrays of numpy.

    A pickle may call whatever can be imported. This one calls nothing but what stands in
    `_ALLOWED`, which it cannot change, and numpy's own functions, which trust what they are given,
    not at all.

    Args:
        path: The file.

    Raises:
        LayoutError: If it asks for anything else, or is damaged.
    """
    try:
        with path.open("rb") as file:
            return _PlainUnpickler(file, path).load()
    except LayoutError:
        raise
    except OSError as error:
        raise LayoutError(f"{path} cannot be read: {error.strerror or error}.") from error
    except _DAMAGE as error:
        raise LayoutError(
            f"{path} cannot be read as a pickle of plain values: it is damaged or another kind of "
            f"file ({type(error).__name__}: {error})."
        ) from error


class _PlainUnpickler(pickle.Unpickler):
    def __init__(self, file: io.BufferedReader, path: Path) -> None:
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        """Answer for a few names; refuse all others, which could be any function."""
        known = module.replace("numpy._core", "numpy.core").replace("__builtin__", "builtins")
        found = _ALLOWED.get((known, name))
        if found is None:
            raise LayoutError(
                f"{self._path} asks for {module}.{name}, which is no plain value; it is not read, "
                "since a pickle can run anything. Save it anew with numbers, text and lists alone."
            )
        return found

    def persistent_load(self, pid: object) -> Any:
        """Refuse what lies outside of the file."""
        raise LayoutError(f"{self._path} refers to {pid!r} outside of the file; it is not read.")


class _Dtype:
    """A type of numbers or text, as a pickle names it."""

    def __init__(self, text: str, *_: object) -> None:
        self._text = text

    def __setstate__(self, state: Sequence[Any]) -> None:
        """Take the order of bytes, and nothing that could describe memory."""
        if state[2:5] != (None, None, None):
            raise ValueError("a type with fields")
        if state[1] in ("<", ">"):
            self._text = state[1] + self._text

    def make(self) -> np.dtype[Any]:
        """Give the type of numpy."""
        made = np.dtype(self._text)
        if made.kind not in "biufSU":
            raise ValueError(f"values of type {made}")
        return made


class _Array:
    """An array, as a pickle describes it: made when its state is known."""

    def __init__(self, *_: object) -> None:
        self._values: NDArray[Any] = np.empty(0)

    def __setstate__(self, state: Sequence[Any]) -> None:
        """Take shape, type and bytes."""
        shape, dtype, by_column, data = state[-4:]
        self._values = _frombuffer(data, dtype, shape, "F" if by_column else "C")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Give the array."""
        return self._values if dtype is None else self._values.astype(dtype)


class _Function:
    """A function that a pickle may call and cannot change, as it could one's defaults."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *args: Any) -> Any:
        """Call it."""
        return self._call(*args)

    def __setstate__(self, state: object) -> None:
        """Refuse what would change it."""
        raise ValueError("it changes a function that it is read with")


def _frombuffer(data: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> NDArray[Any]:
    flat: NDArray[Any] = np.frombuffer(bytes(data), dtype.make())
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: _Dtype, data: bytes) -> Any:
    return np.frombuffer(bytes(data), dtype.make())[0].item()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Give the bytes that protocols before 3 keep as text."""
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "bytearray"): bytearray,
    ("builtins", "complex"): complex,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "scalar"): _Function(_scalar),
    ("numpy.core.numeric", "_frombuffer"): _Function(_frombuffer),
    ("_codecs", "encode"): _Function(_encode),
}
