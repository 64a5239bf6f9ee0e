"""Devices and precisions are resolved, or refused by name."""

from __future__ import annotations

import pytest
import torch

from microtome.errors import ConfigError
from microtome.plugin import EncoderCard, EncoderSpec
from microtome.run.planning.devices import describe_fallback, resolve_device, resolve_precision
from microtome.run.settings import EncoderChoice

PLAIN = EncoderSpec(name="plain", target="x:Y", summary="numpy")
TORCH = EncoderSpec(name="net", target="x:Y", summary="torch", requires=("torch",))


@pytest.fixture
def gpus(monkeypatch):
    """Pretend that torch sees two GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_gpu(monkeypatch):
    """Pretend that torch sees none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def choose(**options):
    return EncoderChoice(plugin="net", **options)


def test_auto_takes_a_gpu(gpus):
    assert resolve_device(TORCH, choose()) == "cuda"


def test_auto_without_a_gpu(no_gpu):
    assert resolve_device(TORCH, choose()) == "cpu"


def test_an_encoder_without_torch_runs_on_the_cpu(gpus):
    assert resolve_device(PLAIN, choose()) == "cpu"


def test_a_gpu_by_number(gpus):
    assert resolve_device(TORCH, choose(device="cuda:1")) == "cuda:1"


@pytest.mark.parametrize("device", ["cuda:2", "mps"])
def test_a_device_that_is_not_there_is_refused(gpus, monkeypatch, device):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=device):
        resolve_device(TORCH, choose(device=device))


def test_no_silent_fall_back_from_cuda(no_gpu):
    with pytest.raises(ConfigError, match="sees 0 cuda devices"):
        resolve_device(TORCH, choose(device="cuda"))


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "0", ""])
def test_no_device_at_all(device):
    with pytest.raises(ConfigError, match="is not auto, cpu"):
        choose(device=device)


def test_auto_precision_is_the_cards_on_a_gpu():
    card = EncoderCard(dim=1, precision="bf16")
    assert resolve_precision(TORCH, card, choose(), "cuda") == "bf16"
    assert resolve_precision(TORCH, card, choose(), "cpu") == "fp32"


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(ConfigError, match="fp32 or bf16"):
        resolve_precision(TORCH, EncoderCard(dim=1), choose(precision="fp16"), "cpu")


def test_unknown_precision():
    with pytest.raises(ConfigError, match="precision=float16 is not one of auto, fp32"):
        choose(precision="float16")


def test_an_encoder_without_torch_says_what_it_really_does(gpus):
    choice = choose(device="cuda", precision="bf16")
    assert resolve_device(PLAIN, choice) == "cpu"
    assert resolve_precision(PLAIN, EncoderCard(dim=1, precision="bf16"), choice, "cpu") == "fp32"
    assert describe_fallback(PLAIN, choice, "cpu") == (
        "net runs on the CPU in fp32: it does not require torch."
    )


def test_a_fall_back_to_the_cpu_is_told_and_a_choice_of_it_is_not(no_gpu):
    assert "torch sees no GPU" in describe_fallback(TORCH, choose(), "cpu")
    assert describe_fallback(TORCH, choose(device="cpu"), "cpu") == ""
    assert describe_fallback(PLAIN, choose(), "cpu") == ""
