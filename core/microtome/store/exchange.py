"""A finished slide as other tools' layouts take and give it, and what it says of itself."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import LayoutError
from microtome.slide.types import Level, Resolution, SlideInfo, TileGeometry
from microtome.store.arrays import BY_SLIDE, PREDICTIONS, array_names
from microtome.store.attributes import parse_json, plain_attributes
from microtome.store.features import StoredSource
from microtome.store.publish import FeatureSet

if TYPE_CHECKING:
    from microtome.plugin.protocols import StoredSlide

NOTE = "microtome"
"""Where a layout has room for it: what its own fields cannot hold, as JSON."""

GEOMETRY = (
    *("patch_size", "patch_size_level0", "level0_magnification", "target_magnification"),
    *("overlap", "level0_width", "level0_height", "wsi_path", "mpp", "magnification", "vendor"),
    *("slide_id", "patch_size_level0_exact", "step_level0_exact", "step", "read_size", "level"),
    *("level_downsample", "target_mpp", "effective_mpp", "mpp_x", "mpp_y", "mpp_source"),
    *("mpp_assumed", "magnification_source", "edge", "resample", "background", "target_level"),
)
"""Attributes of a slide that say where its tiles lie and how large they are."""

ENCODER = ("encoder", "plugin", "distribution", "dim", "card", "precision", "weights", "identity")
"""Attributes of a feature set that say what made it."""

_NONE = "None"  # as stores hold it


@dataclass(frozen=True, eq=False, kw_only=True)
class TiledSlide:
    """A slide's tiles and features.

    Attributes:
        slide_id: Its name.
        source: The slide's file as its maker named it; empty where not known.
        info: Level 0, of no extent where it is not known, and the resolution.
        geometry: The one size of all tiles.
        coords: (n, 5) int32 ``x, y, read_w, read_h, level``.
        columns: Per-tile values beside the coordinates, (n,) each.
        features: By name, row-aligned with ``coords``.
        note: To export it: `NOTE`'s content.
        identity: To export it: digest of its coordinates' identity.
        embeddings: To export it: what slide encoders made of its features, as
            ``slide_features/<slide encoder>`` and ``slide_latents/<slide encoder>``.
        predictions: To export it: probabilities, row-aligned with ``coords``, as
            ``predictions/<name>``.
        tissue: To export it: GeoJSON of its tissue in level-0 pixels; None where there is none.
        attributes: To export it: all that its store says of it. Of an imported one, what its
            store shall say beside geometry and origin: ``classes``.
    """

    slide_id: str
    source: str
    info: SlideInfo
    geometry: TileGeometry
    coords: NDArray[np.int32]
    columns: Mapping[str, NDArray[Any]] = field(default_factory=lambda: MappingProxyType({}))
    features: Mapping[str, FeatureSet] = field(default_factory=lambda: MappingProxyType({}))
    note: str = ""
    identity: str = ""
    embeddings: Mapping[str, FeatureSet] = field(default_factory=lambda: MappingProxyType({}))
    predictions: Mapping[str, FeatureSet] = field(default_factory=lambda: MappingProxyType({}))
    tissue: Path | None = None
    attributes: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, eq=False, kw_only=True)
class LayoutFile:
    """A file, or a folder, of a slide in another tool's layout.

    Attributes:
        path: Below the folder that is exported to, with ``/``.
        write: Writes it at a private path that does not exist yet and has another suffix.
        features: The feature sets whose values are in it.
        embeddings: The same of slide encoders' embeddings.
        predictions: The same of predictions.
        columns: The columns whose values are in it.
        attributes: The attributes of the slide that are in it, beside its geometry.
        tissue: Whether the tissue is in it.
        shared: Whether slides with a file of this path have it in common. Then ``write`` is called
            for one after the other, sorted by id, and finds what those before it wrote.
        layout: ``"file"`` or ``"directory"``.
        warnings: What the user should know of what is not in it.
    """

    path: str
    write: Callable[[Path], None]
    features: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ()
    predictions: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    tissue: bool = False
    shared: bool = False
    layout: str = "file"
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FoundSlide:
    """A slide that a folder holds in another tool's layout.

    Attributes:
        slide_id: Its name.
        coords: The files, or folders, that its coordinates and geometry come from.
        features: The same of each feature set.
    """

    slide_id: str
    coords: tuple[Path, ...]
    features: Mapping[str, tuple[Path, ...]] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, kw_only=True)
class SlideFacts:
    """What is known of a slide besides the files of a layout.

    Attributes:
        info: Of the slide itself, if it is at hand.
        mpp: µm per level-0 pixel that the user gave for all slides.
    """

    info: SlideInfo | None = None
    mpp: float | None = None

    @property
    def resolution(self) -> Resolution | None:
        """What the slide or the user says of the resolution."""
        if self.info is not None and self.info.resolution.mpp is not None:
            return self.info.resolution
        if self.mpp is None:
            return None
        return Resolution(mpp_x=self.mpp, mpp_y=self.mpp, mpp_source="override")


def tiled_slide(
    slide_id: str, stored: StoredSlide, features: tuple[str, ...], tissue: Path | None = None
) -> TiledSlide:
    """Take a stored slide, without reading its features.

    Args:
        slide_id: Its name.
        stored: Open, and open for as long as the features are to be read.
        features: Which of its feature sets, and of the embeddings made of them.
        tissue: GeoJSON of its tissue, if there is one.

    Raises:
        LayoutError: If its attributes do not say what its tiles are, or these differ in size.
    """
    sizes = np.unique(stored.coords[:, 2:], axis=0)
    if len(sizes) > 1:
        raise LayoutError(
            f"{slide_id} holds tiles of {len(sizes)} sizes or levels; other tools' files hold "
            "tiles of one. Tile it anew to export it."
        )
    attributes = stored.attributes
    return TiledSlide(
        slide_id=slide_id,
        source=_text(attributes, "wsi_path"),
        info=read_info(attributes),
        geometry=read_geometry(attributes, slide_id),
        coords=stored.coords,
        columns=stored.columns,
        features={
            name: FeatureSet(StoredSource(stored, name), stored.feature_attributes(name))
            for name in features
        },
        note=write_note(attributes, GEOMETRY),
        identity=str(attributes.get("identity", "")),
        embeddings=dict(_embeddings(stored, features)),
        predictions={
            key: FeatureSet(StoredSource(stored, key), stored.array_attributes(key))
            for key in array_names(stored, PREDICTIONS)
        },
        tissue=tissue,
        attributes=stored.attributes,
    )


def _embeddings(stored: StoredSlide, features: tuple[str, ...]) -> Iterator[tuple[str, FeatureSet]]:
    """Give what slide encoders made of some feature sets."""
    for group in BY_SLIDE:
        for key in array_names(stored, group):
            attributes = stored.array_attributes(key)
            if {*read_by(attributes)} <= {*features}:
                yield key, FeatureSet(StoredSource(stored, key), attributes)


def read_by(attributes: Mapping[str, Any]) -> list[str]:
    """Name the feature sets that an embedding of these attributes was made of."""
    return str(attributes.get("source_patch_encoder", "")).split(", ")


def write_note(attributes: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """Write some attributes as JSON."""
    chosen = {name: attributes[name] for name in names if name in attributes}
    return json.dumps(plain_attributes(chosen), ensure_ascii=False)


def read_note(text: object) -> dict[str, Any]:
    """Read `NOTE`; empty where it is none."""
    return parse_json(text.decode("utf-8", "replace") if isinstance(text, bytes) else text)


def read_geometry(attributes: Mapping[str, Any], where: str) -> TileGeometry:
    """Read the size of tiles out of a slide's attributes.

    Raises:
        LayoutError: If they do not say it.
    """
    try:
        size, downsample = int(attributes["patch_size"]), float(attributes["level_downsample"])
        width, height = map(int, attributes["read_size"])
        target_mpp = _number(attributes, "target_mpp")
        level = _number(attributes, "target_level")
        nominal = _number(attributes, "target_magnification")
        pitch = _pair(attributes["step_level0_exact"])
        effective = attributes.get("effective_mpp")
        return TileGeometry(
            size=size,
            step=int(attributes["step"]),
            level=int(attributes["level"]),
            level_downsample=downsample,
            read_size=(width, height),
            pitch=(round(pitch[0] / downsample), round(pitch[1] / downsample)),
            size_level0=_pair(attributes["patch_size_level0_exact"]),
            pitch_level0=pitch,
            target_mpp=target_mpp,
            target_magnification=nominal if target_mpp is None and level is None else None,
            effective_mpp=None if effective in (None, _NONE) else _pair(effective),
            edge=str(attributes.get("edge", "drop")),
            resample=str(attributes.get("resample", "pil-bilinear")),
            target_level=None if level is None else int(level),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise LayoutError(
            f"{where}: its attributes do not say how large its tiles are ({error!r}). Tile it anew."
        ) from error


def read_info(attributes: Mapping[str, Any]) -> SlideInfo:
    """Read what a slide's attributes say of the slide; no extent where they do not say it."""
    width, height = (int(_number(attributes, f"level0_{s}") or 0) for s in ("width", "height"))
    background = attributes.get("background", (255, 255, 255))
    mpp_x, mpp_y = (_number(attributes, name) for name in ("mpp_x", "mpp_y"))
    return SlideInfo(
        path=Path(_text(attributes, "wsi_path")),
        reader=_text(attributes, "reader") or "import",
        levels=(Level(width=width, height=height, downsample=1.0),),
        background=(int(background[0]), int(background[1]), int(background[2])),
        vendor=_text(attributes, "vendor") or None,
        resolution=Resolution(
            mpp_x=mpp_x,
            mpp_y=mpp_y,
            mpp_source=_text(attributes, "mpp_source") or "unknown",
            assumed=bool(attributes.get("mpp_assumed", False)),
            magnification=_number(attributes, "level0_magnification"),
            magnification_source=_text(attributes, "magnification_source") or "unknown",
        ),
    )


