"""Which device and precision an encoder runs with, resolved before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from microtome.errors import ConfigError
from microtome.plugin.specs import EncoderCard, EncoderSpec, PluginSpec
from microtome.run.settings import ModelChoice


def resolve_device(spec: PluginSpec, choice: ModelChoice) -> str:
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
    told = f"{choice.kind}.{choice.name}.device={asked}"
    _require(asked, told, "Use device=auto or device=cpu.")
    return asked


def resolve_devices(
    spec: EncoderSpec, choice: ModelChoice, tile_devices: Sequence[str]
) -> tuple[str, ...]:
    """Say which devices have an encoder each, to take a slide's batches in turn.

    Args:
        spec: The encoder; only one that requires torch, and wants one thread to itself, has
            several.
        choice: The user's choice.
        tile_devices: The run's.

    Returns:
        At least one.

    Raises:
        ConfigError: If one is not there, or the encoder was to be on another.
    """
    if not tile_devices or "torch" not in spec.requires or spec.concurrent:
        return (resolve_device(spec, choice),)
    told = f"tile_devices=[{','.join(tile_devices)}]"
    kind = tile_devices[0].partition(":")[0]
    if choice.device not in ("auto", kind):
        raise ConfigError(
            f"{choice.kind}.{choice.name}.device={choice.device} and {told} contradict each other: "
            "leave one of them out."
        )
    for device in tile_devices:
        _require(device, told, "Name those that there are: microtome doctor lists them.")
    return tuple(tile_devices)


def _require(device: str, told: str, way_out: str) -> None:
    """Refuse a device that torch does not see."""
    import torch

    kind, _, index = device.partition(":")
    if kind == "cpu":
        return
    there = torch.cuda.device_count() if kind == "cuda" else int(torch.backends.mps.is_available())
    if int(index or 0) >= there:
        raise ConfigError(
            f"{told} was asked for, but torch sees {there} {kind} "
            f"device{'s' if there != 1 else ''}. {way_out}"
        )


def resolve_precision(
    spec: PluginSpec, card: EncoderCard | None, choice: ModelChoice, device: str
) -> str:
    """Turn ``"auto"`` into a precision: the card's on a GPU, fp32 on a CPU.

    Args:
        spec: The encoder; one that does not require torch computes as it does: fp32.
        card: Says what the model wants on a GPU: fp32 if there is none.
        choice: The user's choice.
        device: From `resolve_device`.

    Raises:
        ConfigError: If it is fp16 on a CPU.
    """
    asked = choice.precision
    if "torch" not in spec.requires:
        return "fp32"
    if asked == "auto":
        return "fp32" if device == "cpu" or card is None else card.precision
    if asked == "fp16" and device == "cpu":
        raise ConfigError(
            f"{choice.kind}.{choice.name}.precision=fp16 needs a GPU; on the CPU use fp32 or bf16."
        )
    return asked


def describe_way_out(precision: str, node: str) -> str:
    """Say what to do about values that are not finite: nothing is more precise than fp32."""
    if precision != "fp32":
        return f"try {node}.precision=fp32."
    return "are its weights, and what it was given, sound?"


def describe_fallback(spec: PluginSpec, choice: ModelChoice, device: str) -> str:
    """Say that an encoder does not run as one may think; empty where it does."""
    if "torch" in spec.requires:
        fell_back = choice.device == "auto" and device == "cpu"
        return f"{choice.name} runs on the CPU: torch sees no GPU." if fell_back else ""
    if choice.device in ("auto", "cpu") and choice.precision in ("auto", "fp32"):
        return ""
    return f"{choice.name} runs on the CPU in fp32: it does not require torch."
