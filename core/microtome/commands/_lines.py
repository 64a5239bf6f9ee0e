"""Text as one line of a terminal or a table, whatever a file is named."""

from __future__ import annotations


def one_line(text: str) -> str:
    """Write what cannot be printed, line ends and tabs too, as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
