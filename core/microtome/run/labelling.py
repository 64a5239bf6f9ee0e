"""What a run is told of labels: which outlines are what, and when a tile is of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar

from microtome.errors import ConfigError

LabelBy = Enum("LabelBy", ["centre", "fraction"])
WithoutFile = Enum("WithoutFile", ["background", "unlabelled", "fail"])
OtherGroups = Enum("OtherGroups", ["ignore", "exclude", "fail"])
Origin = Enum("Origin", ["level0", "bounds"])

_WORDS: Mapping[str, type[Enum]] = {
    "rule": LabelBy,
    "missing": WithoutFile,
    "others": OtherGroups,
    "origin": Origin,
}

_CLASS = re.compile(r"[\w+(-](?:[\w .+()-]{0,98}[\w+)-])?")
"""A name that can be a folder's on every system."""

_Word = TypeVar("_Word", bound=Enum)


@dataclass(frozen=True, kw_only=True)
class LabelSettings:
    """How outlines that people drew become labels of tiles.

    Attributes:
        classes: Groups of outlines by class, `labels.classes.tumor=[Tumor,metastases]`; their order
            is that of the labels from 1 on. Groups of the background are cut out of the others.
        exclude: Groups in which tiles are not labelled, whatever else is drawn there.
        background: The name of label 0, which is whatever no class covers.
        rule: `centre`: a tile is of the class that its centre lies in; `fraction`: of the one that
            covers enough of it.
        min_fraction: The share of a tile that is enough, 0 to 1; 0 for anything above nothing.
        missing: What tiles of a slide without a file are: `background` or `unlabelled`; `fail` has
            the slide fail.
        others: Groups that nothing here names: `ignore` them, `exclude` what they cover, or have
            the slide `fail`.
        origin: Where the files count from: `level0`, or `bounds`, the corner of the part of the
            slide that was scanned.
        required: Whether a run that labels nothing is refused.
    """

    classes: dict[str, Any] = field(default_factory=dict)
    exclude: list[str] = field(default_factory=list)
    background: str = "normal"
    rule: LabelBy = LabelBy.centre
    min_fraction: float = 0.5
    missing: WithoutFile = WithoutFile.background
    others: OtherGroups = OtherGroups.ignore
    origin: Origin = Origin.level0
    required: bool = False

    def __post_init__(self) -> None:
        for name, kind in _WORDS.items():
            object.__setattr__(self, name, _member(f"labels.{name}", getattr(self, name), kind))
        if not 0 <= self.min_fraction <= 1:
            raise ConfigError(f"labels.min_fraction={self.min_fraction:g} must be from 0 to 1.")
        classes = {str(name): _groups(groups) for name, groups in self.classes.items()}
        object.__setattr__(self, "classes", classes)
        object.__setattr__(self, "exclude", _groups(self.exclude))
        for name in (self.background, *classes):
            if not _CLASS.fullmatch(name):
                raise ConfigError(
                    f"labels.classes: {name!r} is no name of a class, which is one of a folder, "
                    "too: letters, digits, spaces, '-', '_', '+', '(', ')' and '.' inside."
                )
        _refuse_twice(
            {
                **{f"labels.classes.{n}": g for n, g in classes.items()},
                "labels.exclude": self.exclude,
            }
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The classes in the order of their labels, the background first."""
        return (self.background, *(name for name in self.classes if name != self.background))


def _member(key: str, value: Any, kind: type[_Word]) -> _Word:
    """Give the word of an enumeration that a text names."""
    if isinstance(value, kind):
        return value
    if value not in kind.__members__:
        raise ConfigError(f"{key}={value} is not one of {', '.join(kind.__members__)}.")
    return kind[value]


def _groups(value: Any) -> list[str]:
    return [str(each) for each in ([value] if isinstance(value, str) else value or ())]


def _refuse_twice(groups: Mapping[str, Sequence[str]]) -> None:
    """Refuse a group that is two things, whatever its case: files are not that exact."""
    from microtome.slide.groups import group_key  # which numpy comes with

    owners: dict[str, str] = {}
    for where, names in groups.items():
        for name in names:
            first = owners.setdefault(group_key(name), where)
            if first != where:
                raise ConfigError(f"The group {name!r} is in both {first} and {where}.")
