"""The images that a run writes of a slide: with labels, where a writer wants them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import StoreError
from microtome.plugin.specs import WriterSpec
from microtome.run.planning.writers import PlannedImages
from microtome.run.slides.holdings import DROPPED
from microtome.run.slides.identities import image_identity, label_digest
from microtome.run.slides.pixels import Sink
from microtome.slide.labels import CLASSES, LABEL
from microtome.slide.types import TileGrid
from microtome.store.atomic import wrap_errors
from microtome.store.attributes import parse_list, sealed, write_folder_record
from microtome.store.classes import publish_images
from microtome.store.identity import Identity
from microtome.store.labels import LABELS
from microtome.store.patches import UNLABELLED, labelled_tiles
from microtome.store.same_labels import TileLabels, stale_labels

if TYPE_CHECKING:
    from microtome.run.slides.holdings import Holdings
    from microtome.run.slides.pipeline import SlideWork
    from microtome.store.content import SlideContent


@dataclass(frozen=True, eq=False, kw_only=True)
class SlideImages:
    """The images of a slide that a run writes, and what is recorded of them.

    Attributes:
        work: The slide's stages, which hear what was left out.
        grid: Its tiles.
        identity: Of the grid.
        writers: Those whose images are missing.
        attributes: Of the slide; what is known of the tiles that were kept comes with `tell`.
        labelled: The same for patch stores, where it differs.
    """

    work: SlideWork
    grid: TileGrid
    identity: Identity
    writers: Sequence[PlannedImages]
    attributes: dict[str, Any]
    labelled: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def open(self, image: PlannedImages) -> Iterator[Sink]:
        """Begin with the images of one writer, and publish them when the block ends.

        Raises:
            StoreError: If they cannot be published, or there is no label to store with them.
        """
        identity = image_identity(image, self.identity, label_digest(self.grid))
        own = {"identity": identity.digest, "identity_fields": dict(identity.fields)}
        slide_id = self.work.ref.slide_id
        final = self.work.plan.layout.slide(image.spec, slide_id)
        labels = self._labels(image)
        with publish_images(final, image.spec, slide_id) as path:
            with wrap_errors(final):
                sink = image.writer.open(path, slide_id, self.attributes)
            yield Sink(sink, image.spec.concurrent, final, labels)
            told = self.labelled if image.labelled else {}
            record = sealed({**self.attributes, **told, **own})
            in_file = image.spec.layout == "file"
            with wrap_errors(final):
                if in_file:
                    sink.record(record)
                sink.close()
            if not in_file:
                write_folder_record(path, record)

    def tell(self, content: SlideContent, dropped: Mapping[str, int]) -> None:
        """Take what is known once all tiles are read.

        Args:
            content: The tiles that were kept.
            dropped: How many were not, by reason.
        """
        coords = content.coords
        self.attributes.update(num_patches=len(coords), coords=coords.tolist())
        self.attributes.update({DROPPED: dict(dropped)} if dropped else {})
        names = [image.name for image in self.writers if image.labelled]
        if not names:
            return
        self.labelled.update(labelled_tiles(coords, np.asarray(content.columns[LABEL], np.int16)))
        if left := len(self.labelled[UNLABELLED]):
            told = f"{left} of {len(coords)} tiles have no label and are not in {', '.join(names)}"
            self.work.warnings.append(told)

    def _labels(self, image: PlannedImages) -> NDArray[np.int16] | None:
        """Give the labels for a writer that stores them with the images."""
        if not image.labelled:
            return None
        labels, classes = self.grid.columns.get(LABEL), self.attributes.get(CLASSES)
        if labels is None or not parse_list(classes):
            raise StoreError(
                f"writer={image.name} stores tiles with their labels, and nothing labels those of "
                f"{self.work.ref.slide_id}. Give annotations=… and labels.classes, or a tiler that "
                "brings labels."
            )
        return np.asarray(labels, np.int16)


def tell_stale_labels(
    work: SlideWork, grid: TileGrid, identity: Identity, holdings: Holdings
) -> list[str]:
    """Tell of outputs of writers that the run does not have, whose labels are not its any more.

    Args:
        work: The slide's stages.
        grid: Its tiles, with their labels where the run gives some.
        identity: Of the grid.
        holdings: What was there: its labels count where the run had nothing to give.
    """
    if LABELS not in work.identities and LABEL not in grid.columns:
        return []  # nothing was labelled
    plan, slide_id = work.plan, work.ref.slide_id
    own = {*work.outputs.values()}
    specs = [entry.spec for entry in plan.registry.entries("writer") if not entry.missing]
    paths = {plan.layout.slide(s, slide_id): s for s in specs if isinstance(s, WriterSpec)}
    left = {path: spec for path, spec in paths.items() if path not in own and path.exists()}
    for held in holdings.stores if left and holdings.complete else ():
        if held.coords is not None and LABEL in held.columns:
            grid = replace(
                grid, coords=held.coords, columns=held.columns, attributes=held.attributes
            )
    now = TileLabels.of_columns(identity.digest, grid.coords, grid.columns, grid.attributes)
    return stale_labels(left, now, plan.registry) if left and now is not None else []
