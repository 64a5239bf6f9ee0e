"""What the code behind a spec must be able to do: duck-typed, no base class to inherit.

Pixels are uint8 RGB in NHWC order. Points are ``(x, y)`` at level 0, the top left corner;
sizes are ``(width, height)`` at the level they are read from.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from microtome.plugin.specs import EncoderCard
    from microtome.run.job import Job
    from microtome.slide.bags import PatientBag, TileBag
    from microtome.slide.batch import TileBatch
    from microtome.slide.types import SlideInfo, SlideRef, SlideView, TileGrid, TissueMask
    from microtome.store.exchange import FoundSlide, LayoutFile, SlideFacts, TiledSlide
    from microtome.store.status import SlideStatus


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


@dataclass(frozen=True, eq=False)
class EncoderOutput:
    """What an encoder makes of a batch.

    Attributes:
        embedding: (n, dim) floating point, one row a tile.
        tokens: (n, height, width, dim) of a token grid, where it was asked for: one vector for each
            cell of the model's input, normed as the model norms its tokens, row by row from the
            top left, without class and register tokens. The cells cover the input evenly.
        attention: (n, heads, height, width), where it was asked for: how much the class token
            attends to each of these cells in the last block. With what it attends to itself and to
            registers, which is left out, a head's weights sum to 1.
    """

    embedding: NDArray[np.floating[Any]]
    tokens: NDArray[np.floating[Any]] | None = None
    attention: NDArray[np.floating[Any]] | None = None


class Encoder(Protocol):
    """Turns tiles into vectors. Need not be torch. Making one must not load weights.

    An encoder whose columns have names may have an attribute ``columns``: a sequence of
    dataclasses, one a column, which are written beside the features.

    An encoder on a device of its own may also have ``begin(batch)``, which starts the work and
    gives a function that waits for its `EncoderOutput`: the run then prepares the next batch
    meanwhile. The batch's pixels stay as they are until that function was called. Where several
    devices share a slide's tiles, each has an object of its own: a thread of the device begins with
    its batches, one after the other, and the run's own waits for their outputs. Further it may have
    ``largest_batch() -> int``, how many tiles there is memory for once it is loaded, and
    ``notes``, sentences that the user should read in a slide's record.

    An encoder whose spec, or whose attribute ``gives``, names ``"tokens"`` or ``"attention"`` has a
    method ``ask(*names)``, which comes before `load`: from then on every output has what is named,
    and the same embedding. What nobody asks for it had better leave out.

    An encoder with weights to download may have ``download(told=None) -> Sequence[Path]``, which
    brings all that `load` needs onto this machine and gives the files, calling ``told(file, bytes,
    of_bytes or None)`` meanwhile; without a network it finds them there or raises `EncoderError`.
    """

    @property
    def card(self) -> EncoderCard:
        """What is known of the model; complete before `load`."""

    def load(self, device: str, precision: str) -> None:
        """Load the weights.

        Args:
            device: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``: resolved, never ``"auto"``.
            precision: ``"fp32"``, ``"fp16"`` or ``"bf16"``: resolved, never ``"auto"``.

        Raises:
            EncoderError: If the weights cannot be had or do not fit.
        """

    def encode(self, batch: TileBatch) -> EncoderOutput:
        """Encode a batch: ``batch.pixels``, or ``batch.tensor(transform, …)`` to share work."""

    def weights(self) -> Mapping[str, str]:
        """Say which weights these are, for the identity: a seed, a revision, a file's hash.

        Optional: an encoder without it is what its name, version and configuration say. After
        `load` an encoder may also have ``loaded_weights``, a mapping of text that says exactly
        what was loaded (file, commit, hash); it is written beside the features.
        """


@dataclass(frozen=True, eq=False)
class SlideOutput:
    """What a slide encoder makes of a slide.

    Attributes:
        embedding: (dim,) floating point.
        latents: (count, dim) floating point, where the model has them.
        attention: (n,) floating point, the weight of each tile, where the model has it.
    """

    embedding: NDArray[np.floating[Any]]
    latents: NDArray[np.floating[Any]] | None = None
    attention: NDArray[np.floating[Any]] | None = None


class SlideEncoder(Protocol):
    """Turns all tiles of a slide into one vector. Making one must not load weights.

    One whose options decide what it takes has an attribute ``needs``, a tuple of `TileNeed`, which
    wins over its spec's; likewise ``card``. It may have ``notes`` and ``download``, as an `Encoder`
    may, and after `load` ``loaded_weights``. One that on a GPU works in main memory first has
    ``host_memory(tiles, extent)``, which estimates that as `memory` does what is on its device.
    """

    def load(self, device: str, precision: str) -> None:
        """Load the weights; as of an `Encoder`.

        Raises:
            EncoderError: If the weights cannot be had or do not fit.
        """

    def encode(self, bag: TileBag) -> SlideOutput:
        """Encode a slide with one tile at least.

        Raises:
            EncoderError: If the model cannot take such a slide.
        """

    def memory(self, tiles: int, extent: tuple[int, int]) -> int:
        """Estimate the bytes that `encode` takes on its device, weights and bag left out.

        The bag's features are in main memory, and counted by the run.

        Optional: one without it is taken to need what its input takes, a few times over.

        Args:
            tiles: Of the slide.
            extent: (columns, rows) of tiles that their bounding box is wide and high.
        """

    def weights(self) -> Mapping[str, str]:
        """Say which weights these are, for the identity; optional, as of an `Encoder`."""


class PatientEncoder(Protocol):
    """Turns all slides of a patient into one vector. Making one must not load weights.

    It may have ``needs``, ``card``, ``notes``, ``download``, ``loaded_weights`` and ``weights`` as
    a `SlideEncoder` may, and an attribute ``slide_encoder``, which wins over its spec's.
    """

    def load(self, device: str, precision: str) -> None:
        """Load the weights; as of an `Encoder`.

        Raises:
            EncoderError: If the weights cannot be had or do not fit.
        """

    def encode(self, patient: PatientBag) -> NDArray[np.floating[Any]]:
        """Encode a patient with one slide at least.

        Returns:
            (dim,) floating point.

        Raises:
            EncoderError: If the model cannot take such a patient.
        """

    def memory(self, slides: Sequence[tuple[int, tuple[int, int]]]) -> int:
        """Estimate the bytes that `encode` takes on its device at once, the weights left out.

        Optional, and asked of one that takes tiles: one without it is taken to need what all slides
        take, a few times over. What ``patient.embed`` takes is no part of it: the slide encoder is
        asked for each bag that it is given.

        Args:
            slides: Of each the number of tiles, and (columns, rows) of tiles that their bounding
                box is wide and high.
        """


class FeatureSource(Protocol):
    """A matrix of features, or an array of more axes, that need not be in memory: (rows, …)."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def chunks(self, rows: int) -> Iterable[NDArray[Any]]:
        """Give the array from the top, at most ``rows`` rows at a time."""


