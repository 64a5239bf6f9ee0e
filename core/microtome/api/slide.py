"""One slide in a notebook: open it, look at it, tile it, encode it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from microtome.plugin.options import configure
from microtome.plugin.protocols import EncoderOutput
from microtome.plugin.registry import get_registry
from microtome.plugin.specs import EncoderSpec, SegmenterSpec
from microtome.run.planning.budget import cpu_budget
from microtome.run.planning.encoders import PlannedEncoder, make_encoder
from microtome.run.planning.outputs import EMBEDDING
from microtome.run.settings import EncoderChoice, TissueSettings
from microtome.run.slides.pixels import Tiles, encode, iterate_tiles
from microtome.run.slides.tissue import find_tissue
from microtome.slide import opening
from microtome.slide.batch import TileBatch
from microtome.slide.imaging import render_view
from microtome.slide.types import Resolution, SlideInfo, SlideRef, TileGrid, TissueMask

if TYPE_CHECKING:
    from PIL.Image import Image

_RUN_OWNS = {"device", "precision", "batch_size"}
"""Options of `Slide.encode` that are no plugin's."""


def open_slide(
    path: str | Path, *, mpp: float | None = None, reader: str = "auto", **options: Any
) -> Slide:
    """Open a slide.

    Args:
        path: The file.
        mpp: Level-0 µm per pixel, which wins over the file.
        reader: A reader plugin's name, or ``"auto"``.
        **options: The reader's options.

    Raises:
        SlideOpenError: If it cannot be opened; says what each reader said.
        ResolutionError: If its mpp is implausible or contradictory.
    """
    path = Path(path)
    registry = get_registry()
    ref = SlideRef(path=path, slide_id=path.stem, mpp=mpp)
    config = (
        None if reader == "auto" else configure(registry.find("reader", reader).spec, **options)
    )
    return Slide(opening.open_slide(ref, reader=reader, config=config, registry=registry))


