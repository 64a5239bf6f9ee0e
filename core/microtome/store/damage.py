"""What may be wrong with an output, and what is wrong with a picture's bytes."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

REPLACE = "Delete it and run the same command again, or use force=true for that slide"
AGAIN = "Run the same command again"
ANEW = "Run the same command again with force=true"
REDRAW = "Delete it: the next run makes it again"

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Wrong:
    """Something that is wrong with an output.

    Attributes:
        what: Half a sentence about it, or all that is to be said.
        remedy: What to do; empty where ``what`` says that, too.
    """

    what: str
    remedy: str = REPLACE


def png_damage(path: Path) -> str:
    """Compare every chunk of a PNG with its checksum, as few libraries do when they read one.

    Returns:
        What is wrong; empty if nothing is.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if file.read(len(_SIGNATURE)) != _SIGNATURE:
                return "it is no PNG"
            name = b""
            while name != b"IEND":
                head = file.read(8)
                length = int.from_bytes(head[:4], "big")
                if len(head) < 8 or length > size:
                    return "it is cut short or damaged"
                name, data = head[4:], file.read(length)
                if file.read(4) != zlib.crc32(name + data).to_bytes(4, "big"):
                    return "it is damaged: its content and its checksums differ"
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"
    return ""


def image_damage(path: Path) -> str:
    """Check an image; of what is none that Pillow knows, that it is not empty.

    Returns:
        What is wrong; empty if nothing is.
    """
    from PIL import Image

    if path.suffix.lower() == ".png":
        return png_damage(path)
    try:
        if path.is_file() and not path.stat().st_size:
            return "it is empty"
        if path.suffix.lower() in Image.registered_extensions():
            with Image.open(path) as image:
                image.load()
    except (OSError, SyntaxError, ValueError) as error:
        return f"it cannot be decoded: {error}"
    return ""
