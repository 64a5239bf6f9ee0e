"""What tests of slide encoders share: the stand-in hub and the room's own registry."""

from __future__ import annotations

import pytest
from standin_hub import hub

__all__ = ["hub"]


@pytest.fixture(scope="module")
def registry():
    """Give a registry with the plugins of this room alone."""
    from row_checks import make_registry

    return make_registry()
