"""What has changed since tiles were labelled, or predictions of them were made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from microtome.errors import InputError
from microtome.run.planning.labels import digest_file
from microtome.store.layout import taken_folders
from microtome.store.survey import find_tilings
from microtome_training.stores import read_stores
from microtome_training.tiles import TiledSlide, tell_some

if TYPE_CHECKING:
    from microtome.run.job import TaskJob
    from microtome_training.predictions import Predictions


def tell_edited(slides: Iterable[TiledSlide]) -> Iterator[str]:
    """Tell of slides whose files of outlines are there with another content than was labelled.

    Only those files are read, no slide.
    """
    edited = [f"{slide.slide_id} ({slide.outlines})" for slide in slides if _is_edited(slide)]
    if edited:
        whose = "its" if len(edited) == 1 else "their"
        yield (
            f"the outlines of {tell_some(edited)} were edited since {whose} tiles were labelled: "
            "task=index labels them anew"
        )


def _is_edited(slide: TiledSlide) -> bool:
    if slide.outlines is None or not slide.outlines_digest or not slide.outlines.is_file():
        return False
    try:
        return digest_file(slide.outlines) != slide.outlines_digest
    except InputError:  # may not be read: nothing is known of it, and nothing goes by it
        return False


def find_relabelled(predictions: Predictions, job: TaskJob) -> list[str]:
    """Name the slides whose labels in a run's output are no longer those beside predictions.

    Slides whose tiles the output does not hold, or holds others of, and predictions that do not
    say what their labels were, are not named.

    Raises:
        StoreError: If a store cannot be read.
    """
    told = predictions.labelled
    wanted = dict.fromkeys(name for name in predictions.slide_ids if name in told)
    if not wanted:
        return []
    try:
        tilings = find_tilings(job.config.output, taken_folders(job.registry))
    except InputError:  # no output: there is nothing to compare with
        return []
    same: dict[str, bool] = {}
    for layout in tilings:
        for part in read_stores(job, layout.root, wanted):
            slide = part.slides[0]
            if slide.identity == told[slide.slide_id].get("coords"):
                is_same = slide.labels == told[slide.slide_id].get("labels")
                same[slide.slide_id] = same.get(slide.slide_id, False) or is_same
    return sorted(name for name, is_same in same.items() if not is_same)
