"""Specs of the stages that read, tile and write slides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from microtome.plugin.specs.base import PluginSpec


@dataclass(frozen=True, kw_only=True)
class ReaderSpec(PluginSpec):
    """A slide reader. Its target is called as ``target(path, config)`` and gives a `Reader`.

    Attributes:
        extensions: Lower-case suffixes with the dot (``".svs"``) that the reader may open.
        priority: Order in which ``reader=auto`` tries readers for one extension, highest first.
        vouches: Whether the reader has ``vouch(path)``, which ``reader=auto`` then asks first.
    """

    kind: ClassVar[str] = "reader"

    extensions: tuple[str, ...]
    priority: int = 0
    vouches: bool = False


@dataclass(frozen=True, kw_only=True)
class SegmenterSpec(PluginSpec):
    """A tissue segmenter. Its target is called as ``target(config)`` and gives a `Segmenter`.

    Attributes:
        input_mpp: The resolution of the image it wants, in µm per pixel.
        max_px: The longest side of that image in pixels; the image is coarser than
            ``input_mpp`` when the slide is larger. 0 for a segmenter that looks at no image.
        min_px: The image is finer than ``input_mpp`` when its longest side would be shorter than
            this: a region cut out of a slide has few pixels at a slide's resolution.
        batch: How many slides are segmented in one call, as far as a run has so many that lack
            a mask.
    """

    kind: ClassVar[str] = "segmenter"

    input_mpp: float = 8.0
    max_px: int = 4096
    min_px: int = 0
    batch: int = 1


@dataclass(frozen=True, kw_only=True)
class TilerSpec(PluginSpec):
    """A tiler. Its target is called as ``target(config)`` and gives a `Tiler`.

    A tiler that follows the run's target resolution has the fields ``size``, ``magnification``
    and ``mpp`` in its configuration, as the built-in grid has: the run fills them from the
    encoders' cards when the user gives none. A field ``level``, if there is one, is a third
    target, which no card fills.

    Attributes:
        labels: Whether its grids may bring labels: the column ``label`` and the attribute
            ``classes``. A run that stores images with labels is refused early without.
    """

    kind: ClassVar[str] = "tiler"

    labels: bool = False


@dataclass(frozen=True, kw_only=True)
class InspectorSpec(PluginSpec):
    """An inspector of tiles. Its target is called as ``target(config)`` and gives an `Inspector`.

    A threshold on a column is an option of type ``float | None`` named ``<column>_above`` or
    ``<column>_below``, declared with `runtime`: it changes no score. A tile whose score lies beyond
    it has that reason; None sets no threshold.

    Attributes:
        columns: What it gives of every tile: a sentence by name. A column is stored as
            ``<inspector>_<column>``.
    """

    kind: ClassVar[str] = "inspector"

    columns: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class AnnotationSpec(PluginSpec):
    """Files of drawn annotations. Its target is called as ``target()``: an `AnnotationReader`.

    No part of a composition: the files say themselves whose they are.

    Attributes:
        extensions: Of its files, lower case with the dot: ``(".xml",)``.
        tool: What writes them, as it writes itself.
    """

    kind: ClassVar[str] = "annotation"
    in_runs: ClassVar[bool] = False

    extensions: tuple[str, ...]
    tool: str


@dataclass(frozen=True, kw_only=True)
class WriterSpec(PluginSpec):
    """A writer. Its target is called as ``target(config)``.

    Attributes:
        consumes: ``"features"`` for a store of coordinates and features (`StoreWriter`),
            ``"pixels"`` for tile images (`TileWriter`), ``"labelled pixels"`` for a patch store,
            images of the tiles that have a label (`PatchWriter`).
        suffix: Of the final name, with the dot; empty for a plain folder.
        layout: ``"file"`` or ``"directory"``: decides how the store publishes it. Of a patch store
            also ``"classes"``, folders by class that all slides share: see ``folder``.
        folder: The folder under the tiling's root that holds its outputs, one a slide. With
            ``layout="classes"`` it holds a record a slide, and the images lie beside it:
            ``folder="tiles/slides"`` has them in ``tiles/images/<class>/<slide>``.
        concurrent: Whether its sink takes tiles from several threads at once.
    """

    kind: ClassVar[str] = "writer"

    consumes: str
    suffix: str
    layout: str
    folder: str = "patches"
    concurrent: bool = False
