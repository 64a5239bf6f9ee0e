"""What each stage of a slide depends on, and the refusal of what another configuration made.

Each identity holds its upstream's: a mask depends on the slide, coordinates on the mask,
features and images on the coordinates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from microtome.errors import IdentityError, MicrotomeError
from microtome.plugin.protocols import StoredSlide
from microtome.run.planning.encoders import PlannedEncoder
from microtome.run.planning.labels import find_file, label_fields, wants_labels
from microtome.run.planning.models import PlannedModel
from microtome.run.planning.plan import RunPlan
from microtome.run.planning.quality import PlannedInspector
from microtome.run.planning.writers import PlannedImages
from microtome.run.settings import FilterSettings, TissueSettings
from microtome.run.slides.attributes import RESAMPLE_VERSION
from microtome.slide.labels import CLASSES, LABEL
from microtome.slide.opening import OpenedSlide
from microtome.slide.types import SlideRef, TileGrid
from microtome.store.arrays import array_names
from microtome.store.attributes import parse_fields, parse_list
from microtome.store.identity import (
    SPEC_FIELDS,
    Identity,
    describe,
    difference,
    fingerprint,
    make_identity,
)

VERSIONS = {"view": 1, "cleaning": 1, "filter": 1, "resample": RESAMPLE_VERSION}
"""Of the core's own steps, part of every identity that they touch: raised when results change."""


LABELS = "labels"
"""Field of the identity of images that are stored with labels."""

BAG_VERSION = 1
"""Of how tiles become a bag, part of the identity of every embedding of a slide."""


def tissue_identity(plan: RunPlan, slide: OpenedSlide, slide_print: str) -> Identity:
    """Identify a slide's mask.

    Args:
        plan: The resolved run.
        slide: The open slide.
        slide_print: Its fingerprint.
    """
    return _tissue_identity(plan, slide.ref, slide_print, _reader(plan, slide))


def tissue_again(plan: RunPlan, ref: SlideRef, before: Mapping[str, Any]) -> Identity:
    """Identify the mask of a slide that cannot be opened now: its content and reader as before.

    Args:
        plan: The resolved run.
        ref: The slide.
        before: Fields of the identity that its mask had.
    """
    of_reader = (*SPEC_FIELDS, "plugin_sha256")
    reader = {name: v for name, v in before.get("reader", {}).items() if name in of_reader}
    return _tissue_identity(plan, ref, before["slide"], {**plan.reader_fields, **reader})


def _tissue_identity(
    plan: RunPlan, ref: SlideRef, slide_print: str, reader: Mapping[str, Any]
) -> Identity:
    fields: dict[str, Any] = {
        "slide": slide_print,
        "segmenter": plan.segmenter_fields,
        "versions": {name: VERSIONS[name] for name in ("view", "cleaning")},
    }
    if cleaning := _chosen(plan.config.tissue):
        fields["cleaning"] = cleaning
    if ref.mpp is not None:
        fields["mpp"] = ref.mpp
    if reader:
        fields["reader"] = dict(reader)
    sources = getattr(plan.segmenter, "sources", None)
    if sources is not None and (files := sources(ref)):
        fields["sources"] = {file.name: fingerprint(file) for file in files}
    return make_identity("tissue", fields)


def coords_identity(plan: RunPlan, tissue: Identity, ref: SlideRef) -> Identity:
    """Identify a slide's coordinates."""
    fields: dict[str, Any] = {"tissue": dict(tissue.fields), "tiler": plan.tiler_fields}
    upstream = getattr(plan.tiler, "upstream", None)
    if upstream is not None:
        fields["tiles"] = dict(upstream(ref))
    if plan.config.filter.enabled:
        fields["filter"] = _chosen(plan.config.filter)
        fields["versions"] = {name: VERSIONS[name] for name in ("filter", "resample")}
    if plan.config.quality.drop and plan.inspectors:
        fields["quality"] = _with_limits(plan)
        fields["versions"] = {**fields.get("versions", {}), "resample": VERSIONS["resample"]}
    return make_identity("coords", fields)


