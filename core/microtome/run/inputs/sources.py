"""Where slides lie before they are staged: a folder of this machine's, or a place with a URL."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from microtome.errors import (
    InputError,
    MicrotomeError,
    MissingDependencyError,
    SlideOpenError,
)
from microtome.run.inputs.companions import DICOM_SUFFIXES, Companions, SlideFiles
from microtome.slide.types import SlideRef

_URL = re.compile(r"[a-z][a-z0-9+.-]+://.", re.IGNORECASE)
_CHUNK = 8 << 20
_INDEX_BYTES = 1 << 18
_DATES = (
    "ETag", "etag", "Content-MD5", "generation", "mtime", "LastModified", "last_modified",
    "Last-Modified", "updated", "created",
)  # fmt: skip
"""What file systems call that which changes with a file's content, the surest first."""
_LIBRARIES = {
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp",
    "https": "aiohttp", "sftp": "paramiko", "ssh": "paramiko", "abfs": "adlfs", "az": "adlfs",
}  # fmt: skip

Tick = Callable[[int], None]
"""Told the number of bytes after each piece; what it raises ends the copying."""


class CopyStoppedError(Exception):
    """Raised by a tick: the copy is not wanted any more."""


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One file of a slide, where it lies.

    Attributes:
        name: Below the folder of the slide's first file, with ``/``.
        place: For its file system.
        size: In bytes.
        version: Changes with its content; empty where nothing says.
    """

    name: str
    place: str
    size: int
    version: str


class Source(Protocol):
    """The files of a slide.

    Attributes:
        name: What the slide is called.
    """

    name: str

    def files(self) -> list[SourceFile]:
        """List them as they are now, the slide's own first.

        Raises:
            OSError: If one is not there or cannot be looked at.
        """

    def copy(self, file: SourceFile, target: Path, tick: Tick) -> None:
        """Copy one of them.

        Raises:
            OSError: If that fails.
        """

    def staged(self, folder: Path) -> SlideFiles:
        """Give the slide's files in a folder that they were copied to."""


def find_source(ref: SlideRef) -> Source:
    """Give where a slide lies.

    Raises:
        InputError: If its URL is of no known kind.
        MissingDependencyError: If a library for it is missing.
    """
    return RemoteSource(ref.source) if is_url(ref.source) else LocalSource(ref)


def is_url(word: str) -> bool:
    """Tell a URL from a path."""
    return _URL.match(word) is not None


def url_path(url: str) -> Path:
    """Give what a URL names as a path: its last part is the slide's file name.

    Raises:
        InputError: If it names no file, or holds a password, which would be in every record.
    """
    parts = urlsplit(url)
    if parts.password:
        raise InputError(
            f"{_without_password(url)} has a password in it, which every record would show. Give "
            "it to fsspec in its configuration (~/.config/fsspec) or by the environment."
        )
    web = parts.scheme.lower() in ("http", "https")
    path = unquote(parts.path) if web else url.split("://", 1)[1]
    if not path or path.endswith("/"):
        raise InputError(f"{url} names no file. Give the URL of a slide.")
    named = (parts.netloc, *path.split("/")) if web else path.split("/")
    return Path("/", *(part for part in named if part not in ("", ".", "..")))


def check_urls(urls: Iterable[str]) -> None:
    """Make sure that every kind of URL can be read, before any is.

    Raises:
        InputError: If one is of no known kind.
        MissingDependencyError: If a library for it is missing.
    """
    for scheme, url in {url.partition("://")[0].lower(): url for url in urls}.items():
        install = f"pip install {_LIBRARIES.get(scheme, 'the library that it names')}"
        try:
            _fsspec().get_filesystem_class(scheme)
        except ImportError as error:
            if isinstance(error, MissingDependencyError):
                raise
            reason = str(error).rstrip(". ")
            raise MissingDependencyError(f"{url} cannot be read: {reason}: {install}") from error
        except ValueError as error:
            raise InputError(
                f"{url}: there is no file system named {scheme!r}. Available are those of "
                "fsspec: s3, gs, http, https, sftp, abfs and others."
            ) from error


class LocalSource:
    """A slide that lies where this machine can open it.

    Attributes:
        name: Its path.

    Args:
        ref: The slide.
    """

    def __init__(self, ref: SlideRef) -> None:
        self.name = str(ref.path)
        self._paths = {path: _below(ref.path.parent, path) for path in (ref.path, *ref.companions)}

    def files(self) -> list[SourceFile]:
        """List them as they are now, the slide's own first."""
        return [_local_file(path, name) for path, name in self._paths.items()]

    def copy(self, file: SourceFile, target: Path, tick: Tick) -> None:
        """Copy one of them."""
        left = file.size  # a file that somebody writes may have no end
        with Path(file.place).open("rb") as source, target.open("wb") as copy:
            while piece := source.read(min(left, _CHUNK)):
                copy.write(piece)
                left -= len(piece)
                tick(len(piece))

    def staged(self, folder: Path) -> SlideFiles:
        """Give the slide's files in a folder that they were copied to."""
        primary, *companions = (folder / name for name in self._paths.values())
        return SlideFiles(primary, tuple(companions))


