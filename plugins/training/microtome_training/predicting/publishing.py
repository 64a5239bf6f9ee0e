"""Probabilities beside the coordinates of a stored slide, as the array ``predictions/<name>``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import IdentityError
from microtome.plugin.options import configure
from microtome.plugin.specs import WriterSpec
from microtome.store.arrays import PREDICTIONS, array_names
from microtome.store.attributes import parse_fields, parse_json
from microtome.store.identity import IDENTITY, Identity, difference
from microtome.store.publish import ArraySource, FeatureSet, SlideContent, publish_slide

if TYPE_CHECKING:
    from microtome.plugin.protocols import StoredSlide, StoreWriter
    from microtome.plugin.registry import Registry
    from microtome_training.tiles import TiledSlide


@dataclass(frozen=True, eq=False, kw_only=True)
class Predicted:
    """What is stored of a model's predictions of a slide.

    Attributes:
        probabilities: (n, C) float32, a row for each of the slide's tiles.
        attributes: What they are of.
    """

    probabilities: NDArray[np.float32]
    attributes: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Digest of their identity."""
        return str(self.attributes.get(IDENTITY, ""))


def read_predicted(slide: TiledSlide, name: str, registry: Registry) -> Predicted | None:
    """Read the predictions of a name; None where there are none.

    Raises:
        StoreError: If the store cannot be read.
    """
    key = f"{PREDICTIONS}/{name}"
    with slide.open(registry) as stored:
        if key not in array_names(stored, PREDICTIONS):
            return None
        probabilities = np.asarray(stored.array(key), np.float32)
        return Predicted(probabilities=probabilities, attributes=stored.array_attributes(key))


def find_predicted(
    slide: TiledSlide, name: str, identity: Identity, registry: Registry, *, force: bool = False
) -> Predicted | None:
    """Read the predictions of a name if they are of an identity; None where none are, or may stay.

    Raises:
        IdentityError: If those that are there are another's, unless ``force``.
        StoreError: If the store cannot be read.
    """
    found = read_predicted(slide, name, registry)
    if found is None or force:
        return None
    if found.digest != identity.digest:
        told = difference(parse_fields(found.attributes), identity.fields)
        raise IdentityError(
            f"{PREDICTIONS}/{name} in {slide.store} was made otherwise: {told}. Give these a "
            "name of their own, predict.name=, or replace those with force=true."
        )
    return found


def publish_predictions(
    slide: TiledSlide,
    name: str,
    given: Predicted,
    registry: Registry,
    *,
    force: bool = False,
) -> None:
    """Store predictions beside a slide's coordinates, whoever else adds to it meanwhile.

    Args:
        slide: The slide.
        name: Of the predictions.
        given: What to store.
        registry: The stores.
        force: Replace those that are there.

    Raises:
        IdentityError: If there are some of another identity, unless ``force``.
        StoreError: If they cannot be written.
    """
    spec = registry.find("writer", slide.writer).spec
    if not isinstance(spec, WriterSpec):
        raise TypeError(f"{slide.writer!r} is no writer")
    key = f"{PREDICTIONS}/{name}"
    with slide.open(registry) as stored:
        replaces = force and key in array_names(stored, PREDICTIONS)
        writer = _writer(stored, spec, registry)
        content = SlideContent(
            coords=stored.coords,
            columns=dict(stored.columns),
            attributes=dict(stored.attributes),
            arrays={key: FeatureSet(ArraySource(given.probabilities), given.attributes)},
        )
    publish_slide(slide.store, writer, spec, content, force=replaces)


def _writer(stored: StoredSlide, spec: WriterSpec, registry: Registry) -> StoreWriter:
    """Make the writer as it was when it wrote the slide, which it may have to write anew."""
    told = parse_json(stored.attributes.get("writer"))
    options = {f.name: told[f.name] for f in fields(spec.config) if f.name in told}
    writer: StoreWriter = registry.create("writer", spec.name, configure(spec, **options))
    return writer