def score_identity(inspector: PlannedInspector, coords: Identity) -> Identity:
    """Identify an inspector's scores of a slide: whatever the limits on them."""
    fields = {
        "coords": coords.digest,
        "inspector": inspector.fields,
        "versions": {"resample": VERSIONS["resample"]},
    }
    return make_identity("quality", fields)


def feature_identity(plan: RunPlan, encoder: PlannedEncoder, coords: Identity) -> Identity:
    """Identify an encoder's features of a slide."""
    fields = {
        "coords": coords.digest,
        "encoder": encoder.fields,
        "dtype": plan.config.feature_dtype,
        "versions": {"resample": VERSIONS["resample"]},
    }
    return make_identity("features", fields)


def slide_identity(plan: RunPlan, planned: PlannedModel, coords: Identity) -> Identity:
    """Identify what a slide encoder makes of a slide: by its contract, too."""
    return embedding_identity(planned, _read(plan, planned, coords))


def embedding_identity(planned: PlannedModel, features: Mapping[str, str]) -> Identity:
    """Identify what a slide encoder makes of features.

    Args:
        planned: The encoder.
        features: Their identities, by the key that it knows them by.
    """
    fields = {
        "features": dict(features),
        "slide_encoder": dict(planned.fields),
        "contract": [dict(promise) for promise in planned.contract],
        "versions": {"bag": BAG_VERSION},
    }
    return make_identity("slide_features", fields)


def _read(plan: RunPlan, planned: PlannedModel, coords: Identity) -> dict[str, str]:
    """Give the identities of the features that an encoder reads, by the key it knows them by."""
    encoders = {encoder.name: encoder for encoder in plan.encoders}
    return {
        key: feature_identity(plan, encoders[name], coords).digest
        for key, name in planned.reads.items()
    }


def image_identity(image: PlannedImages, coords: Identity, labels: str) -> Identity:
    """Identify a slide's tile images.

    Args:
        image: Their writer.
        coords: Of the tiles.
        labels: As of `label_digest`: part of the identity of images that are stored with labels.
    """
    fields = {
        "coords": dict(coords.fields),
        "coords_identity": coords.digest,
        "writer": image.fields,
        "versions": {"resample": VERSIONS["resample"]},
        **({LABELS: labels} if image.labelled else {}),
    }
    return make_identity("images", fields)


def differs_by_labels(attributes: Mapping[str, Any], wanted: Identity) -> bool:
    """Tell whether images that are there differ from those wanted by their labels alone."""
    there, labels = parse_fields(attributes), wanted.fields.get(LABELS)
    if labels is None or there.get(LABELS) == labels:
        return False
    return make_identity("images", {**there, LABELS: labels}).digest == wanted.digest


def label_digest(grid: TileGrid) -> str:
    """Hash the labels of tiles and the classes that they count; empty where there are none.

    By what they are and not by what made them: images are made again when a label changes.
    """
    if LABEL not in grid.columns:
        return ""
    labels = np.ascontiguousarray(grid.columns[LABEL], "<i2")
    classes = [str(name) for name in parse_list(grid.attributes.get(CLASSES))]
    fields = {CLASSES: classes, LABELS: hashlib.sha256(labels.tobytes()).hexdigest()}
    return make_identity("labels", fields).digest


