"""Reads the docstrings' literal blocks, which Markdown writes without the double colon."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object


class LiteralBlocks(Extension):
    """Turn ``Example::`` into a heading in bold, and ``such as::`` into ``such as:``."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite an object's docstring before it is parsed."""
        if obj.docstring is not None:
            text = re.sub(r"^Example::$", "**Example**", obj.docstring.value, flags=re.MULTILINE)
            text = re.sub(r"^::$", "", text, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r"::$", ":", text, flags=re.MULTILINE)
