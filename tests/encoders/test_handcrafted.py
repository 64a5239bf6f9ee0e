"""The embedded default: its columns say what they claim, bit-equal however tiles are batched."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microtome.errors import EncoderError
from microtome.slide.batch import TileBatch
from microtome_encoders.patch.columns import COLUMNS, columns_table
from microtome_encoders.patch.handcrafted import (
    EOSIN,
    HAEMATOXYLIN,
    HandcraftedEncoder,
    _sum_of_squares,
    describe_tile,
)

NAMES = [column.name for column in COLUMNS]


def encode(pixels):
    encoder = HandcraftedEncoder()
    encoder.load("cpu", "fp32")
    return encoder.encode(TileBatch(pixels, np.zeros((len(pixels), 5), np.int32))).embedding


def describe(tile):
    return dict(zip(NAMES, describe_tile(tile), strict=True))


def flat(colour, side=64):
    return np.full((side, side, 3), colour, np.uint8)


def stained(haematoxylin, eosin):
    """Beer-Lambert: what the scanner sees of so much of each stain."""
    h, e = (np.array(v) / np.linalg.norm(v) for v in (HAEMATOXYLIN, EOSIN))
    density = haematoxylin[..., None] * h + eosin[..., None] * e
    return np.rint(255 * 10.0**-density).astype(np.uint8)


def with_discs(centres, radius=8, side=128, haematoxylin=0.9, eosin=0.2):
    amount = np.zeros((side, side), np.uint8)
    for centre in centres:
        cv2.circle(amount, centre, radius, 1, -1)
    return stained(amount * haematoxylin, np.full((side, side), eosin)), int(amount.sum())


def noise(count, side, seed=0):
    tiles = np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return np.stack([cv2.GaussianBlur(tile, (5, 5), 0) for tile in tiles])


def test_names_are_unique_and_documented():
    assert len(set(NAMES)) == len(NAMES) == HandcraftedEncoder().card.dim
    assert all(column.summary and column.source and column.unit for column in COLUMNS)
    table = columns_table()
    assert all(f"`{name}`" in table for name in NAMES)
    assert table.count("\n") == len(NAMES) + 2


def test_embedding_is_float32_rows_of_the_cards_width():
    embedding = encode(noise(3, 40))
    assert embedding.dtype == np.float32
    assert embedding.shape == (3, len(COLUMNS))
    assert np.isfinite(embedding).all()
    assert encode(noise(1, 40)[:0]).shape == (0, len(COLUMNS))


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(9)), st.integers(1, 9))
def test_rows_are_bit_equal_in_any_batch_and_order(order, size):
    tiles = noise(9, 48)
    whole = encode(tiles)
    shuffled = tiles[list(order)]
    parts = [encode(shuffled[i : i + size]) for i in range(0, 9, size)]
    assert np.concatenate(parts).tobytes() == whole[list(order)].tobytes()


def test_rows_are_bit_equal_for_views_and_any_thread_count():
    tiles = noise(2, 64)
    whole = encode(tiles)
    canvas = np.zeros((2, 70, 99, 3), np.uint8)
    canvas[:, 3:67, 5:69] = tiles
    threads = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        view = encode(canvas[:, 3:67, 5:69])
    finally:
        cv2.setNumThreads(threads)
    assert view.tobytes() == whole.tobytes()


@pytest.mark.parametrize("colour", [255, 0, 128, (200, 30, 90)])
def test_flat_tiles_are_finite_and_have_no_texture(colour):
    values = describe(flat(colour))
    assert all(math.isfinite(value) for value in values.values())
    for name in ("red_std", "gradient_energy", "laplacian_variance", "glcm1_contrast"):
        assert values[name] == 0
    assert values["glcm4_energy"] == values["glcm4_homogeneity"] == 1
    assert values["lbp_8"] == 1  # no neighbour is darker than the centre
    assert all(values[f"octave_{size}_variance"] == 0 for size in (1, 2, 4, 8))


def test_white_glass_has_no_stain_and_no_nuclei():
    values = describe(flat(255))
    zero = [n for n in NAMES if n.startswith(("od_", "haematoxylin_", "eosin_", "residual_"))]
    zero += ["tissue_fraction", "nuclei_density", "nuclei_coverage", "nuclei_area_mean"]
    assert {name: values[name] for name in zero} == dict.fromkeys(zero, 0)
    assert values["red_mean"] == 1


def test_colour_moments_are_numpys():
    tile = noise(1, 50)[0]
    values = describe(tile)
    green = tile[..., 1].astype(np.float64) / 255
    assert values["green_mean"] == pytest.approx(green.mean(), rel=1e-12)
    assert values["green_std"] == pytest.approx(green.std(), rel=1e-9)
    third = ((green - green.mean()) ** 3).mean()
    assert values["green_skew"] == pytest.approx(np.cbrt(third), rel=1e-6)


@pytest.mark.parametrize(("h", "e"), [(0.8, 0.1), (0.1, 0.6), (0.4, 0.4), (0.0, 0.5)])
def test_stains_are_unmixed(h, e):
    side = np.ones((32, 32))
    values = describe(stained(side * h, side * e))
    # 8-bit colours round the density by up to 0.02, unmixing about doubles it.
    assert values["haematoxylin_mean"] == pytest.approx(h, abs=0.04)
    assert values["eosin_p50"] == pytest.approx(e, abs=0.04)
    assert values["residual_mean"] == pytest.approx(0, abs=0.04)
    assert values["haematoxylin_share"] == pytest.approx(h / (h + e), abs=0.06)


def test_stain_statistics_follow_their_definitions():
    rng = np.random.default_rng(1)
    h = rng.uniform(0.2, 0.9, (64, 64))
    values = describe(stained(h, 0.7 - 0.5 * h))
    assert values["stain_correlation"] < -0.9
    assert values["haematoxylin_std"] == pytest.approx(h.std(), abs=0.02)
    assert values["haematoxylin_p10"] == pytest.approx(np.percentile(h, 10), abs=0.03)
    assert values["haematoxylin_p90"] == pytest.approx(np.percentile(h, 90), abs=0.03)


def test_tissue_fraction_counts_dense_pixels():
    tile = flat(255, 40)
    tile[:10] = (150, 60, 130)
    assert describe(tile)["tissue_fraction"] == 0.25


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
@pytest.mark.parametrize("side", [16, 255, 1024])
def test_sums_of_squares_are_exact(dtype, side):
    limits = np.iinfo(dtype)
    values = np.random.default_rng(side).integers(limits.min, limits.max, (side, side), dtype)
    exact = int((values.astype(np.int64) ** 2).sum())
    assert _sum_of_squares(values) == exact


def test_gradients_of_a_ramp():
    ramp = np.repeat(np.arange(0, 128, 2, dtype=np.uint8)[None], 64, 0)
    values = describe(np.repeat(ramp[..., None], 3, 2))
    # A slope of 2 a pixel gives Sobel 16; the two border columns reflect and give 0.
    assert values["gradient_mean"] == pytest.approx(16 * 62 / 64 / 1020)
    assert values["gradient_energy"] == pytest.approx(16**2 * 62 / 64 / 1020**2)


def test_octaves_add_up_to_the_variance_of_blocks():
    tile = np.repeat(noise(1, 64, 3)[0][..., :1], 3, 2)
    grey = tile[..., 0].astype(np.float64) / 255
    blocks = grey.reshape(4, 16, 4, 16).mean(axis=(1, 3))
    values = describe(tile)
    total = sum(values[f"octave_{size}_variance"] for size in (1, 2, 4, 8))
    assert total == pytest.approx((grey**2).mean() - (blocks**2).mean(), rel=1e-9)


def test_octave_finds_the_size_of_a_chequerboard():
    board = np.kron(np.indices((16, 16)).sum(0) % 2, np.ones((4, 4))).astype(np.uint8) * 255
    values = describe(np.repeat(board[..., None], 3, 2))
    assert values["octave_4_variance"] == pytest.approx(0.25)
    assert values["octave_1_variance"] == values["octave_2_variance"] == 0


@pytest.mark.parametrize("distance", [1, 4])
def test_cooccurrence_against_a_plain_loop(distance):
    tile = np.repeat(noise(1, 20, 5)[0][..., :1], 3, 2)
    levels = tile[..., 0].astype(int) // 16
    table = np.zeros((16, 16))
    for y in range(20):
        for x in range(20):
            for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
                v, u = y + dy * distance, x + dx * distance
                if 0 <= v < 20 and 0 <= u < 20:
                    table[levels[y, x], levels[v, u]] += 1
                    table[levels[v, u], levels[y, x]] += 1
    p = table / table.sum()
    i, j = np.indices(p.shape)
    mean, variance = (p * i).sum(), (p * i**2).sum() - (p * i).sum() ** 2
    values = describe(tile)
    expected = {
        "contrast": (p * (i - j) ** 2).sum() / 225,
        "correlation": ((p * i * j).sum() - mean**2) / variance,
        "energy": (p**2).sum(),
        "homogeneity": (p / (1 + abs(i - j))).sum(),
        "entropy": -(p[p > 0] * np.log2(p[p > 0])).sum(),
    }
    for name, value in expected.items():
        assert values[f"glcm{distance}_{name}"] == pytest.approx(value, rel=1e-9)


def test_binary_patterns_against_a_plain_loop():
    tile = np.repeat(noise(1, 20, 6)[0][..., :1], 3, 2)
    grey = tile[..., 0].astype(int)
    circle = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))
    counts = np.zeros(10)
    for y in range(1, 19):
        for x in range(1, 19):
            bits = [grey[y + dy, x + dx] >= grey[y, x] for dy, dx in circle]
            changes = sum(bits[k] != bits[k - 1] for k in range(8))
            counts[sum(bits) if changes <= 2 else 9] += 1
    got = [value for name, value in describe(tile).items() if name.startswith("lbp_")]
    np.testing.assert_allclose(got, counts / counts.sum(), rtol=1e-12)


def test_nuclei_are_counted_and_measured():
    centres = [(20, 20), (60, 24), (100, 30), (30, 90), (80, 95)]
    tile, covered = with_discs(centres)
    values = describe(tile)
    assert values["nuclei_density"] == pytest.approx(len(centres) / 128**2 * 1e6)
    assert values["nuclei_coverage"] == pytest.approx(covered / 128**2, rel=0.15)
    assert values["nuclei_area_mean"] == pytest.approx(covered / len(centres), rel=0.15)
    assert values["nuclei_area_std"] < 0.05 * values["nuclei_area_mean"]
    assert values["nuclei_elongation"] == pytest.approx(1, abs=0.01)
    assert values["nuclei_extent"] == pytest.approx(covered / len(centres) / 17**2, abs=0.03)
    assert values["nuclei_haematoxylin"] == pytest.approx(0.9, abs=0.1)
    assert values["nuclei_contrast"] == pytest.approx(0.9, abs=0.1)


def test_eosin_alone_has_no_nuclei():
    rng = np.random.default_rng(2)
    tile = stained(np.zeros((64, 64)), rng.uniform(0.3, 0.6, (64, 64)))
    assert describe(tile)["nuclei_density"] == 0


def test_dust_is_no_nucleus():
    tile, _ = with_discs([(30, 30), (90, 90)], radius=1)
    assert describe(tile)["nuclei_density"] == 0


@pytest.mark.parametrize("shape", [(16, 16), (17, 40), (300, 255)])
def test_any_size_from_16_px(shape):
    tile = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert len(describe_tile(tile)) == len(COLUMNS)


def test_smaller_tiles_are_refused():
    with pytest.raises(EncoderError, match="16 px"):
        encode(noise(1, 15))


def test_real_tissue_has_more_nuclei_than_glass(shared_data):
    openslide = pytest.importorskip("openslide")
    with openslide.OpenSlide(shared_data / "slides" / "cmu-1-small-region.svs") as slide:
        width, height = (size // 256 * 256 for size in slide.dimensions)
        image = np.asarray(slide.read_region((0, 0), 0, (width, height)).convert("RGB"))
    tiles = image.reshape(height // 256, 256, width // 256, 256, 3).swapaxes(1, 2)
    embedding = encode(tiles.reshape(-1, 256, 256, 3))
    assert np.isfinite(embedding).all()
    tissue, nuclei = (embedding[:, NAMES.index(n)] for n in ("tissue_fraction", "nuclei_coverage"))
    assert nuclei[tissue > 0.6].min() > nuclei[tissue < 0.02].max()
