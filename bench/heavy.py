"""Heavy models of timm with random weights: alone, and fed by a run that times them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench.passes import run
from bench.timing import best
from microtome.plugin import EncoderSpec, hookimpl
from microtome.plugin.registry import get_registry
from microtome_encoders.options import ModelConfig
from microtome_encoders.patch.devices import PRECISIONS
from microtome_encoders.patch.timm import TimmEncoder

TIMED = "bench_timed"

_BATCHES = 8


class TimedEncoder(TimmEncoder):
    """The product's own encoder; notes when its model computes."""

    def forward(self, model: nn.Module, images: Tensor) -> Tensor:
        """Embed images, between two marks in the device's own order of work."""
        with _STOPWATCH.running(images.device):
            return super().forward(model, images)


class _Stopwatch:
    """Collects how long the device was busy with what is inside of its blocks."""

    def __init__(self) -> None:
        self._marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds: list[float] = []

    @contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        if device.type != "cuda":
            began = time.perf_counter()
            yield
            self._seconds.append(time.perf_counter() - began)
            return
        begin, end = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )
        begin.record()
        yield
        end.record()
        self._marks.append((begin, end))

    def last(self, count: int) -> float:
        """Give the seconds of the last blocks."""
        if self._marks:
            torch.cuda.synchronize()
            self._seconds = [begin.elapsed_time(end) / 1e3 for begin, end in self._marks]
        return sum(self._seconds[-count:])

    def __len__(self) -> int:
        return len(self._marks) or len(self._seconds)


_STOPWATCH = _Stopwatch()


class Plugins:
    """The timed encoder as a plugin."""

    @staticmethod
    @hookimpl
    def microtome_encoders() -> Iterator[EncoderSpec]:
        """Register it."""
        yield EncoderSpec(
            name=TIMED,
            target="bench.heavy:TimedEncoder",
            summary="A model of timm whose computing is timed",
            config=ModelConfig,
            requires=("torch", "timm"),
        )


def model_fed(
    slide: str, tile: int, model: str, batch: int, device: str, precision: str
) -> dict[str, Any]:
    """Run a slide through a model.

    Args:
        slide: The file.
        tile: Side of the tiles at 20x in pixels.
        model: Its name in timm.
        batch: Tiles at once.
        device: Where; several with commas in between share the tiles.
        precision: ``fp32``, ``fp16`` or ``bf16``.

    Returns:
        What `bench.passes.run` gives, and ``computing``: seconds of the pass in which the device
        computed the model, from the device's own events where it is a GPU.
    """
    get_registry().add(Plugins, "heavy", "bench")
    several = device.split(",") if "," in device else []
    options = {
        "plugin": TIMED,
        "model": model,
        "weights": "random",
        "device": "auto" if several else device,
        "precision": precision,
        "batch_size": batch,
    }
    grid = {"size": tile, "magnification": 20}
    found = run(slide, grid, 1, encoder={"heavy": options}, tile_devices=several)
    # The first half was the slide to warm up with.
    return found | {"computing": _STOPWATCH.last(len(_STOPWATCH) // 2)}


def model_alone(model: str, batch: int, device: str, precision: str) -> dict[str, Any]:
    """Run a model on random tensors that lie on the device: what no run can exceed.

    Args:
        model: Its name in timm.
        batch: Images at once.
        device: Where.
        precision: ``fp32``, ``fp16`` or ``bf16``.

    Returns:
        ``tiles``, ``seconds``, and the ``flops`` of one tile.
    """
    network = timm.create_model(model, pretrained=False, num_classes=0).eval()
    layout, dtype = torch.channels_last, PRECISIONS[precision]
    side = _input_size(model)
    network = network.to(device=device, dtype=dtype).to(memory_format=layout)
    images = torch.randn(batch, 3, side, side, device=device, dtype=dtype)
    images = images.contiguous(memory_format=layout)

    def several() -> None:
        for _ in range(_BATCHES):
            network(images)
        if images.is_cuda:
            torch.cuda.synchronize()

    with torch.inference_mode():
        seconds = best(several, 3)
    return {"tiles": _BATCHES * batch, "seconds": seconds, "flops": count_flops(model, side)}


def _input_size(model: str) -> int:
    """Give the side that a run with this model resizes tiles to."""
    size = TimmEncoder(ModelConfig(model=model, weights="random")).card.input_size
    if size is None:
        raise ValueError(f"timm does not say which size {model} takes")
    return size


def count_flops(model: str, side: int) -> int:
    """Count the floating-point operations of one image, two for a multiplication and its sum."""
    with torch.device("meta"), torch.inference_mode():
        network = timm.create_model(model, pretrained=False, num_classes=0).eval()
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 3, side, side))
    return int(counter.get_total_flops())
