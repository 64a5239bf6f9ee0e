"""What is made of a slide's tiles: features, tile images, and the files that hold them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import ConfigError, StoreError
from microtome.run.planning.budget import Threads
from microtome.run.planning.encoders import PlannedEncoder
from microtome.run.planning.outputs import EMBEDDING, check_space
from microtome.run.planning.quality import Inspection
from microtome.run.slides.attributes import feature_attributes, patient_of, slide_attributes
from microtome.run.slides.dense import (
    dense_attributes,
    dense_identity,
    dense_keys,
    dense_layout,
    list_lacking,
)
from microtome.run.slides.embedding import SlideStage
from microtome.run.slides.holdings import DROPPED, Holdings, StoreHolding, list_unscored
from microtome.run.slides.identities import feature_identity, score_identity
from microtome.run.slides.images import SlideImages
from microtome.run.slides.labels import SlideLabels
from microtome.run.slides.pixels import PixelPass, Scratches
from microtome.run.slides.regions import grouped_features, region_arrays, region_attributes
from microtome.slide.clock import timed
from microtome.slide.opening import OpenedSlide
from microtome.slide.types import TileGrid
from microtome.store.identity import Identity
from microtome.store.labels import LABELS_IDENTITY
from microtome.store.publish import (
    FeatureScratch,
    FeatureSet,
    SlideContent,
    publish_slide,
)
from microtome.store.quality import (
    REASON,
    REASONS,
    Scores,
    bit_names,
    count_reasons,
    give_reasons,
    join_limits,
    parse_quality,
    quality_attributes,
)

if TYPE_CHECKING:
    from microtome.run.slides.pipeline import SlideWork


@dataclass(frozen=True, eq=False, kw_only=True)
class Production:
    """One pass over a slide's tiles, and what is published of it.

    Attributes:
        work: The slide's stages, which hear of this one.
        slide: Open.
        grid: Its tiles.
        identity: Of the grid.
        holdings: What is there already.
        labels: What labels its tiles, in a run that does.
    """

    work: SlideWork
    slide: OpenedSlide
    grid: TileGrid
    identity: Identity
    holdings: Holdings
    labels: SlideLabels | None = None

    def run(self) -> NDArray[np.int32]:
        """Read the tiles once if anything needs them, and publish what was missing.

        Returns:
            (n, 5) of the tiles that were kept.
        """
        holdings, identity = self.holdings, self.identity
        self._refuse_too_many()
        attributes = slide_attributes(self.slide, self.grid.geometry, identity, len(self.grid))
        attributes |= region_attributes(self.grid) | dict(self.grid.attributes)
        stage = SlideStage(
            work=self.work, attributes=dict(attributes), identity=identity, holdings=holdings
        )
        if holdings.computed and holdings.coords is not None:
            arrays = stage.run(holdings.coords, {})
            self._publish_all(SlideContent(coords=holdings.coords, arrays=arrays))
            stage.raise_failures()
            return holdings.coords
        stage.refuse_early(self.grid.coords if holdings.coords is None else holdings.coords)
        encoders = [
            encoder
            for encoder in self.work.plan.encoders
            if encoder.name in holdings.missing or list_lacking(encoder, holdings.undense)
        ]
        images = SlideImages(
            work=self.work,
            grid=self.grid,
            identity=identity,
            writers=holdings.images,
            attributes={**attributes, **self.grid.attributes},
        )
        with ExitStack() as stack:
            scratches = self._scratches(encoders, stack)
            inspection = self._inspection()
            _refuse_clash(self.grid.columns.keys() & inspection.columns)
            passed = PixelPass(
                filter=self.work.plan.config.filter,
                inspection=inspection,
                encoders=list(zip(encoders, scratches, strict=True)),
                sinks=[stack.enter_context(images.open(image)) for image in images.writers],
                batch_size=self.work.plan.config.batch_size,
                threads=self.work.plan.share_threads(encoders),
                advance=partial(self.work.reporter.advance, self.work.ref.slide_id),
            )
            content = self._with_outputs(self._content(passed, attributes), passed)
            arrays = stage.run(content.coords, content.features)
            self._publish_all(replace(content, arrays={**content.arrays, **arrays}))
            images.tell(content, passed.dropped)
        stage.raise_failures()  # what else there is was published: features take hours
        return content.coords

    def _inspection(self) -> Inspection:
        """Choose the inspectors that look: those that a store lacks, or all that decide."""
        plan = self.work.plan
        drop, unscored = plan.config.quality.drop, self.holdings.unscored
        mpp = self.grid.geometry.effective_mpp
        return Inspection(
            inspectors=[each for each in plan.inspectors if drop or each.name in unscored],
            drop=drop,
            mpp=None if mpp is None else sum(mpp) / 2,
        )

    def _content(self, passed: PixelPass, attributes: Mapping[str, Any]) -> SlideContent:
        """Make the one pass, unless nobody looks at a pixel, and give what was kept."""
        grid = self.grid
        kept = np.ones(len(grid), np.bool_)
        columns: dict[str, NDArray[Any]] = {}
        if passed.needed:
            with self.work.timed("tiles", len(grid)):
                for encoder, _ in passed.encoders:
                    encoder.ensure_loaded()
                passed.run(self.slide.reader, grid)
            self.work.tiles_per_second = round(len(grid) / max(self.work.seconds["tiles"], 1e-6), 1)
            for encoder, _ in passed.encoders:
                self.work.warnings += encoder.notes
            for each in passed.inspection.inspectors:
                self.work.warnings += getattr(each.inspector, "notes", ())
            kept = passed.keep
            columns = {"has_background": passed.has_background, **passed.inspection.scores}
        self.work.dropped = passed.dropped
        self.work.unchanged.check()
        return SlideContent(
            coords=grid.coords[kept],
            columns={k: column[kept] for k, column in {**grid.columns, **columns}.items()},
            attributes={**attributes, "num_patches": int(kept.sum())}
            | ({DROPPED: passed.dropped} if passed.dropped else {}),
            features={},
        )

    def _attributes(self, encoder: PlannedEncoder, threads: Threads) -> dict[str, Any]:
        identity = feature_identity(self.work.plan, encoder, self.identity)
        self.work.identities[f"features/{encoder.name}"] = identity.digest
        return feature_attributes(encoder, self.work.plan, identity, threads=threads)

    def _with_outputs(self, content: SlideContent, passed: PixelPass) -> SlideContent:
        """Add what the pass kept of its encoders."""
        rows = None if passed.keep.all() else np.flatnonzero(passed.keep)
        features: dict[str, FeatureSet] = {}
        arrays: dict[str, FeatureSet] = {}
        for encoder, scratches in passed.encoders:
            told = self._attributes(encoder, passed.threads)
            for name, scratch in scratches.items():
                source = scratch.source(rows)
                if name == EMBEDDING:
                    features[encoder.name] = FeatureSet(source, told)
                else:
                    dense = self._dense_attributes(encoder, name, source.shape, told)
                    arrays[dense_keys(encoder)[name]] = FeatureSet(source, dense)
        return replace(content, features=features, arrays=arrays)

    def _dense_attributes(
        self, encoder: PlannedEncoder, name: str, shape: tuple[int, ...], told: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Give the attributes of token grids or attention."""
        features = feature_identity(self.work.plan, encoder, self.identity)
        identity = dense_identity(name, self.work.plan, features)
        self.work.identities[dense_keys(encoder)[name]] = identity.digest
        height, width = shape[1:3] if name == "tokens" else shape[2:]
        layout = dense_layout(self.grid.geometry, encoder.card.transform, (height, width))
        return dense_attributes(name, shape, told, layout=layout) | identity.attributes()

    def _scratches(self, encoders: Sequence[PlannedEncoder], stack: ExitStack) -> list[Scratches]:
        """Open what takes the outputs of encoders, as far as some store lacks them.

        Raises:
            StoreError: If the disk has no room for token grids and attention.
        """
        config, missing = self.work.plan.config, self.holdings.missing

        def open_scratch(dtype: str, **options: Any) -> FeatureScratch:
            scratch = FeatureScratch(config.output, len(self.grid), dtype, **options)
            return stack.enter_context(scratch)

        shapes = self._dense_shapes(encoders)
        opened: list[Scratches] = []
        for encoder in encoders:
            scratches: dict[str, FeatureScratch] = {}
            if encoder.name in missing:
                scratches[EMBEDDING] = open_scratch(
                    config.feature_dtype, name=encoder.name, dim=encoder.card.dim
                )
            for name, key in dense_keys(encoder).items():
                if key in shapes:
                    scratches[name] = open_scratch(
                        config.dense_dtype, name=key, dim=shapes[key], option="dense_dtype"
                    )
            opened.append(scratches)
        return opened

    def _dense_shapes(self, encoders: Sequence[PlannedEncoder]) -> dict[str, tuple[int, ...]]:
        """Learn the shapes of what is lacking, and refuse what the disk has no room for."""
        config, stores = self.work.plan.config, self.holdings.stores
        shapes: dict[str, tuple[int, ...]] = {}
        for encoder in encoders:
            if lacking := list_lacking(encoder, self.holdings.undense):
                with self.work.timed("tiles", len(self.grid)):
                    encoder.ensure_loaded()
                    found = encoder.find_shapes(self.grid.geometry.size)
                shapes |= {dense_keys(encoder)[name]: found[name] for name in lacking}
        if shapes:
            config.output.mkdir(parents=True, exist_ok=True)
            check_space(
                config.output,
                len(self.grid),
                shapes,
                dtype=config.dense_dtype,
                copies=1 + sum(bool(holding.undense) for holding in stores),
            )
        return shapes

    def _publish_all(self, content: SlideContent) -> None:
        with self.work.timed("write"), timed("write"):
            for holding in self.holdings.stores:
                self._publish(holding, content)

    def _publish(self, holding: StoreHolding, content: SlideContent) -> None:
        """Publish a new slide, or add to one what it lacks."""
        if holding.complete:
            return
        if holding.coords is not None and not np.array_equal(holding.coords, content.coords):
            raise StoreError(
                f"{holding.path} has the identity of this run but other coordinates; "
                "nothing was added to it. Compute it again with force=true."
            )
        whole = SlideContent(
            coords=content.coords,
            columns={**content.columns, **holding.columns},
            attributes={
                **content.attributes,
                "writer": holding.store.fields,
                **holding.attributes,
                **self._patient(),
            },
            features={name: content.features[name] for name in holding.missing},
            arrays={
                **region_arrays(self.grid, self.identity),
                **_by_name(content.arrays, holding.unembedded),
                **{key: content.arrays[key] for key in holding.undense},
            },
        )
        whole = self._labelled(self._judged(whole, {**holding.quality, **self._scores()}))
        with grouped_features(self.grid, holding, content.features) as grouped:
            whole = replace(whole, arrays={**whole.arrays, **grouped})
            dropped = publish_slide(
                holding.path,
                holding.store.writer,
                holding.store.spec,
                whole,
                force=holding.replace,
                revise=None if holding.replace else partial(self._revise, holding, whole),
            )
        if dropped:
            names = ", ".join(dropped)
            told = f"{names} of another configuration dropped from {holding.path}"
            self.work.warnings.append(told)

    def _revise(
        self, holding: StoreHolding, content: SlideContent, found: SlideContent | None
    ) -> SlideContent | None:
        """Add to a slide's columns what it lacks now, whatever others published meanwhile.

        Raises:
            StoreError: If the slide is gone, which held what was not computed again.
            IdentityError: If somebody published scores of another configuration.
        """
        if found is None:
            if holding.kept:
                raise StoreError(
                    f"{holding.path} was removed while this run added to it. Run the slide again."
                )
            return content
        there, mine = parse_quality(found.attributes), self._scores()
        list_unscored(self.work.plan, holding.path, there, self.identity)
        both = replace(
            content,
            columns={**content.columns, **found.columns},
            attributes={**content.attributes, **found.attributes, **self._patient()},
        )
        revised = self._labelled(self._judged(both, {**there, **mine}))
        limits_stay = all(n in there and there[n].limits == mine[n].limits for n in mine)
        made_of = (each.attributes.get(LABELS_IDENTITY) for each in (revised, found))
        labels_stay = len({*made_of}) == 1
        patient_stays = patient_of(revised.attributes) == patient_of(found.attributes)
        stay = limits_stay and labels_stay and patient_stays
        return None if stay and revised.columns.keys() == found.columns.keys() else revised

    def _patient(self) -> dict[str, str]:
        """Say whose the slide is, if the run does."""
        patient = self.work.ref.patient_id
        return {"patient_id": patient} if patient else {}

    def _labelled(self, content: SlideContent) -> SlideContent:
        """Label a slide's tiles anew, in a run that does."""
        return content if self.labels is None else self.labels.attach(content)

    def _judged(self, content: SlideContent, parts: Mapping[str, Scores]) -> SlideContent:
        """Give reasons by all limits on a slide's columns, and say who gave them."""
        if not parts:
            return content
        attributes = {**content.attributes, **quality_attributes(parts)}
        reason = give_reasons(content.columns, join_limits(parts.values()))
        self.work.reasons = count_reasons(reason, attributes[REASONS])
        return replace(content, attributes=attributes, columns={**content.columns, REASON: reason})

    def _scores(self) -> dict[str, Scores]:
        """Say what a store holds of this run's inspectors when this is done."""
        return {
            each.name: Scores(
                identity=score_identity(each, self.identity),
                columns=each.columns,
                limits=each.limits,
            )
            for each in self.work.plan.inspectors
        }

    def _refuse_too_many(self) -> None:
        """Count the limits that stay in a store with those of this run, before the work."""
        mine = self._scores()
        for holding in self.holdings.stores:
            try:
                bit_names(join_limits({**holding.quality, **mine}.values()))
            except ConfigError as error:
                others = ", ".join(sorted(holding.quality.keys() - mine.keys()))
                raise StoreError(
                    f"{holding.path} keeps the limits of {others}, too: {error} Those of an "
                    "inspector that is there change when the run names it."
                ) from error


def _by_name(arrays: Mapping[str, FeatureSet], names: Collection[str]) -> Mapping[str, FeatureSet]:
    """Give the arrays ``group/name`` of some names."""
    return {key: array for key, array in arrays.items() if key.partition("/")[2] in names}


def _refuse_clash(names: Set[str]) -> None:
    if names:
        raise StoreError(
            f"The tiler and an inspector both give the column {sorted(names)[0]!r}. Give the "
            "inspector another key: +inspector@inspector.KEY=NAME."
        )
