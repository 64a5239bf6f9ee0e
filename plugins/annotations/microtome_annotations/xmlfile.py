"""Reads XML as it comes by, whatever its size: no entities, every complaint with its line."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol
from xml.parsers import expat

from microtome.errors import AnnotationError

_CHUNK = 1 << 20
_DECIMAL_COMMA = re.compile(r"\s*[-+]?\d+,\d+(?:[eE][-+]?\d+)?\s*")


class FaultError(ValueError):
    """Something in the file is wrong, on a line."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(what)
        self.line = line


class Handler(Protocol):
    """Takes elements as they come."""

    def start(self, tag: str, attributes: Mapping[str, str], line: int) -> None:
        """Take the begin of an element."""

    def end(self, tag: str, text: str) -> None:
        """Take its end, with the text since the last begin or end of any."""


def parse(path: Path, handler: Handler) -> None:
    """Read a file through.

    Args:
        path: The file, in any encoding that its first bytes or its declaration tell.
        handler: Given each element; raises `FaultError`.

    Raises:
        AnnotationError: If it is no well-formed XML, declares entities (which can make gigabytes
            of a line, or ask for other files), or the handler complains.
    """
    parser = _make_parser(handler)
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                parser.Parse(chunk, False)
            parser.Parse(b"", True)
    except expat.ExpatError as error:
        what = f"it is no well-formed XML here ({expat.ErrorString(error.code)})"
        raise AnnotationError(f"{path}, line {error.lineno}: {what}.") from error
    except FaultError as error:
        raise AnnotationError(f"{path}, line {error.line}: {error}.") from error
    except (ValueError, LookupError) as error:
        # Of the parser: an encoding that it cannot take. The handlers raise their own.
        raise AnnotationError(f"{path}: {error}. Save it as UTF-8.") from error


def _make_parser(handler: Handler) -> expat.XMLParserType:
    parser = expat.ParserCreate()
    parser.buffer_text = True
    texts: list[str] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        texts.clear()
        handler.start(tag, attributes, parser.CurrentLineNumber)

    def end(tag: str) -> None:
        handler.end(tag, "".join(texts).strip())
        texts.clear()

    def refuse(*_: object) -> None:
        raise FaultError(
            parser.CurrentLineNumber, "it declares entities in a DOCTYPE, which are not read"
        )

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = texts.append
    parser.EntityDeclHandler = refuse
    return parser


def number(text: str | None, what: str, line: int) -> float:
    """Read a number; a comma may be its decimal point, where the tool ran in such a locale.

    Raises:
        FaultError: If it is none, or not finite.
    """
    if text is None:
        raise FaultError(line, f"{what} is missing")
    try:
        value = float(text)
    except ValueError:
        if not _DECIMAL_COMMA.fullmatch(text):
            raise FaultError(line, f"{what} is {text!r}, which is no number") from None
        value = float(text.replace(",", "."))
    if not math.isfinite(value):
        raise FaultError(line, f"{what} is {text!r}, which is no place")
    return value
