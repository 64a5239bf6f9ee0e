"""Options that only change how fast a run is, through a whole run."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
import standins

from microtome.slide.clock import STAGES


def features(output, name="handcrafted"):
    with h5py.File(output / "patches/one.h5") as file:
        return file[f"features/{name}"][:], dict(file[f"features/{name}"].attrs)


def test_a_profile_is_in_the_result_the_record_and_the_summary(go, slide, tmp_path):
    result = go(slide, profile=True, encoder="handcrafted", reader="tiff")
    assert {"decode", "encode", "write"} <= set(result.profile) <= set(STAGES)
    assert all(seconds >= 0 for seconds in result.profile.values())
    record = json.loads(result.record.read_text())
    assert record["profile"].keys() == result.profile.keys()
    assert record["profile"]["decode"] == pytest.approx(result.profile["decode"], abs=1e-3)


def test_nobody_keeps_account_unasked(go, slide):
    result = go(slide)
    assert not result.profile
    assert "profile" not in json.loads(result.record.read_text())


@pytest.mark.parametrize(
    "options",
    [
        {"threads": 1},
        {"reader_threads": 3},
        {"torch_threads": 1},
        {"batch_size": 1},
        {"batch_size": 500},
        {"encoder": {"handcrafted": {"batch_size": 7}}},
        {"encoder": {"handcrafted": {"batch_size": None}}},
    ],
    ids=str,
)
def test_handcrafted_features_are_the_same_to_the_bit(go, slide, tmp_path, options):
    go(slide, encoder="handcrafted", output=tmp_path / "usual")
    go(slide, output=tmp_path / "other", **({"encoder": "handcrafted"} | options))
    usual, other = (features(tmp_path / name)[0] for name in ("usual", "other"))
    np.testing.assert_array_equal(usual, other)


def test_torchs_threads_are_recorded(go, slide, tmp_path):
    go(slide, torch_threads=3)
    assert features(tmp_path / "out", "mean")[1]["torch_threads"] == 3


def test_an_open_batch_size_is_what_the_encoder_finds(go, slide, monkeypatch):
    sizes = []

    class Roomy(standins.MeanEncoder):
        def largest_batch(self):
            return 3

        def encode(self, batch):
            sizes.append(len(batch))
            return super().encode(batch)

    monkeypatch.setattr(standins, "MeanEncoder", Roomy)
    go(slide, encoder={"mean": {"batch_size": None}})
    assert max(sizes) == 3


def test_an_open_batch_size_is_32_where_an_encoder_cannot_tell(go, slide, monkeypatch):
    sizes = []

    class Plain(standins.MeanEncoder):
        def encode(self, batch):
            sizes.append(len(batch))
            return super().encode(batch)

    monkeypatch.setattr(standins, "MeanEncoder", Plain)
    go(slide, encoder={"mean": {"batch_size": None}}, tiler={"grid": {"size": 64}})
    assert max(sizes) == 32