class StoredSlide(Protocol):
    """A finished slide, open for reading. A context manager."""

    coords: NDArray[np.int32]
    """(n, 5) ``x, y, read_w, read_h, level``."""

    attributes: Mapping[str, Any]
    columns: Mapping[str, NDArray[Any]]
    """Per-tile columns beside the coordinates, ``tissue_fraction`` for one: (n,) each."""

    def feature_names(self) -> list[str]:
        """List the feature sets."""

    def feature_shape(self, name: str) -> tuple[int, int]:
        """Give a feature set's ``(n, dim)`` without reading it."""

    def features(self, name: str, rows: slice = ...) -> NDArray[np.floating[Any]]:
        """Read a feature set, or some of its rows."""

    def feature_attributes(self, name: str) -> Mapping[str, Any]:
        """Read a feature set's attributes: its encoder's card, identity and provenance."""

    def array_names(self, group: str = "") -> list[str]:
        """List the arrays beside the features, as ``group/name``; those of one group if given.

        Optional, with the three below: a store without them holds no such arrays.
        """

    def array_shape(self, key: str) -> tuple[int, ...]:
        """Give the shape of the array ``group/name`` without reading it."""

    def array(self, key: str, rows: slice = ...) -> NDArray[Any]:
        """Read the array ``group/name``, or some of its rows."""

    def array_attributes(self, key: str) -> Mapping[str, Any]:
        """Read the attributes of the array ``group/name``."""

    def close(self) -> None:
        """Release the file."""

    def __enter__(self) -> StoredSlide:
        """Enter a ``with`` block."""

    def __exit__(self, *exc: object) -> None:
        """Close on leaving a ``with`` block."""


