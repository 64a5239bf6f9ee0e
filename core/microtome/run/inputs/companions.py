"""Which files are one slide: MRXS with its folder, VMS and VMU with their parts, a DICOM series."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from microtome.run.inputs.paths import is_file

DICOM_SUFFIXES = (".dcm", ".dicom")
_HEAD_BYTES = 1 << 18
_SERIES_UID = (0x0020, 0x000E)
_TRANSFER_SYNTAX = (0x0002, 0x0010)
_IMPLICIT = "1.2.840.10008.1.2"
_UNREADABLE_SYNTAXES = ("1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")
"""Big endian and deflated: retired, and never seen in slides."""

# Value representations whose length takes four bytes (DICOM PS3.5, table 7.1-1).
_LONG_VR = frozenset(
    [b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"]
)
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)


@dataclass(frozen=True)
class SlideFiles:
    """The files of one slide.

    Attributes:
        primary: The file that a reader opens.
        companions: The others, sorted.
    """

    primary: Path
    companions: tuple[Path, ...] = ()


class Companions:
    """Finds a slide's files. Remembers the DICOM folders that it has looked into."""

    def __init__(self) -> None:
        self._series: dict[Path, dict[Path, SlideFiles]] = {}

    def of(self, path: Path) -> SlideFiles:
        """Find the slide that a file belongs to.

        A DICOM series is represented by its largest file (the finest level), whichever of its
        files is given, so that its name does not depend on how it was asked for.

        Args:
            path: A file with a slide format's suffix.
        """
        suffix = path.suffix.lower()
        if suffix == ".mrxs":
            return SlideFiles(path, tuple(_files(path.with_suffix(""))))
        if suffix in (".vms", ".vmu"):
            return SlideFiles(path, tuple(_named_files(path)))
        if suffix in DICOM_SUFFIXES:
            return self._dicom(path)
        return SlideFiles(path)

    def _dicom(self, path: Path) -> SlideFiles:
        if path.parent not in self._series:
            self._series[path.parent] = _series_in(path.parent)
        return self._series[path.parent].get(path, SlideFiles(path))


def _files(folder: Path) -> list[Path]:
    """List the files of a folder; of one that is not there or cannot be read, none."""
    try:
        return sorted(path for path in folder.iterdir() if is_file(path))
    except OSError:
        return []


def _named_files(path: Path) -> list[Path]:
    """List the files that an index file names in a ``key=value`` line and that lie beside it."""
    try:
        with path.open("rb") as file:
            text = file.read(_HEAD_BYTES).decode("latin-1")
    except OSError:
        return []
    values = {line.partition("=")[2].strip() for line in text.splitlines()}
    named = (path.parent / Path(value).name for value in values if value and "\0" not in value)
    return sorted({p for p in named if is_file(p) and p != path})


def _series_in(folder: Path) -> dict[Path, SlideFiles]:
    """Give the slide of each DICOM file in a folder."""
    series: dict[str, list[Path]] = {}
    for path in _files(folder):
        if path.suffix.lower() in DICOM_SUFFIXES and (uid := series_uid(path)):
            series.setdefault(uid, []).append(path)
    slides: dict[Path, SlideFiles] = {}
    for files in series.values():
        primary = max(files, key=lambda f: (f.stat().st_size, f.name))
        slide = SlideFiles(primary, tuple(f for f in files if f != primary))
        slides |= dict.fromkeys(files, slide)
    return slides


def series_uid(path: Path) -> str | None:
    """Read a DICOM file's SeriesInstanceUID from its header.

    Returns:
        The UID, or None for a file that is no DICOM, is damaged, or is of a retired encoding:
        it is then a slide by itself.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_HEAD_BYTES)
        return _find_series_uid(data)
    except (OSError, struct.error, UnicodeDecodeError):
        return None


def _find_series_uid(data: bytes) -> str | None:
    if data[128:132] != b"DICM":
        return None
    syntax = ""
    for tag, value, in_header in _elements(data):
        if tag == _TRANSFER_SYNTAX:
            syntax = _text(value)
        elif not in_header and syntax in _UNREADABLE_SYNTAXES:
            return None
        elif tag == _SERIES_UID:
            return _text(value) or None
        elif tag > _SERIES_UID:
            return None
    return None


def _elements(data: bytes) -> Iterator[tuple[tuple[int, int], bytes, bool]]:
    """Walk the top-level elements: tag, value, and whether it is in the file's meta header."""
    position, explicit, syntax = 132, True, ""
    while position + 8 <= len(data):
        tag = struct.unpack_from("<HH", data, position)
        in_header = tag[0] == 2
        # The meta header is always explicit; what follows is as it says.
        explicit = in_header or syntax != _IMPLICIT
        start, length = _value(data, position, explicit)
        end = _skip_items(data, start, explicit) if length == _UNDEFINED else start + length
        if tag == _TRANSFER_SYNTAX:
            syntax = _text(data[start:end])
        yield (tag[0], tag[1]), data[start:end], in_header
        position = end


def _value(data: bytes, position: int, explicit: bool) -> tuple[int, int]:
    """Give where an element's value starts and how long it is."""
    is_delimiter = struct.unpack_from("<H", data, position)[0] == _ITEM[0]
    if is_delimiter or not explicit:
        return position + 8, struct.unpack_from("<I", data, position + 4)[0]
    if data[position + 4 : position + 6] in _LONG_VR:
        return position + 12, struct.unpack_from("<I", data, position + 8)[0]
    return position + 8, struct.unpack_from("<H", data, position + 6)[0]


def _skip_items(data: bytes, position: int, explicit: bool) -> int:
    """Give where a sequence or an item of undefined length ends, by counting what opens."""
    depth = 1
    while depth:
        tag = struct.unpack_from("<HH", data, position)
        start, length = _value(data, position, explicit)
        if tag in (_ITEM_END, _SEQUENCE_END):
            depth -= 1
            position = start
        elif length == _UNDEFINED:
            depth += 1
            position = start
        else:
            # An item of known length is skipped whole, as is a plain element.
            position = start + length
    return position


def _text(value: bytes) -> str:
    return value.rstrip(b"\0 ").decode("ascii")
