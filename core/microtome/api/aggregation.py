"""Slide embeddings of tile embeddings that are kept, without their slides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from microtome.api.artifacts import Artifact, SlideEmbeddingArtifact, read_sidecar
from microtome.api.choices import model_options
from microtome.api.embedding import Where
from microtome.api.execution import FILES, ExecutionOptions
from microtome.api.keeping import Files, Keeper
from microtome.api.preprocessing import PreprocessingConfig
from microtome.api.results import open_result
from microtome.api.runs import choose
from microtome.api.samples import Sample
from microtome.errors import ConfigError, EncoderError, StoreError
from microtome.plugin.options import configure
from microtome.plugin.protocols import StoredSlide
from microtome.plugin.registry import Registry
from microtome.plugin.specs import EncoderCard, EncoderSpec, WriterSpec
from microtome.run.planning.models import PlannedModel, plan_slide_encoders
from microtome.run.settings import EncoderChoice, RunConfig
from microtome.run.slides.bagging import check_bag, check_output, make_bag, refuse_large
from microtome.run.slides.embedding import encode, to_store
from microtome.run.slides.identities import embedding_identity, refuse_difference
from microtome.slide.bags import TileBag
from microtome.store.arrays import array_names
from microtome.store.attributes import parse_fields
from microtome.store.features import StoredSource
from microtome.store.identity import Identity
from microtome.store.publish import FeatureSet, SlideContent, publish_slide

if TYPE_CHECKING:
    from microtome.api.models import Model
    from microtome.run.planning.encoders import PlannedEncoder


@dataclass(frozen=True, kw_only=True)
class _Tiles:
    """Tile embeddings of a slide, where our store has them.

    Attributes:
        path: The store.
        names: Of the feature sets that may be read; all if empty.
    """

    path: Path
    names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _StoredEncoder:
    """What made a feature set, as a slide encoder asks of it."""

    name: str
    spec: EncoderSpec
    card: EncoderCard


def aggregate(
    model: Model,
    given: Artifact | str | Path | Iterable[Artifact | str | Path],
    execution: ExecutionOptions,
) -> list[SlideEmbeddingArtifact]:
    """Embed slides by a slide model out of what stores hold of their tiles.

    Args:
        model: Of slides.
        given: Artefacts, or paths of stores, of ``.pt`` or of ``.npz`` with a sidecar.
        execution: Says where files go, if these are wanted; our stores take embeddings in.

    Raises:
        ConfigError: If there is no output folder for files.
        EncoderError: If features are not what the model needs.
    """
    _check_options(execution)
    files = None
    if execution.output_format in FILES and execution.folder is not None:
        files = Files(output=execution.folder, format=execution.output_format, replace=True)
    given = [given] if isinstance(given, Artifact | str | Path) else given
    work = _Aggregation(model, execution)
    artifacts = []
    for tiles in [_within(execution, _resolve(each)) for each in given]:
        with open_result(tiles.path) as stored:
            name = str(stored.attributes.get("slide_id") or tiles.path.stem)
            is_empty = not len(stored.coords)
            planned = work.plan(stored, tiles.names)
        if is_empty:
            continue
        work.embed(tiles.path, planned)
        where = Where(
            path=tiles.path,
            features=next(iter(planned.reads.values())),
            slide=planned.name,
            latents=execution.save_latents,
        )
        sample = Sample(sample_id=name, image_path=_source(tiles.path))
        keeper = Keeper(
            files=files,
            store=_writer(tiles.path, model.registry).name,
            encoder=model.key,
            level="slide",
        )
        kept = keeper.slide(sample, where)
        artifacts += [kept] if kept is not None else []
    return artifacts


def _check_options(execution: ExecutionOptions) -> None:
    """Refuse options of a run that has no slides to read.

    Raises:
        ConfigError: If there is another than ``bag_memory_gb``, its value cannot be, or files are
            to be written nowhere.
    """
    if execution.output_format in FILES and execution.folder is None:
        raise ConfigError("Files need a folder: give ExecutionOptions(output_dir=…).")
    others = [name for name in execution.run if name != "bag_memory_gb"]
    if others:
        raise ConfigError(
            f"aggregate_tiles runs no slides: of ExecutionOptions.run it takes bag_memory_gb, not "
            f"{', '.join(others)}."
        )
    RunConfig(slides=(), output=Path(), bag_memory_gb=execution.run.get("bag_memory_gb"))


def _within(execution: ExecutionOptions, tiles: _Tiles) -> _Tiles:
    """See that a store, which takes its embedding in, is where results are to be.

    Raises:
        ConfigError: If it is not.
    """
    folder = execution.folder
    if folder is None or execution.output_format in FILES:
        return tiles
    if not tiles.path.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(
            f"output_format={execution.output_format!r} puts embeddings into the stores of the "
            f"tiles, and {tiles.path} is not in output_dir={folder}. Leave output_dir out, or "
            "write files: output_format='npz' or 'pt'."
        )
    return tiles


def _source(path: Path) -> str:
    with open_result(path) as stored:
        return str(stored.attributes.get("wsi_path", ""))


class _Aggregation:
    """A slide model over the features of stores, loaded once."""

    def __init__(self, model: Model, execution: ExecutionOptions) -> None:
        self._registry, self._execution = model.registry, execution
        options = model_options(model, PreprocessingConfig(), execution)
        self._choices = choose("slide_encoder", options["slide_encoder"], self._registry)
        self._cap: float | None = execution.run.get("bag_memory_gb")
        self._encoders: Mapping[str, Mapping[str, Any]] = options.get("encoder", {})
        self._planned: dict[Any, PlannedModel] = {}

    def plan(self, stored: StoredSlide, names: Sequence[str]) -> PlannedModel:
        """Find what the model reads in a store.

        Raises:
            ConfigError: If the store lacks it, or it is not clear which features are meant.
        """
        found = {
            name: stored.feature_attributes(name)
            for name in stored.feature_names()
            if not names or name in names
        }
        if self._encoders:
            found = self._of_encoders(stored, found)
        key = tuple((name, str(each.get("plugin"))) for name, each in sorted(found.items()))
        if key not in self._planned:
            self._planned[key] = self._find(found)
        return self._planned[key]

    def _of_encoders(
        self, stored: StoredSlide, found: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, Mapping[str, Any]]:
        """Give the features of the encoders that the model was made for."""
        plugins = {
            self._registry.find("encoder", str(options.get("plugin", name))).spec.name
            for name, options in self._encoders.items()
        }
        of = {n: each for n, each in found.items() if str(each.get("plugin", n)) in plugins}
        if not of:
            raise EncoderError(
                f"The model is to read features of {', '.join(self._encoders)}, and "
                f"{stored.attributes.get('slide_id')} has those of {', '.join(found) or 'none'}: "
                "embed its tiles with that encoder first."
            )
        return {n: each for n, each in of.items() if n in self._encoders} or of

    def _find(self, found: Mapping[str, Mapping[str, Any]]) -> PlannedModel:
        encoders = [_encoder(name, each, self._registry) for name, each in found.items()]
        config = RunConfig(
            slides=(),
            output=Path(),
            encoders=tuple(_choice(name, each, self._registry) for name, each in found.items()),
            slide_encoders=tuple(self._choices),
        )
        made = plan_slide_encoders(
            config, self._registry, cast("Sequence[PlannedEncoder]", encoders), []
        )
        if len(made) > 1:
            raise ConfigError(
                f"{made[0].made.choice.name} pools any features, and there are {', '.join(found)}: "
                "give the artefacts of one, not the paths of stores."
            )
        return made[0]

    def embed(self, path: Path, planned: PlannedModel) -> None:
        """Embed a slide and put the embedding into its store, unless it is there already.

        Raises:
            IdentityError: If another embedding of that name is there.
            EncoderError: If the features are not what the model needs, or are too many.
        """
        key = f"slide_features/{planned.name}"
        with open_result(path) as stored:
            identity = embedding_identity(
                planned,
                {
                    k: str(stored.feature_attributes(name).get("identity"))
                    for k, name in planned.reads.items()
                },
            )
            if key in array_names(stored):
                refuse_difference(f"{key} in {path}", stored.array_attributes(key), identity)
                if not self._lacks_latents(stored, planned):
                    return
            attributes = dict(stored.attributes)
            slide_id = str(attributes.get("slide_id", path.stem))
            bare = make_bag(slide_id, stored.coords, {}, attributes)
            _examine(planned, bare, stored, self._cap)
            features = {k: np.asarray(stored.features(n)) for k, n in planned.reads.items()}
            bag = make_bag(slide_id, stored.coords, features, attributes)
            arrays = self._arrays(planned, identity, bag, attributes)
            content = SlideContent(
                coords=stored.coords,
                columns=dict(stored.columns),
                attributes=attributes,
                arrays=arrays,
            )
        spec = _writer(path, self._registry)
        writer = self._registry.create("writer", spec.name)
        publish_slide(path, writer, spec, content, force=False)

    def _lacks_latents(self, stored: StoredSlide, planned: PlannedModel) -> bool:
        wanted = planned.card is not None and planned.card.latents is not None
        there = f"slide_latents/{planned.name}" in array_names(stored)
        return self._execution.save_latents and wanted and not there

    def _arrays(
        self,
        planned: PlannedModel,
        identity: Identity,
        bag: TileBag,
        attributes: Mapping[str, Any],
    ) -> dict[str, FeatureSet]:
        planned.ensure_loaded()
        found = check_output(planned, encode(planned, bag), len(bag))
        if not self._execution.save_latents:
            found.pop("slide_latents", None)
        return to_store(planned, identity, found, attributes, bag)


def _examine(planned: PlannedModel, bag: TileBag, stored: StoredSlide, cap: float | None) -> None:
    """Refuse tiles that a model is not for, or so many, before their features are read."""
    check_bag(planned, bag)
    sources = [StoredSource(stored, name) for name in planned.reads.values()]
    row_bytes = sum(source.shape[1] * source.dtype.itemsize for source in sources)
    refuse_large(planned, len(bag), bag.extent, row_bytes=row_bytes, cap=cap)


def _resolve(given: Artifact | str | Path) -> _Tiles:
    """Find the store of an artefact.

    Raises:
        StoreError: If a file's store is gone, or nothing says which it was.
    """
    if isinstance(given, Artifact) and given.format not in FILES:
        return _Tiles(path=given.path, names=(given.key.partition("/")[2],))
    path = given.path if isinstance(given, Artifact) else Path(given)
    if not path.exists():
        raise StoreError(f"There is no file {path}.")
    if path.suffix.removeprefix(".") not in FILES:
        return _Tiles(path=path)
    sidecar = path.with_suffix(".meta.json")
    known = read_sidecar(sidecar)
    name, key = str(known.get("store", "")), str(known.get("key", ""))
    # The sidecar names it below the folder that the kind's folder is in.
    top = next((p.parent for p in path.parents if p.name.endswith("_embeddings")), path.parent)
    store = top / name
    if not name or not store.exists():
        raise StoreError(
            f"{path} is without the store that it was written from ({name or 'none is named'}), "
            "which holds the geometry of the tiles. Aggregate from the store, .h5 or .zarr."
        )
    return _Tiles(path=store, names=(key.partition("/")[2],))


def _writer(path: Path, registry: Registry) -> WriterSpec:
    specs = [entry.spec for entry in registry.entries("writer")]
    found = (s for s in specs if isinstance(s, WriterSpec) and s.consumes == "features")
    return next(spec for spec in found if spec.suffix == path.suffix)


def _spec(name: str, attributes: Mapping[str, Any], registry: Registry) -> EncoderSpec:
    spec = registry.find("encoder", str(attributes.get("plugin", name))).spec
    return cast("EncoderSpec", spec)


def _encoder(name: str, attributes: Mapping[str, Any], registry: Registry) -> _StoredEncoder:
    card = EncoderCard(dim=int(attributes.get("dim", 0)))
    return _StoredEncoder(name=name, spec=_spec(name, attributes, registry), card=card)


def _choice(name: str, attributes: Mapping[str, Any], registry: Registry) -> EncoderChoice:
    """Give the choice that a feature set was made by, as far as its identity says."""
    spec = _spec(name, attributes, registry)
    made_of = parse_fields(attributes).get("encoder")
    known = {each.name for each in fields(spec.config)}
    options = {k: v for k, v in (made_of or {}).items() if k in known and k != "weights"}
    return EncoderChoice(plugin=spec.name, key=name, config=configure(spec, **options))
