"""Which device and precision an encoder runs with, resolved before anything is loaded."""

from __future__ import annotations

from microtome.errors import ConfigError
from microtome.plugin.specs import EncoderCard, EncoderSpec
from microtome.run.settings import EncoderChoice


def resolve_device(spec: EncoderSpec, choice: EncoderChoice) -> str:
    """Turn ``"auto"`` into a device, and check the one that was asked for.

    Args:
        spec: The encoder; one that does not require torch runs on the CPU whatever is asked.
        choice: The user's choice.

    Raises:
        ConfigError: If the device is not there.
    """
    asked = choice.device
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


def resolve_precision(
    spec: EncoderSpec, card: EncoderCard, choice: EncoderChoice, device: str
) -> str:
    """Turn ``"auto"`` into a precision: the card's on a GPU, fp32 on a CPU.

    Args:
        spec: The encoder; one that does not require torch computes as it does: fp32.
        card: Says what the model wants on a GPU.
        choice: The user's choice.
        device: From `resolve_device`.

    Raises:
        ConfigError: If it is fp16 on a CPU.
    """
    asked = choice.precision
    if "torch" not in spec.requires:
        return "fp32"
    if asked == "auto":
        return "fp32" if device == "cpu" else card.precision
    if asked == "fp16" and device == "cpu":
        raise ConfigError(
            f"encoder.{choice.name}.precision=fp16 needs a GPU; on the CPU use fp32 or bf16."
        )
    return asked


def describe_fallback(spec: EncoderSpec, choice: EncoderChoice, device: str) -> str:
    """Say that an encoder does not run as one may think; empty where it does."""
    if "torch" in spec.requires:
        fell_back = choice.device == "auto" and device == "cpu"
        return f"{choice.name} runs on the CPU: torch sees no GPU." if fell_back else ""
    if choice.device in ("auto", "cpu") and choice.precision in ("auto", "fp32"):
        return ""
    return f"{choice.name} runs on the CPU in fp32: it does not require torch."
