"""Which device and precision a model runs with."""

from __future__ import annotations

from microtome.errors import ConfigError


def find_device(asked: str) -> str:
    """Turn ``auto`` into a device, and check one that was asked for.

    Raises:
        ConfigError: If it is not there.
    """
    if asked == "cpu":
        return asked
    import torch

    if asked == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, index = asked.partition(":")
    there = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if kind != "cpu" and int(index or 0) >= there.get(kind, 0):
        raise ConfigError(
            f"device={asked} was asked for, but torch sees {there.get(kind, 0)} {kind} devices. "
            "Use device=auto or device=cpu."
        )
    return asked


def find_precision(asked: str, device: str) -> str:
    """Turn ``auto`` into a precision to train in: bf16 on a GPU that has it, else fp32.

    Raises:
        ConfigError: If it is fp16 on a CPU.
    """
    if asked == "auto":
        import torch

        return "bf16" if device.startswith("cuda") and torch.cuda.is_bf16_supported() else "fp32"
    if asked == "fp16" and device == "cpu":
        raise ConfigError("precision=fp16 needs a GPU; on the CPU use fp32 or bf16.")
    return asked
