"""Fixtures that every room shares."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from microtome.plugin import registry
from microtome.testing import SyntheticSlide, make_slide

pytest.register_assert_rewrite("hub_checks", "row_checks")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Give the folder of small real slides beside the project, or skip."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no ../shared/data beside the project")
    return SHARED_DATA


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory) -> SyntheticSlide:
    """Make a synthetic slide at 40x, 2048 × 1536, once a session. Not to be written to."""
    return make_slide(tmp_path_factory.mktemp("slides") / "synthetic.svs")


@pytest.fixture(scope="session", autouse=True)
def _digests(tmp_path_factory):
    """Keep what is remembered of files out of the user's cache."""
    folder = tmp_path_factory.mktemp("digests")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("microtome.plugin.weights.files.digests_folder", lambda: folder)
        yield


@pytest.fixture(autouse=True)
def _modes():
    """Fail a test that leaves torch in inference mode, or gradients off, for those after it."""
    before = _torch_modes()
    yield
    assert _torch_modes() == before


def _torch_modes() -> dict[str, bool]:
    if "torch" not in sys.modules:
        return {"inference mode": False, "gradients": True}
    torch = sys.modules["torch"]
    return {
        "inference mode": torch.is_inference_mode_enabled(),
        "gradients": torch.is_grad_enabled(),
    }


@pytest.fixture
def fresh_registry():
    """Load the installed plugins anew, so that a test may add its own; forget them afterwards."""
    registry.get_registry.cache_clear()
    yield registry.get_registry()
    registry.get_registry.cache_clear()
