"""A slide that a stranger's writer cannot read: what to do is told all the same."""

from __future__ import annotations

import pytest

from microtome.errors import StoreError
from microtome.plugin.registry import get_registry


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("{} is no slide of npz: bad magic", "{} is no slide of npz: bad magic. Move it away, or"),
        ("{} is cut short.", "{} is cut short. Move it away, or use force=true."),
        ("{} is cut short. Delete it.", "{} is cut short. Delete it."),
    ],
)
def test_what_to_do_is_told(go, slide, tmp_path, monkeypatch, told, shown):
    assert go(slide).counts["done"] == 1
    path = tmp_path / "out/patches/one.h5"

    def fail(self, path):
        raise StoreError(told.format(path))

    monkeypatch.setattr(get_registry().load("writer", "hdf5"), "open_stored", fail)
    (status,) = go(slide).statuses
    assert status.state == "failed"
    assert shown.format(path) in status.message
    assert status.message.count("force=true") == ("Delete" not in told)