class RemoteSource:
    """A slide that fsspec fetches.

    Attributes:
        name: Its URL.

    Args:
        url: Of the slide's own file. What belongs to it is looked for beside it.
    """

    def __init__(self, url: str) -> None:
        self.name = url
        self._file_name = url_path(url).name
        with _as_os_errors(url):
            self._fs, self._path = _fsspec().core.url_to_fs(url)

    def files(self) -> list[SourceFile]:
        """List them as they are now, the slide's own first."""
        with _as_os_errors(self.name):
            self._fs.invalidate_cache()
            own = self._file(self._fs.info(self._path), self._file_name)
            others = sorted(self._companions(), key=lambda file: file.name)
        return [own, *(file for file in others if file.name != own.name)]

    def copy(self, file: SourceFile, target: Path, tick: Tick) -> None:
        """Copy one of them."""
        counted = 0

        def hear(size: int | None, value: int, **_: Any) -> None:
            nonlocal counted
            tick(value - counted)
            counted = value

        callback = _fsspec().callbacks.Callback(hooks={"tick": hear})
        with _as_os_errors(self.name):
            self._fs.get_file(file.place, str(target), callback=callback)

    def staged(self, folder: Path) -> SlideFiles:
        """Give the slide's files in a folder that they were copied to."""
        return Companions().of(folder / self._file_name)

    def _companions(self) -> Iterator[SourceFile]:
        stem, _, suffix = self._file_name.rpartition(".")
        folder = self._path.rpartition("/")[0]
        if suffix.lower() == "mrxs":
            yield from self._below(self._path[: -len(suffix) - 1], stem)
        elif f".{suffix.lower()}" in DICOM_SUFFIXES:
            for name, info in self._beside(folder).items():
                if PurePosixPath(name).suffix.lower() in DICOM_SUFFIXES:
                    yield self._file(info, name)
        elif suffix.lower() in ("vms", "vmu"):
            index = self._fs.cat_file(self._path, start=0, end=_INDEX_BYTES).decode("latin-1")
            named = {line.partition("=")[2].strip() for line in index.splitlines()}
            for name, info in self._beside(folder).items():
                if name in {PurePosixPath(value).name for value in named}:
                    yield self._file(info, name)

    def _below(self, folder: str, stem: str) -> Iterator[SourceFile]:
        if not self._fs.isdir(folder):
            return
        for path, info in self._fs.find(folder, detail=True).items():
            inside = path[len(folder) + 1 :]
            if path.startswith(f"{folder}/") and ".." not in inside.split("/"):
                yield self._file(info, f"{stem}/{inside}")

    def _beside(self, folder: str) -> dict[str, Mapping[str, Any]]:
        listed = self._fs.ls(folder, detail=True)
        files = (info for info in listed if info.get("type") == "file")
        return {info["name"].rpartition("/")[2]: info for info in files}

    def _file(self, info: Mapping[str, Any], name: str) -> SourceFile:
        if info.get("type") == "directory":
            raise SlideOpenError(f"{self.name} is a folder. Give the URL of a slide's file.")
        if info.get("size") is None:
            raise SlideOpenError(
                f"{self.name}: its server does not say how many bytes {name} has, so that a part "
                "could be taken for the whole. Fetch it by other means and name the file."
            )
        dates = (info.get(date) for date in _DATES)
        version = next((str(date) for date in dates if date), "")
        return SourceFile(name=name, place=info["name"], size=int(info["size"]), version=version)


def _local_file(path: Path, name: str) -> SourceFile:
    stat = path.stat()
    return SourceFile(name=name, place=str(path), size=stat.st_size, version=str(stat.st_mtime_ns))


def _below(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


def _without_password(url: str) -> str:
    return re.sub(r":[^:/@]*@", ":…@", url)


@contextmanager
def _as_os_errors(url: str) -> Iterator[None]:
    """Raise what goes wrong with a remote file system as what it is: a slide that cannot be had."""
    try:
        yield
    except (OSError, MicrotomeError, CopyStoppedError):
        raise
    except Exception as error:  # each file system has errors of its own
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise SlideOpenError(f"{url} cannot be had: {told[0].rstrip('.')}.") from error


def _fsspec() -> Any:
    try:
        import fsspec
        import fsspec.callbacks
        import fsspec.core
    except ImportError as error:
        raise MissingDependencyError(
            "Slides named by URL need fsspec: pip install 'microtome[remote]'"
        ) from error
    return fsspec
