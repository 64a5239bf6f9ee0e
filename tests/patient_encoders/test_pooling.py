"""Patients without a model of patients: poolings of slides, and slides made into one."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import microtome_encoders
from microtome.errors import EncoderError
from microtome.plugin.protocols import SlideOutput
from microtome.plugin.registry import Registry
from microtome.slide.bags import PatientBag, TileBag
from microtome_encoders.options import ConcatConfig
from microtome_encoders.patient.pooling import ConcatEncoder, side_by_side


@pytest.fixture(scope="module")
def registry():
    registry = Registry()
    registry.add(microtome_encoders, "encoders", "microtome")
    return registry


def make(registry, name, **options):
    spec = registry.find("patient_encoder", name).spec
    return registry.create("patient_encoder", name, spec.config(**options))


def bag(cells, tile=512, name="s", size=256, mpp=0.5, key="uni_v1"):
    """Give a slide with a tile in each of some (column, row) of its grid."""
    cells = np.array(sorted(cells, key=lambda cell: (cell[1], cell[0])), np.int64).reshape(-1, 2)
    features = np.concatenate([cells, np.full((len(cells), 1), sum(map(ord, name)))], 1)
    return TileBag(
        slide_id=name,
        features={key: features.astype(np.float32)},
        coords=cells * tile,
        tile_size_level0=tile,
        size=size,
        mpp=mpp,
        slide_size=(100_000, 80_000),
    )


def patient(*slides, embeddings=None, embed=None):
    return PatientBag(
        patient_id="P-1",
        slide_ids=tuple(slide.slide_id for slide in slides),
        slides=slides,
        slide_embeddings=embeddings,
        embed=embed,
    )


class TestSlidePooling:
    def test_the_mean_counts_every_slide_the_same(self, registry):
        encoder = make(registry, "mean")
        encoder.load("cpu", "fp32")
        slides = np.array([[1, 2], [3, -2], [5, 6]], np.float16)
        embedding = encoder.encode(patient(embeddings=slides))
        assert embedding.dtype == np.float32
        assert embedding.tolist() == [3, 2]

    def test_the_mean_is_taken_in_double_precision(self, registry):
        slides = np.array([[1e8], [1.0], [-1e8]], np.float32)
        assert make(registry, "mean").encode(patient(embeddings=slides)).tolist() == [
            np.float32(1 / 3)
        ]

    def test_the_maximum_is_of_each_column(self, registry):
        slides = np.array([[1, 2], [3, -2]], np.float32)
        embedding = make(registry, "max").encode(patient(embeddings=slides))
        assert embedding.tolist() == [3, 2]

    @pytest.mark.parametrize("embeddings", [None, np.empty((0, 4), np.float32)])
    def test_a_patient_without_slides_is_refused(self, registry, embeddings):
        with pytest.raises(EncoderError, match="P-1 has no slide embedding"):
            make(registry, "mean").encode(patient(embeddings=embeddings))

    def test_they_take_slides_of_any_encoder(self, registry):
        specs = [registry.find("patient_encoder", name).spec for name in ("mean", "max")]
        assert [(s.takes, s.needs, s.slide_encoder) for s in specs] == [("slides", (), "")] * 2


class TestConcat:
    def test_it_gives_the_slide_encoder_one_slide(self, registry):
        seen = []

        def embed(tiles):
            seen.append(tiles)
            return SlideOutput(embedding=np.arange(3, dtype=np.float32), latents=np.ones((2, 3)))

        encoder = make(registry, "concat", slide_encoder="titan")
        encoder.load("cpu", "fp32")
        slides = bag([(0, 0), (1, 0)], name="a"), bag([(4, 7)], name="b")
        assert encoder.encode(patient(*slides, embed=embed)).tolist() == [0, 1, 2]
        assert encoder.slide_encoder == "titan"
        assert (seen[0].slide_id, len(seen[0])) == ("P-1", 3)

    def test_it_takes_tiles_and_the_mean_unless_told(self, registry):
        spec = registry.find("patient_encoder", "concat").spec
        assert (spec.takes, spec.needs) == ("tiles", ())
        assert ConcatEncoder(ConcatConfig()).slide_encoder == "mean"

    def test_without_the_slide_encoder_it_says_which_is_missing(self, registry):
        with pytest.raises(EncoderError, match="no slide encoder mean"):
            make(registry, "concat").encode(patient(bag([(0, 0)])))


class TestSideBySide:
    def test_slides_stand_from_left_to_right_with_a_column_of_glass_between(self):
        left, right = bag([(3, 5), (5, 6)], name="a"), bag([(9, 1), (8, 2)], name="b")
        placed = side_by_side("P", [left, right])
        cells = (placed.coords // 512).tolist()
        assert cells == [[0, 0], [5, 0], [2, 1], [4, 1]]
        assert placed.slide_size == (6 * 512, 2 * 512)
        assert (placed.tile_size_level0, placed.size, placed.mpp) == (512, 256, 0.5)

    def test_features_go_with_their_tiles(self):
        left, right = bag([(3, 5), (5, 6)], name="a"), bag([(9, 1), (8, 2)], name="b")
        placed = side_by_side("P", [left, right])
        assert placed.only[:, :2].tolist() == [[3, 5], [9, 1], [5, 6], [8, 2]]

    def test_a_slide_by_itself_is_left_where_it_is(self):
        alone = bag([(3, 5), (5, 6)])
        assert side_by_side("P", [alone]) is alone
        assert side_by_side("P", [bag([]), alone, bag([])]) is alone

    def test_of_20x_and_40x_scans_columns_and_rows_stay_what_they_were(self):
        left, right = bag([(2, 2), (3, 3)], tile=256), bag([(2, 2), (3, 3)], tile=512)
        placed = side_by_side("P", [left, right])
        assert placed.tile_size_level0 == 512
        assert (placed.coords // 512).tolist() == [[0, 0], [3, 0], [1, 1], [4, 1]]
        assert not (placed.coords % 512).any()

    def test_what_is_not_known_of_all_slides_is_not_said(self):
        placed = side_by_side("P", [bag([(0, 0)], mpp=0.5), bag([(0, 0)], mpp=0.46)])
        assert placed.mpp is None

    @pytest.mark.parametrize("other", [{"size": 224}, {"key": "uni_v2"}])
    def test_slides_that_were_not_tiled_alike_are_refused(self, other):
        with pytest.raises(EncoderError, match="not tiled alike"):
            side_by_side("P", [bag([(0, 0)]), bag([(0, 0)], **other)])

    def test_no_tile_at_all_is_refused(self):
        with pytest.raises(EncoderError, match="No slide of the patient P"):
            side_by_side("P", [bag([]), bag([])])

    cells = st.sets(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=12)
    slides = st.lists(
        st.tuples(cells, st.sampled_from([224, 256, 448, 511, 512]), st.integers(0, 223)),
        min_size=2,
        max_size=4,
    )

    @settings(max_examples=60, deadline=None)
    @given(slides)
    def test_no_two_tiles_overlap_and_every_lattice_stays(self, slides):
        """Also off the lattice, as the tiles of another tool are, and in any unit."""
        bags = []
        for number, (cells, tile, offset) in enumerate(slides):
            made = bag(cells, tile=tile, name=str(number))
            bags.append(
                TileBag(
                    slide_id=made.slide_id,
                    features={"uni_v1": np.full((len(made), 1), number, np.float32)},
                    coords=made.coords + offset,
                    tile_size_level0=tile,
                    size=256,
                    mpp=0.5,
                    slide_size=made.slide_size,
                )
            )
        placed = side_by_side("P", bags)
        tile = placed.tile_size_level0
        assert tile == max(b.tile_size_level0 for b in bags)
        order = np.lexsort(placed.coords.T)
        assert np.array_equal(order, np.arange(len(placed)))
        assert (placed.coords.max(0) + tile <= placed.slide_size).all()
        edges = []
        for number, made in enumerate(bags):
            coords = placed.coords[placed.only[:, 0] == number]
            shift = coords // tile - made.coords // made.tile_size_level0
            assert (shift == shift[0]).all()
            edges.append((coords[:, 0].min(), coords[:, 0].max() + tile))
        for (_, right), (left, _) in pairwise(edges):
            assert right <= left
