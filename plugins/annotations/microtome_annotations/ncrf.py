"""CAMELYON's outlines as NCRF has them: JSON with `positive` and `negative` polygons."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from microtome.errors import AnnotationError
from microtome.slide.annotations import Annotation, make_area
from microtome.slide.types import SlideInfo
from microtome_annotations.jsonfile import head_text, read_json
from microtome_annotations.shapes import without

_POSITIVE, _NEGATIVE = "positive", "negative"
_HEAD = re.compile(r'\s*\{\s*"(positive|negative)"\s*:')


class NcrfReader:
    """Polygons in level-0 pixels in two groups; the negative ones are cut out of the positive."""

    def recognises(self, head: bytes) -> bool:
        """Tell by its first 64 KiB whether a file is of this format."""
        return bool(_HEAD.match(head_text(head)))

    def read(self, path: Path, slide: SlideInfo | None = None) -> Sequence[Annotation]:
        """Read a file whole, positive polygons first."""
        tree = read_json(path)
        if not isinstance(tree, dict) or not {_POSITIVE, _NEGATIVE} & tree.keys():
            raise AnnotationError(f"{path} has neither {_POSITIVE!r} nor {_NEGATIVE!r} polygons.")
        positive, negative = (_group(path, tree, key) for key in (_POSITIVE, _NEGATIVE))
        cut = without([a.geometry for a in positive], [a.geometry for a in negative])
        left = [
            replace(annotation, geometry=geometry)
            for annotation, geometry in zip(positive, cut, strict=True)
            if not geometry.is_empty
        ]
        return left + negative


def _group(path: Path, tree: dict[str, Any], key: str) -> list[Annotation]:
    listed = tree.get(key, [])
    if not isinstance(listed, list):
        raise AnnotationError(f"{path}, {key}: it is no list of polygons.")
    return [_annotation(path, key, index, value) for index, value in enumerate(listed)]


def _annotation(path: Path, key: str, index: int, value: Any) -> Annotation:
    where = f"{key}[{index}]"
    if not isinstance(value, dict) or not isinstance(value.get("vertices"), list):
        raise AnnotationError(f"{path}, {where}: it has no list of vertices.")
    try:
        geometry, repaired = make_area([[value["vertices"]]])
    except ValueError as error:
        raise AnnotationError(f"{path}, {where}.vertices: {error}.") from error
    name = str(value.get("name", ""))
    return Annotation(geometry=geometry, group=key, name=name, where=where, repaired=repaired)
