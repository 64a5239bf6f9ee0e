"""slide2vec: tiling by hs2p, then features from those coordinates.

Own options: ``backend`` (default ``auto``), ``workers`` of the data loader (default: its own
choice), ``cucim_workers`` (default 4).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hs2p import PreviewConfig, TilingConfig
from networks import BATCH, COLUMNS, MEAN, MPP, STD, TILE, answer, asked, near_free
from slide2vec import ExecutionOptions, Model, Pipeline, PreprocessingConfig
from slide2vec.encoders.base import TileEncoder
from slide2vec.encoders.registry import register_encoder
from torch import Tensor
from torchvision.transforms import v2


@register_encoder(
    "near-free",
    output_variants={"default": {"encode_dim": COLUMNS}},
    default_output_variant="default",
    input_size=TILE,
    supports_variable_input_size=True,
    supported_spacing_um=MPP,
    precision="fp32",
    source="local",
)
class NearFreeEncoder(TileEncoder):
    """The near-free network as slide2vec wants it."""

    def __init__(self, *, output_variant: str | None = None) -> None:
        self._network = near_free()
        self._device = torch.device("cpu")

    @property
    def encode_dim(self) -> int:
        """Columns."""
        return COLUMNS

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self._device

    def to(self, device: Any) -> NearFreeEncoder:
        """Move it."""
        self._device = torch.device(device)
        self._network = self._network.to(device)
        return self

    def get_transform(self) -> Callable[..., Any]:
        """Give what makes a tile its input."""
        scaled = v2.ToDtype(torch.float32, scale=True)
        return v2.Compose([v2.ToImage(), scaled, v2.Normalize(MEAN, STD)])

    def get_normalization_transform(self) -> Callable[..., Any]:
        """Give the same: nothing is resized."""
        return self.get_transform()

    def encode_tiles(self, batch: Tensor) -> Tensor:
        """Embed a batch."""
        embedding: Tensor = self._network(batch)
        return embedding


# What is abstract beyond these has to do with other levels than tiles.
NearFreeEncoder.__abstractmethods__ = frozenset()


def main() -> None:
    """Do what is asked."""
    options = asked()
    output = Path(options["output"])
    manifest = output / "slides.csv"
    manifest.write_text(f"sample_id,image_path\nslide,{options['slide']}\n", "utf-8")
    model = Model.from_preset("near-free", device="cpu", allow_non_recommended_settings=True)
    pipeline = Pipeline(
        model=model, preprocessing=_preprocessing(options), execution=_execution(output, options)
    )
    pipeline.run(manifest_path=manifest, tiling_only=True)
    (coordinates,) = output.rglob("*.coordinates.npz")
    seconds = None
    if options["features"]:
        began = time.perf_counter()
        result = pipeline.run_with_coordinates(output)
        seconds = time.perf_counter() - began
        if not result.tile_artifacts:
            raise RuntimeError("slide2vec gave no features")
    with np.load(coordinates) as stored:
        answer(len(stored["x"]), seconds)


def _preprocessing(options: dict[str, Any]) -> PreprocessingConfig:
    return PreprocessingConfig(
        tiling=TilingConfig(
            backend=options.get("backend", "auto"),
            requested_spacing_um=MPP,
            requested_tile_size_px=TILE,
            tolerance=0.05,
            overlap=0.0,
        ),
        num_cucim_workers=options.get("cucim_workers", 4),
        preview=PreviewConfig(save_mask_preview=False, save_tiling_preview=False),
    )


def _execution(output: Path, options: dict[str, Any]) -> ExecutionOptions:
    return ExecutionOptions(
        output_dir=output,
        batch_size=BATCH,
        num_gpus=1,
        precision="fp32",
        num_workers_per_gpu=options.get("workers"),
    )


if __name__ == "__main__":
    main()