def make_info(size: tuple[int, int], resolution: Resolution | None, source: str = "") -> SlideInfo:
    """Describe a slide by what another tool's file says of it.

    Args:
        size: (width, height) of level 0; 0 where it is not known.
        resolution: None where nothing is known of it.
        source: The slide's file.
    """
    return SlideInfo(
        path=Path(source),
        reader="import",
        levels=(Level(width=size[0], height=size[1], downsample=1.0),),
        resolution=resolution or Resolution(),
    )


def make_geometry(
    size: int,
    size_level0: float,
    *,
    step_level0: float,
    level: tuple[int, float] = (0, 1.0),
    target: tuple[float | None, float | None] = (None, None),
    resolution: Resolution | None = None,
) -> TileGeometry:
    """Say how large square tiles are by what other tools' files say of them.

    Args:
        size: Side in pixels that an encoder was given.
        size_level0: Side in level-0 pixels.
        step_level0: Stride in level-0 pixels.
        level: Index and downsample of the level that is read.
        target: mpp and magnification that were asked for; None where not.
        resolution: Of the slide, where known.

    Raises:
        LayoutError: If there is no such tile.
    """
    index, downsample = level
    numbers = (size, size_level0, step_level0, downsample)
    if not all(math.isfinite(number) and number > 0 for number in numbers) or index < 0:
        raise LayoutError(
            f"tiles of {size} px, {size_level0:g} at level 0, a step of {step_level0:g}, at level "
            f"{index} of downsample {downsample:g}: no such tiles can be."
        )
    read = max(1, round(size_level0 / downsample))
    known = resolution is not None and resolution.mpp_x is not None
    each = (resolution.mpp_x, resolution.mpp_y) if resolution is not None else (None, None)
    return TileGeometry(
        size=size,
        step=max(1, round(step_level0 / size_level0 * size)),
        level=index,
        level_downsample=downsample,
        read_size=(read, read),
        pitch=(round(step_level0 / downsample), round(step_level0 / downsample)),
        size_level0=(size_level0, size_level0),
        pitch_level0=(step_level0, step_level0),
        target_mpp=target[0],
        target_magnification=None if target[0] is not None else target[1],
        effective_mpp=(
            ((each[0] or 0) * size_level0 / size, (each[1] or 0) * size_level0 / size)
            if known
            else None
        ),
        edge="unknown",
        resample="unknown",
    )


