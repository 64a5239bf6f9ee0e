"""How the groups of outlines are named. Cheap to import."""

from __future__ import annotations

import unicodedata


def group_key(group: str) -> str:
    """Give a group's name as names are compared.

    Whatever its case, the spaces around it, and whether é is one character in it or two.
    """
    plain = unicodedata.normalize("NFD", group.strip()).casefold()
    return unicodedata.normalize("NFC", plain)
