"""What readers, segmenters, tilers and inspectors must be able to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from microtome.slide.annotations import Annotation
    from microtome.slide.types import SlideInfo, SlideRef, SlideView, TileGrid, TissueMask


class Reader(Protocol):
    """One open slide. Safe to read from several threads at once; picklable by its path.

    ``__init__(path, config)`` raises `SlideOpenError` for a file it cannot open. Two static methods
    are optional: ``probe(path) -> bool`` tells from the first bytes whether the reader knows a file
    of any name; ``vouch(path) -> str`` says why it gives, at every whole pixel, exactly what the
    other readers give of this very file, only faster, or nothing where that is not certain:
    ``reader=auto`` prefers a reader that does. Between pixels ``info.exact`` speaks.

    A reader of files that hold tiles and no whole slide gives them as ``tiles() -> TileGrid``, at a
    level on which they are read as they are stored, and has a ``digest`` of all that it holds.
    """

    @property
    def info(self) -> SlideInfo:
        """What the file says of itself; ``info.properties`` holds its raw metadata."""

    def read_tiles(
        self,
        level: int,
        boxes: NDArray[np.int64],
        out: NDArray[np.uint8],
        rows: NDArray[np.int64],
    ) -> None:
        """Fill some rows of a buffer with regions of one level.

        Args:
            level: Index into ``info.levels``.
            boxes: (n, 4) ``x, y, width, height``: x and y at level 0, sizes at ``level``. All
                have the size of one row of ``out``. With ``level_x = round(x / downsample)``,
                every box lies inside its level: the core never asks for more.
            out: (m, height, width, info.channels) uint8, filled in place.
            rows: (n,) which row of ``out`` each box goes to.

        Raises:
            SlideReadError: If any of the data cannot be decoded. Nothing is ever made up.
        """

    def close(self) -> None:
        """Release the file. Reading afterwards is an error."""


class Segmenter(Protocol):
    """Finds tissue. One object serves a whole run. Making one must not load weights.

    A segmenter whose user chooses how many slides are segmented in one call has an attribute
    ``batch_size``, which wins over its spec's ``batch``. One that runs otherwise than it was asked
    to, as with fewer slides at once where memory is short, says so in an attribute ``notes``, a
    sequence of sentences, which come to be warnings of the slides.
    """

    def segment(self, views: Sequence[SlideView]) -> list[TissueMask]:
        """Tell tissue from glass, one mask for each view, in order.

        Raises:
            TissueError: If nothing honest can be said of a slide.
            SegmenterError: If its weights do not fit.
        """

    def sources(self, slide: SlideRef) -> tuple[Path, ...]:
        """Name the files beside the slide that decide the mask, for its identity.

        Optional: a segmenter without it depends on the slide and its configuration alone.
        """

    def weights(self) -> Mapping[str, str]:
        """Say which weights these are, for the identity: a seed, a file's hash.

        Optional, and asked before any slide is opened: what is not on this machine yet is
        downloaded here.

        Raises:
            SegmenterError: If they cannot be had.
        """

    def release(self) -> None:
        """Give back the memory of the device, which the encoders want next.

        Optional. `segment` may be called again afterwards.
        """


class Tiler(Protocol):
    """Places tiles: pure geometry, no pixel."""

    def plan(self, info: SlideInfo, mask: TissueMask) -> TileGrid:
        """Place tiles on a slide's tissue.

        Raises:
            GeometryError: If the slide cannot give such tiles.
        """

    def for_slide(self, slide: SlideRef) -> Tiler:
        """Give the tiler of this very slide.

        Optional: a tiler without it places tiles whatever the slide is called. One with it is
        asked for every slide; threads ask at once, so it changes nothing of itself.
        """

    def upstream(self, slide: SlideRef) -> Mapping[str, str]:
        """Say by name what else decides a slide's tiles, as digests, for the identity.

        Optional: a tiler without it depends on the slide, its tissue and its configuration alone.
        A slide that is elsewhere need not have been fetched yet.
        """


class Inspector(Protocol):
    """Looks at tiles and gives numbers. One object serves a whole run.

    Several threads call it at once, and a tile's numbers depend on that tile alone. It may have
    ``notes``, as a `Segmenter` may.
    """

    def inspect(
        self, tiles: NDArray[np.uint8], mpp: float | None
    ) -> Mapping[str, NDArray[np.floating[Any]]]:
        """Give the columns of the spec.

        Args:
            tiles: (n, size, size, 3) uint8 RGB, one at least, lent for the call and not to be
                written to.
            mpp: µm per pixel of the tiles, or None where it is not known.

        Returns:
            By column, (n,) finite floating point.

        Raises:
            InspectorError: If nothing honest can be said of such tiles.
        """

    def weights(self) -> Mapping[str, str]:
        """Say which weights these are, for the identity.

        Optional: an inspector without it is what its name, version and configuration say.
        """


class AnnotationReader(Protocol):
    """Reads files of drawn annotations. It opens no slide."""

    def recognises(self, head: bytes) -> bool:
        """Tell by its first 64 KiB whether a file is of this format."""

    def read(self, path: Path, slide: SlideInfo | None = None) -> Sequence[Annotation]:
        """Read a file whole, in its own order.

        Args:
            path: The file.
            slide: The slide that it is of, for formats that do not count level-0 pixels from
                the top left corner: NDP.view's, in nm from the centre.

        Raises:
            AnnotationError: If it is malformed, naming the file and the place in it, or needs the
                slide and none is given.
        """
