"""What people drew on a slide: one model for the files of every tool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry


@dataclass(frozen=True, eq=False, kw_only=True)
class Annotation:
    """One drawn object.

    Attributes:
        geometry: In level-0 pixels, x to the right and y down, from the top left corner of level
            0: a valid (Multi)Polygon with its holes, or lines or points, of which no area is made.
        group: What the tool calls its class: ASAP's ``PartOfGroup``, QuPath's classification,
            the name of ImageScope's layer. Empty if it has none.
        name: Its own name; empty if it has none.
        where: Where in its file it is, for messages: ``line 12``, ``feature 3``.
        properties: What else the file says of it, as the file names it.
    """

    geometry: BaseGeometry
    group: str = ""
    name: str = ""
    where: str = ""
    properties: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
