"""The near-free network that every tool is given, and how a runner is asked and answers.

Imported by name by the runners beside it, so it needs nothing but torch and torchvision.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import transforms

TILE = 256
MPP = 0.5
MAGNIFICATION = 20
BATCH = 32
COLUMNS = 48
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class NearFree(nn.Module):
    """Averages every 16th pixel over a 4 x 4 grid: 48 columns."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))  # tools ask a parameter for device and type

    def forward(self, images: Tensor) -> Tensor:
        """Embed (n, 3, h, w) images as (n, 48)."""
        few = images[:, :, ::16, ::16]
        return nn.functional.adaptive_avg_pool2d(few, 4).flatten(1) * self.scale


def near_free() -> nn.Module:
    """Make the network."""
    return NearFree().eval()


def preprocessing() -> Any:
    """Make what turns a tile into the network's input: no resizing, ImageNet's normalisation."""
    return transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])


def asked() -> dict[str, Any]:
    """Read what to do: ``slide``, ``output``, whether ``features`` are wanted, the tool's own."""
    options: dict[str, Any] = json.loads(sys.argv[1])
    return options


def answer(tiles: int, seconds: float | None) -> None:
    """Say how many tiles there are, and how long the feature stage took."""
    print("RESULT " + json.dumps({"tiles": tiles, "seconds": seconds}), flush=True)
