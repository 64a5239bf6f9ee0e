"""What encoders of tiles, slides and patients must be able to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from microtome.plugin.specs import EncoderCard
    from microtome.slide.bags import PatientBag, TileBag
    from microtome.slide.batch import TileBatch


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
