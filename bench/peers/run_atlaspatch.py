"""AtlasPatch: SAM2 tissue, coordinates, features.

No weights are downloaded: SAM2 has random ones and runs in full, which takes the time that it
takes. Its mask then means nothing, so the saturated pixels of the thumbnail take its place, and
the number of tiles is a real one.

Own options: ``workers`` of the data loader (default 4).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import torch
from atlas_patch import cli
from atlas_patch.core.config import FeatureExtractionConfig, default_sam2_config_path
from atlas_patch.models.patch import build_default_registry
from atlas_patch.models.patch.custom import CustomEncoderComponents, register_custom_encoder
from atlas_patch.services import segmentation
from atlas_patch.services.feature_embedding import PatchFeatureEmbeddingService
from hydra.utils import instantiate
from networks import BATCH, COLUMNS, MAGNIFICATION, TILE, answer, asked, near_free, preprocessing
from omegaconf import OmegaConf

NAME = "near_free"
CPU = torch.device("cpu")
SATURATED = 20


def main() -> None:
    """Do what is asked."""
    options = asked()
    output = Path(options["output"])
    _use_random_sam2(output / "sam2.pth")
    took: list[float] = []
    _time(PatchFeatureEmbeddingService, "embed_all", took)
    _, failures = cli._run_pipeline(
        input_path=options["slide"],
        output=str(output / "out"),
        **_features(options.get("workers", 4)) if options["features"] else {},
        **_defaults(),
    )
    if failures:
        raise RuntimeError(failures)
    (stored,) = (output / "out").rglob("*.h5")
    with h5py.File(stored) as file:
        answer(len(file["coords"]), sum(took) if options["features"] else None)


def _use_random_sam2(checkpoint: Path) -> None:
    config = OmegaConf.load(str(default_sam2_config_path()))
    network = instantiate(config.get("model", config))
    torch.save({"model": network.state_dict()}, checkpoint)
    predictor = segmentation._SAM2Predictor
    predict = predictor.predict_image

    def predict_then_threshold(self: Any, image: Any, **options: Any) -> Any:
        predict(self, image, **options)
        saturation = cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2HSV)[..., 1]
        mask = (saturation > SATURATED).astype(np.uint8)
        return cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8)).astype("float32")

    predictor._resolve_checkpoint_path = lambda self: checkpoint
    predictor.predict_image = predict_then_threshold


def _time(owner: type, name: str, took: list[float]) -> None:
    """Let a method note how long it took."""
    method = getattr(owner, name)

    def timed(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return method(*arguments, **options)
        finally:
            took.append(time.perf_counter() - began)

    setattr(owner, name, timed)


def _features(workers: int) -> dict[str, Any]:
    """Give the arguments of a run that takes features with the near-free network."""
    registry = build_default_registry(device=CPU, num_workers=workers, dtype=torch.float32)
    register_custom_encoder(
        registry=registry,
        name=NAME,
        embedding_dim=COLUMNS,
        loader=lambda device, dtype: CustomEncoderComponents(near_free(), preprocessing()),
        device=CPU,
        dtype=torch.float32,
        num_workers=workers,
    )
    config = FeatureExtractionConfig(
        extractors=[NAME],
        batch_size=BATCH,
        device="cpu",
        num_workers=workers,
        precision="float32",
    )
    return {"feature_cfg": config, "registry": registry}


def _defaults() -> dict[str, Any]:
    """Give the arguments that the command line would fill in."""
    flags = ("save_images", "visualize_grids", "visualize_mask", "visualize_contours")
    return dict.fromkeys((*flags, "recursive", "skip_existing", "verbose"), False) | {
        "patch_size": TILE,
        "step_size": None,
        "target_mag": MAGNIFICATION,
        "device": "cpu",
        "tissue_thresh": 0.0,
        "white_thresh": 15,
        "black_thresh": 50,
        "seg_batch_size": 1,
        "write_batch": 8192,
        "patch_workers": None,
        "max_open_slides": 200,
        "fast_mode": True,
        "mpp_csv": None,
    }


if __name__ == "__main__":
    main()
