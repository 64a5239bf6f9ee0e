"""Feed heavy encoders from a slide on a GPU, and hold that against the models alone.

For each model and batch size: tiles/s of a run, of the model alone on random tensors that lie on
the device already, the share of the run's pass in which the GPU computes the model, and what of
the card's peak both reach (MFU). ``--device cpu`` works too, with a small model. With
``--tile-devices cuda:0,cuda:1`` also of a run whose tiles these share, against one device.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.process import StepError, run_step
from bench.results import Result, append_record

MODELS = ("vit_large_patch16_224", "vit_huge_patch14_224")
NO_GPU = "torch finds no GPU on this machine: nothing was measured. See --device."


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print rows, and add to a history if asked to.

    Returns:
        0 if everything could be measured, or there is no GPU; else 1.
    """
    asked = _parser().parse_args(arguments)
    if asked.device.startswith("cuda") and not _has_gpu():
        print(NO_GPU)
        return 0
    results = []
    try:
        for model in asked.models:
            for batch in asked.batch:
                for result in measure(asked, model, batch):
                    print(result, flush=True)
                    results.append(result)
    except StepError as error:
        print(error, file=sys.stderr)
        return 1
    if asked.json:
        append_record(asked.json, results, {"slide": asked.slide.name})
    return 0


def measure(asked: argparse.Namespace, model: str, batch: int) -> Iterator[Result]:
    """Measure one model with one batch size, alone and fed."""
    common: dict[str, Any] = {
        "model": model,
        "batch": batch,
        "device": asked.device,
        "precision": asked.precision,
    }
    alone = run_step("model_alone", **common).found
    fed = run_step("model_fed", slide=str(asked.slide.resolve()), tile=asked.tile, **common).found
    limit, reached = (found["tiles"] / found["seconds"] for found in (alone, fed))
    text = f"{model}, batch {batch}, {asked.precision}"
    group = "gpu"
    yield Result(group=group, name=f"{text}, alone", value=limit, unit="tiles/s", details=alone)
    yield Result(
        group=group,
        name="  run",
        value=reached,
        unit="tiles/s",
        ratio=reached / limit,
        against="of the model alone",
        details=fed,
    )
    if asked.tile_devices:
        shared = run_step(
            "model_fed",
            slide=str(asked.slide.resolve()),
            tile=asked.tile,
            **(common | {"device": asked.tile_devices}),
        ).found
        rate = shared["tiles"] / shared["seconds"]
        yield Result(
            group=group,
            name=f"  run on {asked.tile_devices}",
            value=rate,
            unit="tiles/s",
            ratio=rate / reached,
            against="of the run on one",
            details=shared,
        )
    busy = 100 * fed["computing"] / fed["seconds"]
    yield Result(group=group, name="  computing the model, of the pass", value=busy, unit="%")
    if asked.peak_tflops:
        for name, rate in (("alone", limit), ("run", reached)):
            used = 100 * rate * alone["flops"] / (asked.peak_tflops * 1e12)
            yield Result(group=group, name=f"  MFU, {name}", value=used, unit="%")


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    add = parser.add_argument
    add("--slide", type=Path, required=True, help="a slide with some thousand tiles")
    add("--models", type=lambda text: text.split(","), default=MODELS, help="names in timm")
    add(
        "--batch",
        type=lambda text: [int(word) for word in text.split(",")],
        default=[64, 128, 256],
        help="tiles at once: 64,128,256",
    )
    add("--tile", type=int, default=224, help="side of the tiles at 20x in pixels")
    add("--precision", default="bf16", help="fp32, fp16 or bf16")
    add("--device", default="cuda", help="cuda, cuda:1, cpu")
    add("--tile-devices", metavar="A,B", help="devices that share the tiles: cuda:0,cuda:1")
    add("--peak-tflops", type=float, help="the card's, dense, in that precision: gives the MFU")
    add("--json", type=Path, metavar="FILE", help="append the figures to a history")
    return parser


if __name__ == "__main__":
    sys.exit(main())
