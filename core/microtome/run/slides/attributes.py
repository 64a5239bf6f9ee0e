"""What is written beside coordinates and features: geometry, identity, provenance."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from microtome._version import __version__
from microtome.run.planning.budget import Threads
from microtome.run.planning.encoders import PlannedEncoder
from microtome.run.planning.models import PlannedModel
from microtome.run.planning.plan import RunPlan
from microtome.slide.opening import OpenedSlide
from microtome.slide.types import SlideInfo, SlideRef, TileGeometry
from microtome.store.identity import Identity
from microtome.store.passports import PASSPORT

if TYPE_CHECKING:
    from microtome.run.slides.holdings import Holdings

RESAMPLE_VERSION = 1
"""Raised when the pixels that a recipe gives change."""

LIBRARIES = (
    "numpy",
    "pillow",
    "opencv-python-headless",
    "openslide-python",
    "openslide-bin",
    "tifffile",
    "imagecodecs",
    "cucim-cu12",
    "cucim-cu13",
    "pyvips",
    "torch",
    "torchvision",
    "timm",
)


def slide_attributes(
    slide: OpenedSlide, geometry: TileGeometry, identity: Identity, tiles: int
) -> dict[str, Any]:
    """Give the attributes of a stored slide.

    The first block is what readers of the established layout rely on: one file a slide, sizes
    in pixels, ``patch_size_level0`` an integer. The second says the same exactly.

    Args:
        slide: The open slide.
        geometry: Of its tiles.
        identity: Of its coordinates.
        tiles: How many there are.
    """
    return tile_attributes(slide.ref, slide.info, geometry, identity=identity, tiles=tiles)


def tile_attributes(
    ref: SlideRef, info: SlideInfo, geometry: TileGeometry, *, identity: Identity, tiles: int
) -> dict[str, Any]:
    """Give the attributes of a slide that need not be open; see `slide_attributes`.

    Args:
        ref: The slide.
        info: What it says of itself, resolution resolved.
        geometry: Of its tiles.
        identity: Of its coordinates.
        tiles: How many there are.
    """
    resolution = info.resolution
    established = {
        "patch_size": geometry.size,
        "patch_size_level0": round(geometry.size_level0[0]),
        "level0_magnification": _nominal(resolution.magnification),
        "target_magnification": _target_magnification(geometry, resolution.magnification),
        "overlap": geometry.size - geometry.step,
        "level0_width": info.width,
        "level0_height": info.height,
        "wsi_path": ref.source,
        "passport_format": PASSPORT,
        "passport_version": 2,
        "creation_date": datetime.now(UTC).isoformat(timespec="seconds"),
        "num_patches": tiles,
        "filename": ref.path.name,
    }
    present = {
        "mpp": resolution.mpp,
        "magnification": _nominal(resolution.magnification),
        "vendor": info.vendor,
        "institution": find_said(info.properties, "institution"),
        "stain": find_said(info.properties, "stain"),
        "patient_id": ref.patient_id or None,
    }
    exact = {
        "slide_id": ref.slide_id,
        "patch_size_level0_exact": list(geometry.size_level0),
        "step_level0_exact": list(geometry.pitch_level0),
        "step": geometry.step,
        "read_size": list(geometry.read_size),
        "level": geometry.level,
        "level_downsample": geometry.level_downsample,
        "target_mpp": geometry.target_mpp,
        "effective_mpp": None if geometry.effective_mpp is None else list(geometry.effective_mpp),
        "mpp_x": resolution.mpp_x,
        "mpp_y": resolution.mpp_y,
        "mpp_source": resolution.mpp_source,
        "mpp_assumed": resolution.assumed,
        "magnification_source": resolution.magnification_source,
        "edge": geometry.edge,
        "resample": geometry.resample,
        "resample_version": RESAMPLE_VERSION,
        "background": list(info.background),
        "bounds": None if info.bounds is None else list(info.bounds),
        "reader": info.reader,
        "microtome_version": __version__,
        "provenance": dict(provenance()),
        "identity": identity.digest,
        "identity_fields": dict(identity.fields),
    }
    if geometry.target_level is not None:
        exact["target_level"] = geometry.target_level
    return established | {k: v for k, v in present.items() if v is not None} | exact


def find_said(properties: Mapping[str, str], what: str) -> str | None:
    """Find what a scanner wrote of its institution or stain, whatever the vendor's key."""
    keys = (key for key in sorted(properties) if what in key.rpartition(".")[2].lower())
    return next((text for key in keys if (text := properties[key].strip())), None)


