"""What tests of encoders share: the stand-in hub, the room's own registry, one thread of torch."""

from __future__ import annotations

import pytest
from standin_hub import hub

__all__ = ["hub"]


@pytest.fixture(scope="module")
def registry():
    """Give a registry with the plugins of this room alone."""
    from row_checks import make_registry

    return make_registry()


@pytest.fixture(scope="module")
def one_thread():
    """Small models on busy cores: torch's threads would wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def first():
    """Give a file of weights for the entry of `hub_checks`."""
    from hub_checks import state
    from safetensors.torch import save

    return save(state(1))


@pytest.fixture
def nowhere(hub, monkeypatch):
    """Send requests to a port where nobody listens."""

    def leave():
        from huggingface_hub import constants

        template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    return leave


@pytest.fixture
def never_waits(monkeypatch):
    """A retry sleeps first."""

    def sleep(seconds):
        raise AssertionError(f"slept {seconds} s before another try")

    monkeypatch.setattr("time.sleep", sleep)