def make_coords(points: NDArray[Any], geometry: TileGeometry) -> NDArray[np.int32]:
    """Make coordinates of level-0 points.

    Args:
        points: (n, 2) ``x, y`` in level-0 pixels.
        geometry: Of the tiles.

    Returns:
        (n, 5) int32 ``x, y, read_w, read_h, level``.

    Raises:
        LayoutError: If they are no such points.
    """
    found = np.asarray(points)
    if found.size == 0:
        return np.empty((0, 5), np.int32)
    if found.ndim != 2 or found.shape[1] < 2:
        raise LayoutError(
            f"coords are {found.dtype} of shape {found.shape}, not (n, 2) points in pixels."
        )
    whole = np.rint(found[:, :2].astype(np.float64))
    beyond = ~(np.abs(whole) <= np.iinfo(np.int32).max).all(axis=1)
    if beyond.any():
        x, y = whole[beyond][0].tolist()
        raise LayoutError(
            f"the point ({x:.0f}, {y:.0f}) lies farther out than a slide reaches, 2^31 pixels of "
            "level 0, or is none."
        )
    coords = np.empty((len(found), 5), np.int32)
    coords[:, :2] = whole
    coords[:, 2:4], coords[:, 4] = geometry.read_size, geometry.level
    return coords


def _pair(value: Any) -> tuple[float, float]:
    x, y = value
    return float(x), float(y)


def _number(attributes: Mapping[str, Any], name: str) -> float | None:
    value = attributes.get(name)
    if value is None or isinstance(value, str):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def _text(attributes: Mapping[str, Any], name: str) -> str:
    value = attributes.get(name)
    return "" if value is None or value == _NONE else str(value)
