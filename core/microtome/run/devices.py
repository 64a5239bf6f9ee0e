"""Which device and precision an encoder runs with, resolved before anything is loaded."""

from __future__ import annotations

import re

from microtome.errors import ConfigError
from microtome.plugin.specs import EncoderCard, EncoderSpec
from microtome.run.settings import EncoderChoice

PRECISIONS = ("fp32", "fp16", "bf16")
_DEVICE = re.compile(r"cpu|mps|cuda(:\d+)?")


def resolve_device(spec: EncoderSpec, choice: EncoderChoice) -> str:
    """Turn ``"auto"`` into a device, and check the one that was asked for.

    Args:
        spec: The encoder; one that does not require torch runs on the CPU.
        choice: The user's choice.

    Raises:
        ConfigError: If the device is unknown or not there.
    """
    asked = choice.device
    if asked != "auto" and not _DEVICE.fullmatch(asked):
        raise ConfigError(
            f"encoder.{choice.name}.device={asked} is no device. "
            "Use auto, cpu, cuda, cuda:0, … or mps."
        )
    if "torch" not in spec.requires or asked == "cpu":
        return "cpu"
    import torch

    if asked == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, index = asked.partition(":")
    there = torch.cuda.device_count() if kind == "cuda" else int(torch.backends.mps.is_available())
    if int(index or 0) >= there:
        raise ConfigError(
            f"encoder.{choice.name}.device={asked} was asked for, but torch sees {there} {kind} "
            f"device{'s' if there != 1 else ''}. Use device=auto or device=cpu."
        )
    return asked


def resolve_precision(card: EncoderCard, choice: EncoderChoice, device: str) -> str:
    """Turn ``"auto"`` into a precision: the card's on a GPU, fp32 on a CPU.

    Raises:
        ConfigError: If the precision is unknown, or is fp16 on a CPU.
    """
    if choice.precision == "auto":
        return "fp32" if device == "cpu" else card.precision
    if choice.precision not in PRECISIONS:
        raise ConfigError(
            f"encoder.{choice.name}.precision={choice.precision} is no precision. "
            f"Use auto, {', '.join(PRECISIONS)}."
        )
    if choice.precision == "fp16" and device == "cpu":
        raise ConfigError(
            f"encoder.{choice.name}.precision=fp16 needs a GPU; on the CPU use fp32 or bf16."
        )
    return choice.precision
