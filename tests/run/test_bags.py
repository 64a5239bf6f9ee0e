"""What is refused of a slide's tiles before an encoder is given them, and what is told."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from microtome.errors import EncoderError
from microtome.plugin.specs import TileNeed
from microtome.run.slides.bagging import check_bag, make_bag

NEED = TileNeed(encoder="mean", patch_size=256, magnification=20)
PHYSICAL = TileNeed(encoder="mean", patch_size=256, mpp=0.5)
STORED = {
    "patch_size": 256,
    "step": 256,
    "patch_size_level0": 512,
    "step_level0_exact": [512.0, 512.0],
    "level0_width": 9000,
    "level0_height": 9000,
    "effective_mpp": [0.5, 0.5],
    "target_magnification": 20,
}
GRID = np.array([[0, 0], [512, 0], [1024, 0], [0, 512], [512, 512]])
ROWS_APART = np.array([[0, 0], [4000, 0], [300, 512], [1000, 512], [4512, 512]])
BY_MPP = {"target_mpp": 0.5}


def _told(need=NEED, coords=GRID, **attributes):
    planned = SimpleNamespace(name="titan", made=SimpleNamespace(needs=(need,)))
    return check_bag(planned, make_bag("s", coords, {}, STORED | attributes))


@pytest.mark.parametrize(
    ("need", "changes"),
    [
        (NEED, {}),
        (NEED, {"effective_mpp": "None"}),  # nominal by name is all that is known
        (NEED, {**BY_MPP, "effective_mpp": [0.52, 0.52]}),
        (NEED, {"target_magnification": 40, "effective_mpp": [0.49, 0.51]}),
        (PHYSICAL, {}),
        (TileNeed(overlap=True), {"step": 64, "coords": GRID // 4}),
        (NEED, {"coords": ROWS_APART}),  # off each other's grid, without overlap
        (NEED, {"coords": GRID[:1]}),
    ],
)
def test_tiles_that_fit_pass_in_silence(need, changes):
    assert _told(need, **changes) == []


@pytest.mark.parametrize(
    ("need", "changes", "told"),
    [
        (NEED, {"patch_size": 128, "step": 128}, r"have 128 px\. Tile it with tiler\.size=256"),
        (NEED, {"target_magnification": 10, "effective_mpp": [1.0, 1.0]}, "1 µm/px, 10x by name"),
        (NEED, {"target_magnification": 10, "effective_mpp": "None"}, "no known resolution, 10x"),
        (NEED, {**BY_MPP, "effective_mpp": [0.53, 0.53]}, r"0\.53 µm/px\. .* tiler\.mpp=0\.5"),
        (NEED, {"target_magnification": "None", "effective_mpp": "None"}, "no known resolution"),
        (PHYSICAL, {"effective_mpp": [0.53, 0.53]}, r"0\.5 µm/px .* have 0\.53 µm/px, 20x by name"),
        (PHYSICAL, {"effective_mpp": "None"}, "no known resolution"),
        (NEED, {"step": 384}, r"have 256 px, 384 px apart\. Tile it with tiler\.step=256"),
        (NEED, {"step": 128}, "256 px, 128 px apart"),
        (NEED, {"coords": GRID // 2}, "side of 512 level-0 pixels, and some lie closer"),
        (NEED, {"coords": np.array([[0, 0], [600, 0], [1100, 0]])}, "some lie closer"),
        (NEED, {"coords": np.array([[100, 0], [1100, 0], [700, 500]])}, "some lie closer"),
        (NEED, {"coords": np.array([[700, 0], [300, 511]])}, "some lie closer"),
        (NEED, {"coords": np.array([[300, 0], [700, 511]])}, "some lie closer"),
    ],
)
def test_tiles_that_are_not_what_it_needs_are_refused(need, changes, told):
    with pytest.raises(EncoderError, match=told):
        _told(need, **changes)


@pytest.mark.parametrize(("mpp", "off"), [(0.53, "6%"), (0.46, "8%")])
def test_a_nominal_magnification_that_is_five_percent_off_is_told(mpp, off):
    (text,) = _told(effective_mpp=[mpp, mpp])
    assert f"0.5 µm/px, and this slide's tiles have {mpp} µm/px ({off} off)" in text
    assert "tiler.mpp=0.5" in text
    assert _told(effective_mpp=[0.52, 0.52]) == []