def asked_for(plan: RunPlan, ref: SlideRef) -> str:
    """Give a digest of all that a run asks of a staged slide; empty for one that is not.

    Where a finished slide has the same, nothing would be done: it need not even be fetched.
    """
    if not ref.version:
        return ""
    config = plan.config
    sources = getattr(plan.segmenter, "sources", lambda ref: ())
    fields: dict[str, Any] = {
        "source": ref.source,
        "version": ref.version,
        "mpp": (ref.mpp, ref.mpp_source),
        "masks": {file.name: fingerprint(file) for file in sources(ref)},
        "task": config.task,
        "visualize": config.visualize,
        "dtype": config.feature_dtype,
        "tissue": _chosen(config.tissue),
        "filter": _chosen(config.filter),
        "segmenter": plan.segmenter_fields,
        "tiler": plan.tiler_fields,
        "reader": (config.reader.plugin, plan.reader_fields),
        "encoders": {encoder.name: encoder.fields for encoder in plan.encoders},
        "writers": {writer.name: writer.fields for writer in plan.writers},
        "versions": VERSIONS,
    }
    if plan.slide_encoders:
        fields["slide_encoders"] = {
            each.name: [each.fields, each.reads, each.contract, config.latents, BAG_VERSION]
            for each in plan.slide_encoders
        }
    if dense := {encoder.name: encoder.asked for encoder in plan.encoders if encoder.asked}:
        fields["dense"] = {"dtype": config.dense_dtype, **dense}
    if config.region_features:
        fields["region_features"] = True
    if plan.inspectors:
        fields["quality"] = {"drop": config.quality.drop, "inspectors": _with_limits(plan)}
    if tiles := _upstream(plan, ref):
        fields["tiles"] = tiles
    if wants_labels(config):
        with suppress(MicrotomeError):  # what is wrong with its file is told of the slide itself
            file = find_file(config, ref, plan.registry)
            fields["labels"] = label_fields(config.labels, file, plan.registry)
    return make_identity("asked", fields).digest


def _with_limits(plan: RunPlan) -> dict[str, Any]:
    return {each.name: {**each.fields, "limits": dict(each.limits)} for each in plan.inspectors}


def _upstream(plan: RunPlan, ref: SlideRef) -> dict[str, str]:
    """Say what else decides a slide's tiles; what is not there is told when they are placed."""
    upstream = getattr(plan.tiler, "upstream", None)
    with suppress(MicrotomeError):
        return {} if upstream is None else dict(upstream(ref))
    return {}


def _chosen(settings: TissueSettings | FilterSettings) -> dict[str, Any]:
    """Give the settings that are not at their defaults."""
    default = asdict(type(settings)())
    return {name: value for name, value in asdict(settings).items() if value != default[name]}


def _reader(plan: RunPlan, slide: OpenedSlide) -> dict[str, Any]:
    """Give what the pixels depend on of their reader: nothing, where all give the same."""
    fields = dict(plan.reader_fields)
    if not slide.info.exact:
        spec = plan.registry.find("reader", slide.info.reader).spec
        fields |= describe(spec, None)
    return fields


def list_absent(stored: StoredSlide, path: Path, wanted: Mapping[str, Identity]) -> tuple[str, ...]:
    """Name the arrays of encoders that a store lacks, after seeing that those there are theirs.

    Args:
        stored: The slide as it is there.
        path: Of it.
        wanted: What this run would give, by ``group/name``.

    Raises:
        IdentityError: If one that is there was made by another configuration.
    """
    there = {*array_names(stored)} if wanted else set()
    for key in (key for key in wanted if key in there):
        refuse_difference(
            f"{key} in {path}",
            stored.array_attributes(key),
            wanted[key],
            apart="an encoder key (+encoder@encoder.KEY=NAME)",
        )
    return tuple(key for key in wanted if key not in there)


def refuse_difference(
    what: str, attributes: Mapping[str, Any], wanted: Identity, *, apart: str = "tiler.name"
) -> None:
    """Refuse what another configuration made, naming the difference.

    Args:
        what: What is there, for the message.
        attributes: Its attributes.
        wanted: The identity that this run would give it.
        apart: What keeps the two apart, for the message.

    Raises:
        IdentityError: If the identities differ.
    """
    if attributes.get("identity") == wanted.digest:
        return
    fields = parse_fields(attributes)
    if "imported" in fields:
        raise IdentityError(
            f"{what} was imported, not made by a run. To go on from its tiles, give this run an "
            f"output or {apart} of its own, and tiler=stored tiler.folder=…, the folder with the "
            "imported slides; or replace it with force=true."
        )
    raise IdentityError(
        f"{what} was made by another configuration: {difference(fields, wanted.fields)}. "
        f"Give this run an output or {apart} of its own, or replace it with force=true."
    )
