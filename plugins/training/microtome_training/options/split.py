"""Options of how slides are split into training, validation and test. Cheap to import."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from microtome.plugin import option, runtime


class SplitBy(Enum):
    """What stays together."""

    auto = "auto"
    patient = "patient"
    slide = "slide"


@dataclass
class SplitOptions:
    """How slides are split, for a task to have as ``split``."""

    by: SplitBy = option(
        SplitBy.auto,
        help="What stays together: patient, slide, or auto: patients where the manifest names "
        "them, else slides.",
    )
    val_size: float = option(0.1, help="Share of the groups that validate, 0 to 1.")
    test_size: float = option(
        0.0, help="Share of the groups that test, besides those that `test_name` says, 0 to 1."
    )
    test_name: str = option(
        "test", help="Slides whose id contains this are tested on; empty for no such rule."
    )
    stratify: bool = option(
        True, help="Share out groups with and without positive tiles each by itself."
    )
    file: str | None = runtime(  # what it says is part of the identity
        None,
        help="A CSV that says it all: a column `slide_id` or `patient_id`, and `split` with "
        "train, val or test.",
    )
    seed: int = option(42, help="Another seed shares out otherwise.")