class StoreWriter(Protocol):
    """Writes coordinates and features. Never learns the final name, so it need not be atomic.

    A writer of ``layout="directory"`` keeps every feature set in ``<path>/features/<name>``,
    whole and by itself: the store publishes a later one by renaming that folder in.
    """

    def create(
        self,
        path: Path,
        coords: NDArray[np.int32],
        columns: Mapping[str, NDArray[Any]],
        attributes: Mapping[str, Any],
    ) -> None:
        """Write a new slide without features at a path that does not exist yet."""

    def add_features(
        self, path: Path, name: str, source: FeatureSource, attributes: Mapping[str, Any]
    ) -> None:
        """Add a feature set to a slide that this writer created."""

    def add_array(
        self, path: Path, key: str, source: FeatureSource, attributes: Mapping[str, Any]
    ) -> None:
        """Add an array of any shape under ``group/name`` to a slide that this writer created.

        ``slide_features/titan`` is one, ``tokens/uni_v1`` another: what is no row-aligned matrix.
        Optional: a run that has such an array to keep refuses a writer without it. A writer of
        ``layout="directory"`` keeps each in ``<path>/<group>/<name>``, as it keeps feature sets;
        what else lies in ``<path>/<group>`` says what the group is, and comes with its first array.

        Raises:
            StoreError: If the group is ``coords``, ``columns``, ``features`` or ``passports``.
        """

    def open_stored(self, path: Path) -> StoredSlide:
        """Open a finished slide.

        Raises:
            StoreError: If it is not a slide of this store.
        """


class TileSink(Protocol):
    """Takes the tiles of one slide."""

    def write(self, coords: NDArray[np.int32], pixels: NDArray[np.uint8]) -> None:
        """Write tiles: coords (n, 5), pixels (n, h, w, 3), in no order and lent for the call.

        Called from one thread, which is not the one that opened it, or from several at once where
        the spec says ``concurrent``.
        """

    def record(self, attributes: Mapping[str, Any]) -> None:
        """Take, before `close`, what the store writes into a folder of images as its record.

        Of ``layout="file"`` alone. ``attributes["coords"]`` are the (n, 5) tiles that are kept, a
        list of rows; of others that came nothing stays.
        """

    def close(self) -> None:
        """Finish. Everything is on disk afterwards; the store then publishes the path."""


class TileWriter(Protocol):
    """Writes tile images into a folder, or a file, a slide. Never learns the final name.

    The store adds the slide's attributes to a folder, so that the next run knows it again. A writer
    of ``layout="file"`` keeps them itself: it has the methods but the first, too.
    """

    def open(self, path: Path, slide_id: str, attributes: Mapping[str, Any]) -> TileSink:
        """Begin one slide at a path that does not exist yet."""

    def read_record(self, path: Path) -> Mapping[str, Any]:
        """Give what `TileSink.record` was given, as a store gives attributes back.

        Raises:
            StoreError: If it is no such file, or is damaged.
        """

    def damage(self, path: Path, *, deep: bool) -> Iterable[str]:
        """Say what is wrong with the images of a file, half a sentence each.

        Args:
            path: The file.
            deep: Whether every image is read.

        Raises:
            StoreError: As `read_record` does.
        """


class Engine(Protocol):
    """What starts the workers of a run: in this process, in others, on other machines.

    Correctness is not its business: `SlideQueue` claims slides and the store publishes whole
    files, so any number of workers may go through one and the same list.
    """

    def run(self, job: Job) -> Generator[SlideStatus]:
        """Work through a job's slides and give each slide's status as it ends.

        Closing the iterator, or an exception raised in the driver, ends the workers; what they
        were working on is dropped and taken up by the next run.

        Args:
            job: The run's plan, its slides and who is told.

        Yields:
            One status a slide, in any order.

        Raises:
            MicrotomeError: If no worker can start.
        """


class Layout(Protocol):
    """Another tool's files of a slide, written and read.

    It opens no slide and publishes nothing: the core gives it whole slides, and writes and
    publishes the files that it names.
    """

    def files(self, slide: TiledSlide) -> Iterable[LayoutFile]:
        """Name a slide's files and what writes them, in the order to publish: a sidecar last.

        Raises:
            LayoutError: If the layout cannot hold such a slide.
        """

    def find(self, folder: Path) -> Mapping[str, FoundSlide]:
        """Find the slides that a folder holds in this layout, by id, without reading them.

        Raises:
            LayoutError: If it cannot be said which slides these are.
        """

    def read(self, found: FoundSlide, facts: SlideFacts) -> TiledSlide:
        """Read a slide that `find` found, its tiles in any order.

        Args:
            found: The slide.
            facts: What is known of it besides its files.

        Raises:
            LayoutError: If a file is not of this layout, or lacks what nobody told either.
        """

    def recognises(self, folder: Path) -> bool:
        """Tell by a few files whether a folder is of this layout, and of no other.

        Optional: ``tiler=stored`` without ``tiler.layout`` asks those that have it. A layout whose
        files name no level has an attribute ``any_level``, True.
        """
