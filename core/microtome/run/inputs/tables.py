"""The tables that a run reads: CSV manifests of slides, and CSVs of mpp."""

from __future__ import annotations

import codecs
import csv
import io
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from microtome.errors import InputError
from microtome.run.inputs.paths import absolute, as_on_disk, describe_missing, is_file
from microtome.run.inputs.sources import is_url, url_path

SLIDE_COLUMNS = ("slide", "wsi", "slide_path", "wsi_path", "image_path", "path", "filename", "file")
"""Names of the column that names a slide; the first one present counts."""

MASK_COLUMNS = ("mask_path", "mask")

ANNOTATION_COLUMNS = ("annotation_path", "annotation", "annotations")

_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?", re.ASCII)
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        where: ``<file> line <n>``, for messages.
        values: By column; names are lower case with underscores, values stripped text.
    """

    where: str
    values: Mapping[str, str]


@dataclass(frozen=True)
class ManifestEntry:
    """A slide as a manifest's row describes it.

    Attributes:
        path: Absolute.
        where: ``<file> line <n>``, for messages.
        slide_id: As written, or None.
        mpp: Level-0 µm per pixel, or None.
        mask_path: Absolute, or None.
        annotation_path: Absolute, or None; whether it is there is asked where it is wanted.
        extra: The other columns.
        problem: Why this slide cannot be done, or empty.
        url: Where the slide lies, if that is no path.
    """

    path: Path
    where: str
    slide_id: str | None = None
    mpp: float | None = None
    mask_path: Path | None = None
    annotation_path: Path | None = None
    extra: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""
    url: str = ""


def read_manifest(path: Path) -> list[ManifestEntry]:
    """Read a manifest: a CSV with a header, one slide a row.

    Columns: the slide (`SLIDE_COLUMNS`), and if wanted ``slide_id``, ``mpp`` (µm per level-0
    pixel), ``mask_path`` and ``annotation_path``; others are kept as text. A relative path is
    looked for beside the manifest first, then in the working directory. Comma, semicolon or tab
    separated; UTF-8, or UTF-16 with its byte order mark, as spreadsheets write it.

    Raises:
        InputError: Naming file and line.
    """
    rows = list(_rows(path))
    slide = _column(path, rows, SLIDE_COLUMNS)
    mask, annotation = (
        next((name for name in names if name in rows[0].values), "")
        for names in (MASK_COLUMNS, ANNOTATION_COLUMNS)
    )
    entries: dict[str, ManifestEntry] = {}
    for row in rows:
        entry = _entry(path.parent, row, slide=slide, mask=mask, annotation=annotation)
        key = entry.url or os.path.realpath(entry.path)
        if key in entries:
            named = entry.url or entry.path
            raise InputError(f"{row.where}: {named} is already in {entries[key].where}.")
        entries[key] = entry
    return list(entries.values())


def read_table(path: Path, *columns: Sequence[str]) -> list[Row]:
    """Read any table as a manifest is read.

    Args:
        path: A CSV with a header.
        *columns: Names of a column each, one of which must be there.

    Raises:
        InputError: Naming file and line.
    """
    rows = list(_rows(path))
    for names in columns:
        _column(path, rows, names)
    return rows


def _entry(folder: Path, row: Row, *, slide: str, mask: str, annotation: str) -> ManifestEntry:
    values = dict(row.values)
    name, mask_name, outlines = values.pop(slide), values.pop(mask, ""), values.pop(annotation, "")
    mpp, slide_id = values.pop("mpp", ""), values.pop("slide_id", "")
    if not name:
        raise InputError(f"{row.where}: the column {slide!r} is empty.")
    url = name if is_url(name) else ""
    path = _url_path(url, row) if url else _find(folder, name)
    mask_path = _find(folder, mask_name) if mask_name else None
    needed = [mask_path] if url else [path, mask_path]
    missing = [given for given in needed if given is not None and not is_file(given)]
    return ManifestEntry(
        path=path,
        where=row.where,
        slide_id=slide_id or None,
        mpp=_positive(mpp, row) if mpp else None,
        mask_path=mask_path,
        annotation_path=_find(folder, outlines) if outlines else None,
        extra=values,
        problem=f"{row.where}: {describe_missing(missing[0])}" if missing else "",
        url=url,
    )


def _url_path(url: str, row: Row) -> Path:
    try:
        return url_path(url)
    except InputError as error:
        raise InputError(f"{row.where}: {error}") from error


def _find(folder: Path, name: str) -> Path:
    """Look for a file beside the manifest, then in the working directory."""
    beside, here = (as_on_disk(absolute(base / name)) for base in (folder, Path.cwd()))
    return here if is_file(here) and not is_file(beside) else beside


def _positive(text: str, row: Row) -> float:
    value = parse_mpp(text)
    if value is None:
        raise InputError(
            f"{row.where}: mpp {text!r} is not a positive number of µm per pixel; leave it empty "
            "to take the slide's own."
        )
    return value


def parse_mpp(text: str) -> float | None:
    """Give a positive, finite number, with a point or a comma; None for anything else."""
    try:
        value = float(text.replace(",", ".") if _NUMBER.fullmatch(text) else "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


class MppTable:
    """The rows of an mpp CSV, and which slide each is for.

    Attributes:
        notes: One for each row that was skipped because its mpp is no positive number.
    """

    def __init__(self, path: Path, suffixes: Iterable[str]) -> None:
        """Read the table.

        Args:
            path: A CSV with the columns ``wsi`` (or another of `SLIDE_COLUMNS`) and ``mpp``.
            suffixes: Of slide formats, so that ``a.b`` is a stem and ``a.svs`` a name.

        Raises:
            InputError: If a column is missing, or no row has a usable mpp.
        """
        self.notes: list[str] = []
        self._path = path
        self._suffixes = tuple(suffixes)
        self._rows = self._read()

    def _read(self) -> list[tuple[Row, str, float]]:
        rows = list(_rows(self._path))
        slide = _column(self._path, rows, SLIDE_COLUMNS)
        _column(self._path, rows, ("mpp",))
        usable = []
        for row in rows:
            name, text = row.values[slide], row.values["mpp"]
            value = parse_mpp(text)
            if value is None or not name:
                what = f"mpp {text!r} is not a positive number" if name else "it names no slide"
                self.notes.append(f"{row.where}: {what}; the row is skipped.")
            else:
                usable.append((row, name, value))
        if not usable:
            raise InputError(f"{self._path}: no row has a positive mpp in µm per pixel.")
        return usable

    def match(self, paths: Sequence[Path]) -> dict[Path, tuple[float, str]]:
        """Give each slide its mpp and the row that says it, where there is one.

        Rows are matched by path, then by file name, then by stem; a row that names one slide by
        its path is not taken for another of that name.

        Args:
            paths: Absolute paths of the slides.

        Raises:
            InputError: If rows contradict each other, or one row fits several slides.
        """
        matched: dict[Path, tuple[float, str]] = {}
        free = list(self._rows)
        for keys_of in (self._paths_of, self._name_of, self._stem_of):
            wanted = _by_key(p for p in paths if p not in matched)
            left = []
            for row in free:
                key = next((key for key in keys_of(row[1]) if key in wanted), None)
                if key is None:
                    left.append(row)
                else:
                    self._take(matched, row, wanted[key])
            free = left
        if free:
            self.notes.append(
                f"{self._path}: {len(free)} of {len(self._rows)} rows are for no slide of this run."
            )
        return matched

    def _take(
        self,
        matched: dict[Path, tuple[float, str]],
        row: tuple[Row, str, float],
        slides: Sequence[Path],
    ) -> None:
        where, value = row[0].where, row[2]
        if len(slides) > 1:
            raise InputError(
                f"{where}: {row[1]!r} fits both {slides[0]} and {slides[1]}; write their paths."
            )
        first, first_where = matched.setdefault(slides[0], (value, where))
        if first != value:
            raise InputError(
                f"{where}: mpp {value:g} for {slides[0].name}, but {first_where} says {first:g}."
            )

    def _paths_of(self, name: str) -> list[str]:
        return [os.path.realpath(base / name) for base in (self._path.parent, Path.cwd())]

    def _name_of(self, name: str) -> list[str]:
        return ["name:" + _nfc(_file_name(name))]

    def _stem_of(self, name: str) -> list[str]:
        name = _nfc(_file_name(name))
        suffix = Path(name).suffix
        known = suffix.lower() in self._suffixes
        return ["stem:" + (name.removesuffix(suffix) if known else name)]


def _file_name(name: str) -> str:
    # A path may have been written on Windows.
    return re.split(r"[/\\]", name)[-1]


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _by_key(paths: Iterable[Path]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in paths:
        for key in (os.path.realpath(path), f"name:{_nfc(path.name)}", f"stem:{_nfc(path.stem)}"):
            found.setdefault(key, []).append(path)
    return found


def _column(path: Path, rows: Sequence[Row], names: Sequence[str]) -> str:
    if not rows:
        raise InputError(f"{path}: the table has no rows.")
    present = rows[0].values
    for name in names:
        if name in present:
            return name
    wanted = repr(names[0]) + (f" (or {', '.join(names[1:])})" if names[1:] else "")
    raise InputError(f"{path} line 1: no column {wanted}; its columns are {', '.join(present)}.")


def _rows(path: Path) -> Iterator[Row]:
    text = _decode(path)
    header = text.lstrip().partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] = []
    try:
        for fields in reader:
            values = [f.strip() for f in fields]
            if not any(values):
                continue
            if not names:
                names = _names(path, reader.line_num, values)
                continue
            yield _row(f"{path} line {reader.line_num}", names, values)
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num}: not a CSV table: {error}.") from error


def _row(where: str, names: Sequence[str], values: Sequence[str]) -> Row:
    if len(values) > len(names):
        raise InputError(
            f"{where}: {len(values)} fields for {len(names)} columns; put quotes around a value "
            "that holds the separator."
        )
    padded = [*values, *[""] * (len(names) - len(values))]
    return Row(where, dict(zip(names, padded, strict=True)))


def _names(path: Path, line: int, header: Sequence[str]) -> list[str]:
    names = [re.sub(r"[\s-]+", "_", name.lower()) for name in header]
    for name, count in Counter(names).items():
        if name and count > 1:
            raise InputError(f"{path} line {line}: the column {name!r} is there twice.")
    return names


def _decode(path: Path) -> str:
    if not is_file(path):
        raise InputError(f"The table cannot be read: {describe_missing(path)}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    # With or without a byte order mark.
    wide = data.startswith(_UTF16)
    encoding, name = ("utf-16", "UTF-16") if wide else ("utf-8-sig", "UTF-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].decode(encoding, "ignore").count("\n") + 1
        raise InputError(
            f"{path} line {line}: not {name} text; save the table as CSV in UTF-8."
        ) from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise InputError(
            f"{path} line {line}: holds a NUL, which no text does; save the table as CSV in UTF-8."
        )
    return text
