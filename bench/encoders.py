"""Encoders that cost next to nothing, as a plugin: what a run takes beside them is the pixel path.

They do what a network's encoder does, preprocessing included: they ask for the batch as normalised
float32 tensor and give one row a tile. Registered in the process that measures, as any plugin is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from microtome.plugin import EncoderCard, EncoderSpec, NoConfig, Transform, hookimpl
from microtome.plugin.protocols import EncoderOutput
from microtome.plugin.registry import get_registry

if TYPE_CHECKING:
    from microtome.slide.batch import TileBatch

TILE = 256
TINY = "bench_tiny"
WIDE = "bench_wide"
AS_IS = Transform(resize=None, crop=None)
"""Normalised, not resized."""

COLUMNS = {TINY: 48, WIDE: 1024}


class NearFree:
    """Looks at every 16th pixel, or every 8th: ``columns`` values of the normalised tile.

    Args:
        config: Nothing.
        columns: 48 for a 4 x 4 grid of mean colours, 1,024 for 32 x 32 values of one channel.
    """

    def __init__(self, config: NoConfig, *, columns: int) -> None:
        self.card = card(columns)
        self._columns = columns
        self._device = "cpu"

    def load(self, device: str, precision: str) -> None:
        """Remember the device; there are no weights."""
        self._device = device

    def encode(self, batch: TileBatch) -> EncoderOutput:
        """Take a few values of every tile."""
        import torch

        images = batch.tensor(AS_IS, self._device, torch.float32)
        with torch.inference_mode():
            if self._columns == COLUMNS[WIDE]:
                embedding = images[:, 0, ::8, ::8].flatten(1)
            else:
                few = images[:, :, ::16, ::16]
                embedding = torch.nn.functional.adaptive_avg_pool2d(few, 4).flatten(1)
        return EncoderOutput(embedding=embedding.cpu().numpy())


def card(columns: int) -> EncoderCard:
    """Say of a near-free encoder what a run wants to know."""
    return EncoderCard(
        dim=columns,
        input_size=TILE,
        transform=AS_IS,
        pooling="every few pixels",
        patch_size=TILE,
        magnification=20,
        params=1,
    )


class Plugins:
    """The near-free encoders as a plugin."""

    @staticmethod
    @hookimpl
    def microtome_encoders() -> Iterator[EncoderSpec]:
        """Register the near-free encoders."""
        for name, columns in COLUMNS.items():
            yield EncoderSpec(
                name=name,
                target="bench.encoders:NearFree",
                summary="Costs next to nothing",
                requires=("torch",),
                card=card(columns),
                fixed={"columns": columns},
            )


def register() -> None:
    """Make the near-free encoders known to this process, once."""
    registry = get_registry()
    if TINY not in registry.names("encoder"):
        registry.add(Plugins, "encoders", "bench")