class Slide:
    """An open slide. A context manager.

    Attributes:
        info: What the file says of itself, resolution resolved.
        why: Which reader was chosen, and why.
    """

    def __init__(self, opened: opening.OpenedSlide) -> None:
        self._opened = opened
        self.info: SlideInfo = opened.info
        self.why: str = opened.why

    @property
    def resolution(self) -> Resolution:
        """The slide's mpp and magnification, and who said so."""
        return self.info.resolution

    def thumbnail(self, max_px: int = 1024) -> Image:
        """Draw the whole slide as a Pillow image of at most ``max_px`` on its longest side."""
        from PIL import Image

        opened = self._opened
        view = render_view(opened.ref, opened.reader, opened.info, mpp=None, max_px=max_px)
        return Image.fromarray(view.image)

    def tissue(self, segmenter: str = "classic", **options: Any) -> TissueMask:
        """Find the tissue.

        Args:
            segmenter: A segmenter plugin's name.
            **options: Its options.

        Raises:
            TissueError: If nothing honest can be said of the slide.
        """
        registry = get_registry()
        spec = registry.find("segmenter", segmenter).spec
        if not isinstance(spec, SegmenterSpec):
            raise TypeError(f"{segmenter!r} is no segmenter")
        plugin = registry.create("segmenter", segmenter, configure(spec, **options))
        return find_tissue(self._opened, plugin, spec, TissueSettings())

    def tiles(
        self, mask: TissueMask | None = None, *, tiler: str = "grid", **options: Any
    ) -> TileGrid:
        """Place tiles on the tissue.

        Args:
            mask: The tissue; found by the default segmenter if None.
            tiler: A tiler plugin's name.
            **options: Its options: ``size``, ``magnification``, ``mpp`` or ``level``, … for the
                grid.

        Raises:
            GeometryError: If the slide cannot give such tiles.
            ResolutionError: If its mpp or magnification is needed and unknown.
        """
        registry = get_registry()
        plugin = registry.create(
            "tiler", tiler, configure(registry.find("tiler", tiler).spec, **options)
        )
        return self._opened.place_tiles(plugin, self.tissue() if mask is None else mask)

    def iterate(self, grid: TileGrid, *, batch_size: int = 32) -> Iterator[Tiles]:
        """Read a grid's tiles batch by batch, in its order, a few batches ahead."""
        return iterate_tiles(self._opened.reader, grid, batch_size=batch_size, workers=cpu_budget())

    def read(self, grid: TileGrid, rows: int | Sequence[int]) -> NDArray[np.uint8]:
        """Read some tiles.

        Args:
            grid: The grid.
            rows: An index into it, or several.

        Returns:
            (size, size, 3) uint8 RGB for one index, (n, size, size, 3) for several.

        Raises:
            SlideReadError: If the data cannot be decoded.
        """
        chosen = np.atleast_1d(np.asarray(rows, dtype=np.int64))
        part = TileGrid(coords=grid.coords[chosen], geometry=grid.geometry)
        batches = [tiles.pixels for tiles in self.iterate(part)]
        pixels = np.concatenate(batches) if batches else _no_pixels(grid)
        first: NDArray[np.uint8] = pixels[0] if isinstance(rows, int | np.integer) else pixels
        return first

    def encode(
        self,
        grid: TileGrid,
        encoder: str = "handcrafted",
        *,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int = 32,
        **options: Any,
    ) -> NDArray[np.floating]:
        """Encode a grid's tiles.

        Args:
            grid: The grid.
            encoder: An encoder plugin's name.
            device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
            precision: ``"auto"``, ``"fp32"``, ``"fp16"``, ``"bf16"``.
            batch_size: Tiles at once.
            **options: The encoder's options.

        Returns:
            (len(grid), dim) floating point, row-aligned with the grid.

        Raises:
            EncoderError: If the encoder cannot be loaded or breaks its card.
        """
        run_owns = {"device": device, "precision": precision, "batch_size": batch_size}
        return self._encode(grid, _load(encoder, options, run_owns)).embedding

    def encode_dense(
        self,
        grid: TileGrid,
        encoder: str,
        *,
        tokens: bool = True,
        attention: bool = False,
        **options: Any,
    ) -> EncoderOutput:
        """Encode a grid's tiles to token grids and the class token's attention, too.

        All is in memory: 256 tokens of 1024 columns are 1 MiB a tile. A run with
        ``encoder.NAME.tokens=true`` stores them slide by slide in bounded memory.

        Args:
            grid: The grid.
            encoder: An encoder plugin's name.
            tokens: Whether to give token grids.
            attention: Whether to give attention.
            **options: As of `encode`.

        Returns:
            ``embedding`` as of `encode`, ``tokens`` (len(grid), height, width, dim) and
            ``attention`` (len(grid), heads, height, width), None where not asked for.

        Raises:
            ConfigError: If the encoder does not give that; names some that do.
            EncoderError: If the encoder cannot be loaded or breaks its card.
        """
        run_owns = {"tokens": tokens, "attention": attention}
        run_owns |= {k: options.pop(k) for k in _RUN_OWNS & options.keys()}
        return self._encode(grid, _load(encoder, options, run_owns))

    def _encode(self, grid: TileGrid, planned: PlannedEncoder) -> EncoderOutput:
        parts = [
            encode(planned, TileBatch(tiles.pixels, grid.coords[tiles.rows]))
            for tiles in self.iterate(grid, batch_size=planned.batch_size)
        ]
        rows: dict[str, tuple[int, ...]] = {EMBEDDING: (planned.card.dim,)}
        if planned.asked:
            rows |= planned.find_shapes(grid.geometry.size)
        whole = {
            name: np.concatenate([getattr(part, name) for part in parts])
            if parts
            else np.empty((0, *shape), np.float32)
            for name, shape in rows.items()
        }
        return EncoderOutput(**whole)

    def close(self) -> None:
        """Release the file."""
        self._opened.reader.close()

    def __enter__(self) -> Self:
        """Enter a ``with`` block."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close on leaving a ``with`` block."""
        self.close()

    def __repr__(self) -> str:
        """Name the file, its size and its resolution."""
        mpp = self.resolution.mpp
        size = f"{self.info.width}×{self.info.height}"
        return (
            f"Slide({self.info.path.name!r}, {size}, {mpp or 'unknown'} µm/px, {self.info.reader})"
        )


def _load(encoder: str, options: dict[str, Any], run_owns: dict[str, Any]) -> PlannedEncoder:
    """Make an encoder with options of its own and of the run, and load it."""
    registry = get_registry()
    spec = registry.find("encoder", encoder).spec
    if not isinstance(spec, EncoderSpec):
        raise TypeError(f"{encoder!r} is no encoder")
    choice = EncoderChoice(plugin=spec.name, config=configure(spec, **options), **run_owns)
    planned = make_encoder(choice, registry)
    planned.ensure_loaded()
    return planned


def _no_pixels(grid: TileGrid) -> NDArray[np.uint8]:
    size = grid.geometry.size
    return np.empty((0, size, size, 3), np.uint8)
