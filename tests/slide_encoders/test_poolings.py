"""Mean, maximum and statistics: exact to float32's last bit, whatever lies in memory how."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from bag_checks import make_bag

from microtome.errors import EncoderError
from microtome_encoders.slide import pooling
from microtome_encoders.slide.pooling import MaxPooling, MeanPooling, StatisticsPooling

POOLINGS = [MeanPooling, MaxPooling, StatisticsPooling]


def pooled(encoder, bag):
    encoder.load("cpu", "fp32")
    out = encoder.encode(bag)
    assert out.latents is None
    assert out.attention is None
    assert out.embedding.dtype == np.float32
    return out.embedding


def exact_mean(column):
    return math.fsum(map(float, column)) / len(column)


@pytest.mark.parametrize("count", [1, 7, 300])
def test_the_mean_is_the_exact_one_rounded_once(count):
    bag = make_bag(count, 5)
    expected = [np.float32(exact_mean(column)) for column in bag.only.T]
    np.testing.assert_array_equal(pooled(MeanPooling(), bag), expected)


def test_it_sums_in_float64():
    """In float32 a million ones after a large number would be lost."""
    bag = make_bag(5000, 1)
    bag.only[:] = 1.0
    bag.only[0] = 2.0**25
    assert pooled(MeanPooling(), bag)[0] == np.float32((2**25 + 4999) / 5000)


def test_the_maximum():
    bag = make_bag(9, 4)
    expected = [max(column) for column in bag.only.T.tolist()]
    np.testing.assert_array_equal(pooled(MaxPooling(), bag), np.float32(expected))


@pytest.mark.parametrize("count", [1, 6, 250])
def test_statistics_are_means_then_deviations_then_maxima(count):
    bag = make_bag(count, 3)
    means, deviations, maxima = pooled(StatisticsPooling(), bag).reshape(3, 3)
    np.testing.assert_array_equal(means, pooled(MeanPooling(), bag))
    np.testing.assert_array_equal(maxima, pooled(MaxPooling(), bag))
    for column, deviation in zip(bag.only.T.astype(np.float64), deviations, strict=True):
        squares = [(value - exact_mean(column)) ** 2 for value in column]
        assert deviation == pytest.approx(math.sqrt(exact_mean(squares)), rel=1e-6, abs=0)


def test_a_constant_far_from_zero_has_no_deviation():
    bag = make_bag(64, 2)
    bag.only[:] = 4096.1
    np.testing.assert_array_equal(pooled(StatisticsPooling(), bag)[2:4], 0)


@pytest.mark.parametrize("encoder", POOLINGS)
def test_the_same_rows_give_the_same_bits_however_they_lie_in_memory(encoder):
    bag = make_bag(pooling.ROWS + 500, 3)
    expected = pooled(encoder(), bag)
    every_other = np.repeat(bag.only, 2, axis=0)[::2]
    for same in (np.asfortranarray(bag.only), every_other, bag.only.astype(np.float64)):
        again = replace(bag, features={"x": same})
        np.testing.assert_array_equal(pooled(encoder(), again), expected)


def test_the_order_of_rows_is_below_float32(monkeypatch):
    bag = make_bag(2000, 6)
    backwards = replace(bag, features={"x": bag.only[::-1]}, coords=bag.coords[::-1])
    monkeypatch.setattr(pooling, "ROWS", 77)
    a, b = (pooled(StatisticsPooling(), each) for each in (bag, backwards))
    np.testing.assert_allclose(a, b, rtol=2e-7, atol=1e-9)


@pytest.mark.parametrize("encoder", POOLINGS)
def test_half_precision_is_pooled_as_the_numbers_that_it_holds(encoder):
    bag = make_bag(40, 4, dtype=np.float16)
    same = replace(bag, features={"x": bag.only.astype(np.float32)})
    np.testing.assert_array_equal(pooled(encoder(), bag), pooled(encoder(), same))


@pytest.mark.parametrize("encoder", POOLINGS)
def test_a_slide_without_tiles_is_refused(encoder):
    with pytest.raises(EncoderError, match="S-1 has no tiles"):
        encoder().encode(make_bag(0, 4))


def test_poolings_are_registered_for_any_feature_set(registry):
    for name in ("mean", "max", "statistics"):
        spec = registry.find("slide_encoder", name).spec
        assert spec.needs == ()
        assert spec.card is None
        assert registry.create("slide_encoder", name).weights() == {"weights": "none"}


def test_poolings_import_no_torch():
    code = "import sys, microtome_encoders.slide.pooling; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
