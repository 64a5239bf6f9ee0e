"""Notices that a slide's files change while they are read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from microtome.errors import SlideReadError


class Unchanged:
    """A slide's files as they are now, to be compared with later.

    Sizes and times are compared, not contents: whatever writes to a file moves its time.

    Args:
        paths: The files.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._before = {path: _look(path) for path in paths}

    def check(self) -> None:
        """Make sure that nothing was written to any of them since.

        Raises:
            SlideReadError: If one of them is another, or gone.
        """
        for path, before in self._before.items():
            now = _look(path)
            if now == before:
                continue
            if now is None or before is None:
                what = "it is not there any more" if now is None else "it was not there before"
            elif now[0] != before[0]:
                what = f"it had {before[0]:,} bytes and has {now[0]:,}"
            else:
                what = "it was written to"
            raise SlideReadError(
                f"{path} changed while it was read: {what}. Nothing of it was kept; run it again "
                "when it is complete."
            )


def _look(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns
