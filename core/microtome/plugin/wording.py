"""Phrases what went wrong with a plugin."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(what: str, name: str, available: Iterable[str], *, hint: str = "") -> str:
    """Phrase the error for a name that does not exist, with a near one if there is one.

    Args:
        what: The kind of thing.
        name: What there is none of.
        available: What there is.
        hint: A better sentence than the near name.
    """
    available = list(available)
    near = difflib.get_close_matches(name.lower(), available, 1)
    hint = hint or (f"Did you mean {near[0]!r}?" if near else "")
    told = f"Available: {', '.join(available) or 'none'}."
    return " ".join(filter(None, [f"There is no {what} named {name!r}.", hint, told]))


def reason(error: BaseException) -> str:
    """Say why a stranger's code failed."""
    return f"{type(error).__name__}: {error}"