def _target_magnification(geometry: TileGeometry, level0: float | None) -> float | None:
    """Give the nominal magnification; 10 / mpp for a physical target, that of a level if known."""
    if geometry.target_level is not None:
        of_level = None if level0 is None else round(level0 / geometry.level_downsample, 4)
        return _nominal(of_level)
    if geometry.target_mpp is not None:
        return round(10 / geometry.target_mpp, 4)
    return _nominal(geometry.target_magnification)


def _nominal(magnification: float | None) -> float | None:
    """Give a whole magnification as an integer, as readers of the layout know it."""
    whole = magnification is not None and float(magnification).is_integer()
    return int(magnification or 0) if whole else magnification


def feature_attributes(
    planned: PlannedEncoder, plan: RunPlan, identity: Identity, *, threads: Threads
) -> dict[str, Any]:
    """Give the attributes of a feature set: the encoder's card, identity and provenance.

    Its device, batch size and torch's threads can show in the last bits of a network's features,
    so they are written down. An encoder whose columns mean something says so in ``columns``: a
    dataclass for each, with a ``name``.
    """
    columns = getattr(planned.encoder, "columns", None)
    spec = planned.spec
    distribution = plan.registry.find("encoder", spec.name).distribution
    file = {"plugin_file": distribution, "plugin_sha256": spec.file_sha256}
    return {
        "encoder": planned.name,
        "plugin": spec.name,
        "distribution": distribution,
        "dim": planned.card.dim,
        "card": asdict(planned.card),
        "precision": planned.precision,
        "device": ",".join(planned.devices),
        "batch_size": planned.batch_size,
        "torch_threads": threads.torch,
        "microtome_version": __version__,
        "provenance": dict(provenance()),
        "identity": identity.digest,
        "identity_fields": dict(identity.fields),
        "weights": dict(getattr(planned.encoder, "loaded_weights", {})),
        **({} if columns is None else {"columns": [asdict(column) for column in columns]}),
        **(file if spec.file_sha256 else {}),
    }


def embedding_attributes(planned: PlannedModel, identity: Identity) -> dict[str, Any]:
    """Give the attributes of an embedding: its encoder's card, contract, identity, provenance."""
    spec, card = planned.made.spec, planned.card
    return {
        "encoder": planned.name,
        "encoder_name": planned.made.choice.name,
        "plugin": spec.name,
        "distribution": planned.registry.find(planned.kind, spec.name).distribution,
        "contract": [dict(promise) for promise in planned.contract],
        **({} if card is None else {"dim": card.dim, "card": asdict(card)}),
        "precision": planned.precision,
        "device": planned.device,
        "microtome_version": __version__,
        "provenance": dict(provenance()),
        "identity": identity.digest,
        "identity_fields": dict(identity.fields),
        "weights": dict(getattr(planned.model, "loaded_weights", {})),
        **({"plugin_sha256": spec.file_sha256} if spec.file_sha256 else {}),
    }


@cache
def provenance() -> Mapping[str, str]:
    """Name the versions of everything that had a hand in the result, never part of an identity."""
    found = {"python": platform.python_version(), "platform": sys.platform}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return MappingProxyType(found)


def patient_of(attributes: Mapping[str, Any]) -> str:
    """Give the patient that a store knows its slide to be of; empty where it knows none."""
    return str(attributes.get("patient_id", ""))


def tell_patients(holdings: Holdings, ref: SlideRef) -> list[str]:
    """Say that a slide is another patient's now than what is there says."""
    before = {patient_of(h.attributes) for h in holdings.stores if h.kept and h.reassigned} - {""}
    told = f"of patient {ref.patient_id} now, and no longer of"
    return [f"{told} {name}; all else kept" for name in sorted(before)]
