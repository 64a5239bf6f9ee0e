"""Models without slides: what a run with them is held against."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from bench.encoders import TILE
from bench.timing import best
from microtome.run.planning.budget import cpu_budget, hold_heap


def resnet50(batch: int, size: int, batches: int, repeats: int, *, held: bool) -> dict[str, Any]:
    """Run ResNet-50 on random tensors that are there already: fp32, CPU, channels_last.

    With all of the run's CPUs. Not timed: making the model and the tensor.

    Args:
        batch: Images at once.
        size: Side of an image in pixels.
        batches: In a row.
        repeats: Times; the shortest counts.
        held: Whether freed memory is kept, as a run keeps it.

    Returns:
        ``tiles`` and ``seconds``.
    """
    import torch
    import torchvision

    torch.set_num_threads(cpu_budget())
    model = torchvision.models.resnet50(weights=None).eval()
    model.fc = torch.nn.Identity()
    layout = torch.channels_last
    model = model.to(memory_format=layout)
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=layout)

    def several() -> None:
        for _ in range(batches):
            model(images)

    with torch.inference_mode(), hold_heap() if held else nullcontext():
        seconds = best(several, repeats)
    return {"tiles": batch * batches, "seconds": seconds}


def baseline() -> dict[str, Any]:
    """Load torch and push one tile through the near-free model: the memory that is torch's own.

    Nothing of microtome is in it but what this package imports to say so.
    """
    import torch

    images = torch.zeros(1, 3, TILE, TILE)
    with torch.inference_mode():
        torch.nn.functional.adaptive_avg_pool2d(images[:, :, ::16, ::16], 4)
    return {}
