"""Slides and patients embedded in a line."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from run_checks import touch

import microtome
from microtome import (
    EmbeddedPatient,
    EmbeddedSlide,
    ExecutionOptions,
    Model,
    PreprocessingConfig,
)
from microtome.errors import ConfigError, EmbeddingError

OTSU = {"method": "otsu"}
"""The segmenter that costs the least of those that look at a slide."""

FAST = PreprocessingConfig(segmentation=OTSU)
SMALL = PreprocessingConfig(segmentation=OTSU, requested_tile_size_px=128)


@pytest.fixture
def tiles(plugins):
    """Give a tile model that costs nothing."""
    return Model.from_preset("mean", level="tile")


@pytest.fixture
def nominal(plugins):
    """Give a slide model that needs 128 px at 20x."""
    return Model.from_preset("nominal")


def test_a_slide_in_a_line(cohort):
    embedded = Model.from_preset("handcrafted").embed_slide(cohort / "a.svs")
    count = embedded.num_tiles
    assert count > 0
    assert embedded.sample_id == "a"
    assert embedded.tile_embeddings.shape == (count, 67)
    assert embedded.tile_embeddings.dtype == np.float32
    assert embedded.slide_embedding is None
    assert embedded.latents is None
    assert embedded.x.shape == embedded.y.shape == (count,)
    assert embedded.tile_size_lv0 == 512
    assert embedded.image_path == cohort / "a.svs"
    assert embedded.mask_path is None
    assert embedded.mask_preview_path is None
    assert embedded.tiling_preview_path is None
    assert embedded.path is None


def test_embedded_slides_have_the_fields_that_users_know():
    known = {
        *("sample_id", "tile_embeddings", "slide_embedding", "x", "y", "tile_size_lv0"),
        *("image_path", "mask_path", "num_tiles", "mask_preview_path", "tiling_preview_path"),
        "latents",
    }
    assert known <= {each.name for each in fields(EmbeddedSlide)}
    known = {"patient_id", "patient_embedding", "slide_embeddings"}
    assert known <= {each.name for each in fields(EmbeddedPatient)}


def test_it_is_the_same_run(cohort, tmp_path):
    embedded = Model.from_preset("handcrafted").embed_slide(cohort / "b.svs")
    microtome.run_slides(cohort / "b.svs", tmp_path, encoder="handcrafted")
    with microtome.open_result(tmp_path / "patches" / "b.h5") as stored:
        np.testing.assert_array_equal(embedded.tile_embeddings, stored.features("handcrafted"))
        np.testing.assert_array_equal(embedded.x, stored.coords[:, 0])
        np.testing.assert_array_equal(embedded.y, stored.coords[:, 1])


def test_nothing_is_left_without_an_output_folder(tiles, cohort, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    tiles.embed_slide(cohort / "a.svs")
    assert not list(tmp_path.iterdir())


def test_what_is_kept_is_named(tiles, cohort, tmp_path):
    preview = {"save_mask_preview": True, "save_tiling_preview": True}
    settings = PreprocessingConfig(segmentation=OTSU, requested_tile_size_px=128, preview=preview)
    execution = ExecutionOptions(output_dir=tmp_path)
    embedded = tiles.embed_slide(cohort / "a.svs", preprocessing=settings, execution=execution)
    for path in (
        embedded.path,
        embedded.mask_path,
        embedded.mask_preview_path,
        embedded.tiling_preview_path,
    ):
        assert path.is_file()
        assert path.is_relative_to(tmp_path)
    with h5py.File(embedded.path) as file:
        np.testing.assert_array_equal(file["features/mean"], embedded.tile_embeddings)


def test_tiles_go_on_as_anndata(tiles, cohort, tmp_path):
    pytest.importorskip("anndata")
    slide, execution = cohort / "a.svs", ExecutionOptions(output_dir=tmp_path)
    embedded = tiles.embed_slide(slide, preprocessing=SMALL, execution=execution)
    np.testing.assert_array_equal(embedded.to_anndata().X, embedded.tile_embeddings)
    with pytest.raises(ConfigError, match="a is in memory alone"):
        tiles.embed_slide(slide, preprocessing=SMALL).to_anndata()


def test_previews_need_a_folder(tiles, cohort):
    settings = PreprocessingConfig(preview={"save_mask_preview": True})
    with pytest.raises(ValueError, match="output_dir"):
        tiles.embed_slide(cohort / "a.svs", preprocessing=settings)


@pytest.mark.parametrize("how", ["argument", "mapping"])
def test_a_wrong_native_spacing_is_put_right(tiles, cohort, how):
    slide, given = cohort / "a.svs", {"spacing_at_level_0": 0.5}
    plain = tiles.embed_slide(slide, preprocessing=SMALL)
    if how == "argument":
        wide = tiles.embed_slide(slide, preprocessing=SMALL, **given)
    else:
        wide = tiles.embed_slide({"image_path": slide, **given}, preprocessing=SMALL)
    # At 0.5 µm/px level 0 is 20x itself.
    assert (plain.tile_size_lv0, wide.tile_size_lv0) == (256, 128)
    assert wide.num_tiles > plain.num_tiles


def test_a_mask_of_ones_own_is_used(tiles, cohort, tmp_path):
    from PIL import Image

    mask = np.zeros((64, 64), np.uint8)
    mask[:16, :16] = 1
    path = tmp_path / "mask.png"
    Image.fromarray(mask).save(path)
    embedded = tiles.embed_slide(
        cohort / "a.svs", preprocessing=SMALL, mask_path=path, sample_id="corner"
    )
    assert embedded.sample_id == "corner"
    assert embedded.mask_path == path
    assert (embedded.x.tolist(), embedded.y.tolist()) == ([0], [0])
    # Beside one that brings none, each is done in its way, and the order is kept.
    both = tiles.embed_slides(
        [cohort / "b.svs", {"image_path": cohort / "a.svs", "mask_path": path}],
        preprocessing=SMALL,
    )
    assert [each.sample_id for each in both] == ["b", "a"]
    assert both[0].num_tiles > 1
    assert both[1].num_tiles == 1


def test_slides_come_in_the_order_given(tiles, cohort):
    names = ["d", "a", "c", "b"]
    embedded = tiles.embed_slides([cohort / f"{n}.svs" for n in names], preprocessing=SMALL)
    assert [each.sample_id for each in embedded] == names


def test_slides_come_in_the_order_given_from_workers(cohort, tmp_path):
    # The largest is done first, and two workers finish as they please.
    slides = [cohort / f"{name}.svs" for name in "cab"]
    execution = ExecutionOptions(run={"engine": {"local": {"workers": 2}}})
    embedded = Model.from_preset("handcrafted").embed_slides(
        slides, preprocessing=FAST, execution=execution
    )
    assert [each.sample_id for each in embedded] == ["c", "a", "b"]
    alone = Model.from_preset("handcrafted").embed_slide(slides[1], preprocessing=FAST)
    np.testing.assert_array_equal(embedded[1].tile_embeddings, alone.tile_embeddings)


@dataclass
class Spec:
    """A slide as another library has it."""

    sample_id: str
    image_path: Path


def test_slides_are_named_in_many_ways(tiles, cohort):
    path = cohort / "a.svs"
    given = [str(path), path, {"image_path": str(path)}, Spec("a", path)]
    for slide in given:
        assert tiles.embed_slide(slide, preprocessing=SMALL).sample_id == "a"


@pytest.mark.parametrize(
    ("slide", "told"),
    [
        ({"sample_id": "a"}, "needs image_path"),
        (
            {"image_path": "a.svs", "spacing": 1},
            "no field of a slide named 'spacing'. Available: sample_id",
        ),
        ({"image_path": "a.svs", "spacing_at_level_0": 0}, "no positive number"),
        ({"image_path": "a.svs", "spacing_at_level_0": True}, "no positive number"),
        (3, "3 is no slide"),
    ],
)
def test_what_is_no_slide_is_refused(tiles, slide, told):
    with pytest.raises(ValueError, match=told):
        tiles.embed_slide(slide)


def test_slides_are_told_apart(tiles, cohort, tmp_path):
    with pytest.raises(ValueError, match="2 slides have the sample_id 'a'"):
        tiles.embed_slides([cohort / "a.svs", tmp_path / "a.svs"])
    with pytest.raises(ValueError, match="2 slides have the image_path"):
        tiles.embed_slides([cohort / "a.svs", {"image_path": cohort / "a.svs", "sample_id": "b"}])
    with pytest.raises(ValueError, match="No slides are given"):
        tiles.embed_slides([])
    with pytest.raises(ValueError, match="sample_id is given beside a slide that is no path"):
        tiles.embed_slide({"image_path": cohort / "a.svs"}, sample_id="b")


def test_a_failed_slide_raises_when_the_others_are_done(tiles, cohort, tmp_path):
    slides = [cohort / "a.svs", cohort / "e.svs", tmp_path / "gone.svs", cohort / "b.svs"]
    with pytest.raises(EmbeddingError, match="2 could not be embedded") as caught:
        tiles.embed_slides(slides, preprocessing=SMALL)
    assert [each.sample_id for each in caught.value.embedded] == ["a", "b"]
    assert list(caught.value.failed) == ["e", "gone"]
    assert caught.value.failed["gone"].startswith("failed at inputs: there is no file")
    with pytest.raises(EmbeddingError, match="e: failed at open"):
        tiles.embed_slide(cohort / "e.svs")


def test_a_failed_slide_is_skipped_by_choice(tiles, cohort):
    with pytest.warns(RuntimeWarning, match="1 could not be embedded. e: failed at open"):
        embedded = tiles.embed_slides(
            [cohort / "e.svs", cohort / "a.svs"], preprocessing=SMALL, on_error="skip"
        )
    assert [each.sample_id for each in embedded] == ["a"]
    with pytest.raises(ValueError, match="on_error='ignore' is not one of raise, skip"):
        tiles.embed_slides([cohort / "a.svs"], on_error="ignore")


def test_a_slide_without_tissue_is_embedded_as_nothing(nominal, cohort):
    execution = ExecutionOptions(run={"segmenter": "nothing"})
    embedded = nominal.embed_slide(cohort / "a.svs", execution=execution)
    assert embedded.tile_embeddings.shape == (0, 3)
    assert embedded.slide_embedding is None
    assert embedded.num_tiles == 0


def test_a_slide_model_brings_its_tiles(nominal, cohort):
    embedded = nominal.embed_slide(cohort / "a.svs", preprocessing=FAST)
    assert embedded.tile_size_lv0 == 256
    np.testing.assert_allclose(
        embedded.slide_embedding, embedded.tile_embeddings.sum(0, dtype=np.float64), rtol=1e-6
    )
    assert embedded.latents is None


def test_latents_come_on_request(nominal, cohort):
    embedded = nominal.embed_slide(
        cohort / "a.svs", preprocessing=FAST, execution=ExecutionOptions(save_latents=True)
    )
    assert embedded.latents.shape == (2, 4)


def test_a_pooling_reads_the_encoder_that_is_named(plugins, cohort):
    model = Model.from_preset("mean", level="slide", encoder={"mean": {"scale": 2.0}})
    embedded = model.embed_slide(cohort / "a.svs", preprocessing=SMALL)
    plain = Model.from_preset("mean", level="tile").embed_slide(
        cohort / "a.svs", preprocessing=SMALL
    )
    np.testing.assert_allclose(
        embedded.slide_embedding, 2 * plain.tile_embeddings.mean(0), rtol=1e-5
    )


def test_regions_are_what_grouping_by_hand_gives(tiles, cohort):
    settings = PreprocessingConfig(
        segmentation=OTSU,
        requested_tile_size_px=64,
        region_tile_multiple=3,
        tissue_threshold=0.1,
    )
    embedded = tiles.embed_slide(cohort / "a.svs", preprocessing=settings)
    regions, per_region, dim = embedded.tile_embeddings.shape
    assert (per_region, dim) == (9, 3)
    assert embedded.num_tiles == regions * 9
    assert (embedded.tile_size_lv0, embedded.region_size_lv0) == (128, 384)
    flat = tiles.embed_slide(
        cohort / "a.svs",
        preprocessing=PreprocessingConfig(
            requested_tile_size_px=64, segmentation={"method": "none"}
        ),
    )
    places = zip(flat.x.tolist(), flat.y.tolist(), strict=True)
    by_place = dict(zip(places, flat.tile_embeddings, strict=True))
    for x, y, region in zip(embedded.x, embedded.y, embedded.tile_embeddings, strict=True):
        for index, row in enumerate(region):
            place = int(x) + index % 3 * 128, int(y) + index // 3 * 128
            np.testing.assert_array_equal(row, by_place[place])


@pytest.mark.parametrize(
    ("settings", "side"),
    [
        ({"requested_region_size_px": 256, "requested_tile_size_px": 64}, 512),
        ({"requested_region_size_px": 128, "region_tile_multiple": 2,
          "requested_tile_size_px": 64}, 256),
    ],
)  # fmt: skip
def test_a_region_may_be_named_by_its_size(tiles, cohort, settings, side):
    embedded = tiles.embed_slide(
        cohort / "a.svs", preprocessing=PreprocessingConfig(segmentation=OTSU, **settings)
    )
    assert embedded.region_size_lv0 == side


@pytest.mark.parametrize(
    "settings",
    [
        {"requested_region_size_px": 200, "requested_tile_size_px": 64},
        {"requested_region_size_px": 64, "requested_tile_size_px": 64},
        {"requested_region_size_px": 256, "requested_tile_size_px": 64, "region_tile_multiple": 3},
    ],
)
def test_a_region_is_a_whole_number_of_tiles(tiles, cohort, settings):
    with pytest.raises(ValueError, match="is not a whole number"):
        tiles.embed_slide(cohort / "a.svs", preprocessing=PreprocessingConfig(**settings))
    with pytest.raises(ValueError, match="region_tile_multiple=1 must be a number of 2 or more"):
        PreprocessingConfig(region_tile_multiple=1)


def test_tensors_share_the_arrays_memory(nominal, cohort):
    embedded = nominal.embed_slide(cohort / "a.svs", preprocessing=FAST)
    tensors = embedded.as_tensors()
    assert isinstance(tensors.tile_embeddings, torch.Tensor)
    assert tensors.slide_embedding.shape == (3,)
    assert tensors.sample_id == "a"
    assert tensors.tile_embeddings.data_ptr() == embedded.tile_embeddings.ctypes.data


def test_dense_grids_come_on_request(cohort):
    settings = PreprocessingConfig(
        segmentation=OTSU, requested_tile_size_px=224, requested_spacing_um=1.0
    )
    options = {"model": "vit_tiny_patch16_224", "weights": "random"}
    model = Model.from_preset("timm", device="cpu", tokens=True, attention=True, **options)
    embedded = model.embed_slide(cohort / "a.svs", preprocessing=settings)
    count, dim = embedded.tile_embeddings.shape
    assert count > 0
    assert embedded.tokens.shape == (count, 14, 14, dim)
    assert embedded.attention.shape == (count, 3, 14, 14)


# Patients


def of(cohort, *named):
    """Give slides with their patients, ``"aX"`` for slide a of patient X."""
    return [{"image_path": cohort / f"{n[0]}.svs", "patient_id": n[1]} for n in named]


@pytest.fixture
def over(plugins):
    """Give a patient model over the slide model ``nominal``."""
    return Model.from_preset("of_nominal")


def test_patients_come_in_the_order_of_first_appearance(over, cohort):
    found = over.embed_patients(of(cohort, "bY", "aX", "cY", "dZ"), preprocessing=FAST)
    assert [patient.patient_id for patient in found] == ["Y", "X", "Z"]
    assert list(found[0].slide_embeddings) == ["b", "c"]
    both = np.stack(list(found[0].slide_embeddings.values()))
    np.testing.assert_allclose(found[0].patient_embedding, both.mean(0), rtol=1e-6)
    assert not found[0].left_out


def test_the_map_wins_over_what_slides_say(over, cohort):
    slides = [*of(cohort, "aX", "bX"), cohort / "c.svs"]
    found = over.embed_patients(slides, {"b": "Q"}, preprocessing=FAST)
    assert [patient.patient_id for patient in found] == ["X", "Q", "c"]


def test_four_patients_seven_slides_one_broken(over, cohort):
    slides = of(cohort, "a1", "b2", "c1", "d3", "e2", "f4", "g4")
    with pytest.warns(RuntimeWarning, match="1 could not be embedded. e: failed at open"):
        found = over.embed_patients(slides, preprocessing=FAST)
    assert [patient.patient_id for patient in found] == ["1", "2", "3", "4"]
    assert [len(patient.slide_embeddings) for patient in found] == [2, 1, 1, 2]
    assert list(found[1].left_out) == ["e"]
    with pytest.raises(EmbeddingError) as caught:
        over.embed_patients(slides, preprocessing=FAST, on_error="raise")
    assert [patient.patient_id for patient in caught.value.embedded] == ["1", "3", "4"]
    assert {*caught.value.failed} == {"e", "2"}


def test_one_patient_has_one_id(over, cohort):
    slides = [cohort / "a.svs", cohort / "b.svs"]
    assert over.embed_patient(slides, patient_id="P", preprocessing=FAST).patient_id == "P"
    assert over.embed_patient(of(cohort, "aX", "bX"), preprocessing=FAST).patient_id == "X"
    found = over.embed_patient(slides, preprocessing=FAST)
    assert found.patient_id == "a"
    assert list(found.slide_embeddings) == ["a", "b"]
    with pytest.raises(ValueError, match="slides of 2 patients, X, Y"):
        over.embed_patient(of(cohort, "aX", "bY"))
    told = "The patient e could not be embedded: none of its slides .* cannot be opened"
    with pytest.raises(EmbeddingError, match=told) as caught:
        over.embed_patient([cohort / "e.svs"])
    assert {*caught.value.failed} == {"e"}


def test_a_patient_model_of_tiles_gives_no_slide_embeddings(plugins, cohort):
    slides = [cohort / "a.svs", cohort / "b.svs"]
    found = Model.from_preset("of_tiles").embed_patient(slides, preprocessing=FAST)
    assert found.patient_embedding.shape == (3,)
    assert not found.slide_embeddings
    assert isinstance(found.as_tensors().patient_embedding, torch.Tensor)


def test_slides_of_patients_all_bring_masks_or_none(over, cohort, tmp_path):
    touch(tmp_path / "mask.png")
    slides = [
        {"image_path": cohort / "a.svs", "mask_path": tmp_path / "mask.png"},
        cohort / "b.svs",
    ]
    with pytest.raises(ConfigError, match="1 of 2 slides bring a mask_path"):
        over.embed_patients(slides)
