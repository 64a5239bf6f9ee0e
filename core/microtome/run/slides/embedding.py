"""The slide stage: embeddings of a slide out of its tiles' features, new or stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from traceback import clear_frames
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import MicrotomeError, OutputError, StoreError, naming_encoder
from microtome.run.planning.models import PlannedModel
from microtome.run.slides.attributes import embedding_attributes
from microtome.run.slides.bagging import check_bag, check_output, make_bag, refuse_large
from microtome.run.slides.holdings import Holdings
from microtome.run.slides.identities import slide_identity
from microtome.slide.bags import TileBag
from microtome.store.identity import Identity
from microtome.store.publish import ArraySource, FeatureSet

if TYPE_CHECKING:
    from microtome.plugin.protocols import FeatureSource, SlideOutput
    from microtome.run.slides.pipeline import SlideWork

_ROWS = 4096
"""Of features read at once."""


@dataclass(frozen=True, eq=False, kw_only=True)
class SlideStage:
    """What makes of a slide's tiles the embeddings that its stores lack.

    An encoder that fails is set aside: the others embed the slide all the same.

    Attributes:
        work: The slide's stages, which hear of this one.
        attributes: Of the slide, as they are stored.
        identity: Of its coordinates.
        holdings: What is there already.
        failures: What went wrong, by slide encoder.
    """

    work: SlideWork
    attributes: Mapping[str, Any]
    identity: Identity
    holdings: Holdings
    failures: dict[str, Exception] = field(default_factory=dict)

    @property
    def missing(self) -> list[PlannedModel]:
        """The slide encoders whose arrays some store lacks and that have not failed."""
        names = self.holdings.unembedded - self.failures.keys()
        return [each for each in self.work.plan.slide_encoders if each.name in names]

    def refuse_early(self, coords: NDArray[np.int32]) -> None:
        """Set aside what cannot take the slide, before its pixels are read.

        Args:
            coords: (n, 5) of its tiles, or of those of which its pixels will leave some out: then
                their number is not known yet.

        Raises:
            Exception: What the first one raised, if none is left and nobody else waits for tiles.
        """
        config = self.work.plan.config
        drops = self.holdings.coords is None and (config.filter.enabled or config.quality.drop)
        self._examine(coords, is_whole=not drops)
        if not self.missing and not self.work.plan.patient_encoders:
            self.raise_failures()

    def run(
        self, coords: NDArray[np.int32], fresh: Mapping[str, FeatureSet]
    ) -> dict[str, FeatureSet]:
        """Embed the slide by every encoder whose arrays are missing.

        Args:
            coords: (n, 5) of the tiles that were kept.
            fresh: Features that were computed just now; the others are read from a store.

        Returns:
            By ``group/name``, of the encoders that did not fail; nothing for a slide without tiles.

        Raises:
            OutputError: If the output takes nothing more.
        """
        if not self.missing:
            return {}
        if not len(coords):
            names = ", ".join(each.name for each in self.missing)
            self.work.warnings.append(f"without tiles it has no embedding by {names}")
            return {}
        self._examine(coords, is_whole=True)
        arrays: dict[str, FeatureSet] = {}
        with self.work.timed("slide", len(coords)):
            read: dict[str, NDArray[Any]] = {}
            for planned in sorted(self.missing, key=lambda each: sorted(each.reads.values())):
                # One encoder's features at a time: those of a large slide fill gigabytes.
                for name in read.keys() - {*planned.reads.values()}:
                    del read[name]
                with self._setting_aside(planned):
                    for name in planned.reads.values():
                        read[name] = read[name] if name in read else self._features(name, fresh)
                    arrays |= self._embed(planned, coords, read)
        return arrays

    def raise_failures(self) -> None:
        """Fail the slide if an encoder failed: as the first did, naming all of them.

        Raises:
            Exception: What the first one raised.
        """
        if not self.failures:
            return
        self.work.stage = "slide"
        (_, error), *others = self.failures.items()
        self.work.warnings += [f"slide encoder {n} failed: {reason}" for n, reason in others]
        told = f"Failed: slide_encoder=[{','.join(self.failures)}]"
        if not isinstance(error, MicrotomeError):
            error.add_note(told)
        elif others:
            error.args = (f"{MicrotomeError.__str__(error)} {told}.",)
        raise error

    def _examine(self, coords: NDArray[np.int32], *, is_whole: bool) -> None:
        """Set aside encoders that such tiles are not for, or so many, by their shapes alone."""
        if not self.missing or not len(coords):
            return
        plan = self.work.plan
        bag = make_bag(self.work.ref.slide_id, coords, {}, self.attributes)
        dims = {encoder.name: encoder.card.dim for encoder in plan.encoders}
        with self.work.timed("slide"):
            for planned in self.missing:
                columns = sum(dims[name] for name in planned.reads.values())
                row_bytes = columns * np.dtype(plan.config.feature_dtype).itemsize
                with self._setting_aside(planned):
                    told = check_bag(planned, bag)
                    self.work.warnings += [t for t in told if t not in self.work.warnings]
                    if is_whole:
                        cap = plan.config.bag_memory_gb
                        refuse_large(planned, len(bag), bag.extent, row_bytes=row_bytes, cap=cap)

    @contextmanager
    def _setting_aside(self, planned: PlannedModel) -> Iterator[None]:
        try:
            yield
        except OutputError:
            raise
        except Exception as error:  # noqa: BLE001 - one slide encoder never stops the others
            clear_frames(error.__traceback__)  # they hold the slide's features
            self.failures[planned.name] = error

    def _embed(
        self, planned: PlannedModel, coords: NDArray[np.int32], read: Mapping[str, NDArray[Any]]
    ) -> dict[str, FeatureSet]:
        features = {key: read[name] for key, name in planned.reads.items()}
        bag = make_bag(self.work.ref.slide_id, coords, features, self.attributes)
        planned.ensure_loaded()
        found = check_output(planned, encode(planned, bag), len(bag))
        self.work.warnings += getattr(planned.model, "notes", ())
        if not self.work.plan.config.latents:
            found.pop("slide_latents", None)
        elif "slide_latents" not in found:
            self.work.warnings.append(f"{planned.name} has no latents")
        identity = slide_identity(self.work.plan, planned, self.identity)
        return to_store(planned, identity, found, self.attributes, bag)

    def _features(self, name: str, fresh: Mapping[str, FeatureSet]) -> NDArray[Any]:
        if name in fresh:
            return gather(fresh[name].source)
        for holding in self.holdings.stores:
            if holding.kept and name not in holding.missing:
                with holding.store.writer.open_stored(holding.path) as stored:
                    return np.asarray(stored.features(name))
        raise StoreError(
            f"The features {name!r} of {self.work.ref.slide_id} are in no store and were not "
            "computed. Run the slide again."
        )


def to_store(
    planned: PlannedModel,
    identity: Identity,
    found: Mapping[str, NDArray[Any]],
    attributes: Mapping[str, Any],
    bag: TileBag,
) -> dict[str, FeatureSet]:
    """Give what is stored of an embedding, with what it is of in the established layout's words.

    Args:
        planned: The encoder.
        identity: Of the embedding.
        found: What the encoder gave, by group.
        attributes: Of the slide.
        bag: Its tiles.
    """
    names = ("patch_size", "patch_size_level0", "target_magnification")
    told = {
        **embedding_attributes(planned, identity),
        "source_patch_encoder": ", ".join(planned.reads.values()),
        "num_patches": len(bag),
        "tile_size_level0": bag.tile_size_level0,
        **{name: attributes[name] for name in names},
    }
    return {
        f"{group}/{planned.name}": FeatureSet(ArraySource(array), told)
        for group, array in found.items()
    }


def encode(planned: PlannedModel, bag: TileBag) -> SlideOutput:
    """Have a loaded slide encoder embed a bag, its errors naming it."""
    made = planned.made
    with naming_encoder(made.choice.name, made.spec.name, planned.kind):
        output: SlideOutput = planned.model.encode(bag)
        return output


def gather(source: FeatureSource) -> NDArray[Any]:
    """Read a whole source into memory."""
    whole = np.empty(source.shape, source.dtype)
    for first, chunk in _numbered(source.chunks(_ROWS)):
        whole[first : first + len(chunk)] = chunk
    return whole


def _numbered(chunks: Any) -> Iterator[tuple[int, NDArray[Any]]]:
    first = 0
    for chunk in chunks:
        yield first, chunk
        first += len(chunk)
