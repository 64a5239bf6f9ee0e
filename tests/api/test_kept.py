"""What calls and aggregation write into an output folder, and what they do not read."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest

from microtome import ExecutionOptions, Model, Pipeline, PreprocessingConfig
from microtome.api import embedding
from microtome.errors import EncoderError, IdentityError

FAST = PreprocessingConfig(segmentation={"method": "otsu"}, requested_tile_size_px=128, resume=True)


@pytest.mark.parametrize("kind", ["npz", "pt"])
def test_calls_write_the_files_that_are_asked_for(plugins, cohort, tmp_path, kind):
    execution = ExecutionOptions(
        output_dir=tmp_path, output_format=kind, save_tile_embeddings=True, save_latents=True
    )
    model = Model.from_preset("nominal")
    embedded = model.embed_slide(cohort / "a.svs", preprocessing=FAST, execution=execution)
    for folder in ("tile_embeddings", "slide_embeddings", "slide_latents"):
        assert (tmp_path / folder / f"a.{kind}").is_file(), folder
        known = json.loads((tmp_path / folder / "a.meta.json").read_text("utf-8"))
        assert (tmp_path / known["store"]).samefile(embedded.path)
    patients = Model.from_preset("of_nominal")
    patients.embed_patient(
        [cohort / "a.svs"], patient_id="P", preprocessing=FAST, execution=execution
    )
    assert (tmp_path / "patient_embeddings" / f"P.{kind}").is_file()


def test_a_file_holds_what_the_call_gives(plugins, cohort, tmp_path):
    execution = ExecutionOptions(output_dir=tmp_path, output_format="npz")
    model = Model.from_preset("mean", level="tile")
    both = model.embed_slides(
        [cohort / "b.svs", cohort / "a.svs"], preprocessing=FAST, execution=execution
    )
    for slide in both:
        with np.load(tmp_path / "tile_embeddings" / f"{slide.sample_id}.npz") as arrays:
            np.testing.assert_array_equal(arrays["features"], slide.tile_embeddings)
            np.testing.assert_array_equal(arrays["x"], slide.x)


@pytest.mark.parametrize("kind", ["npz", "pt"])
def test_files_need_a_folder(plugins, cohort, kind):
    execution = ExecutionOptions(output_format=kind)
    with pytest.raises(ValueError, match=r"give ExecutionOptions\(output_dir=…\)"):
        Model.from_preset("mean", level="tile").embed_slide(cohort / "a.svs", execution=execution)


def test_files_of_something_else_are_refused_before_anything_is_computed(plugins, cohort, tmp_path):
    execution = ExecutionOptions(output_dir=tmp_path, output_format="npz")
    model = Model.from_preset("mean", level="tile")
    model.embed_slide(cohort / "a.svs", preprocessing=FAST, execution=execution)
    other = PreprocessingConfig(segmentation={"method": "otsu"}, resume=True)
    with pytest.raises(IdentityError, match="made of something else"):
        model.embed_slide(cohort / "a.svs", preprocessing=other, execution=execution)
    assert len([*tmp_path.glob("*/patches/a.h5")]) == 1


@pytest.mark.parametrize("name", ["mean", "nominal"])
def test_a_pipeline_reads_no_embedding_to_say_where_it_is(
    plugins, cohort, tmp_path, monkeypatch, name
):
    def fail(*args, **kwargs):
        raise AssertionError("embeddings were read")

    monkeypatch.setattr(embedding, "read_tiles", fail)
    level = "tile" if name == "mean" else None
    pipeline = Pipeline(
        Model.from_preset(name, level=level), FAST, execution=ExecutionOptions(output_dir=tmp_path)
    )
    reads = []
    plain = h5py.Dataset.__getitem__

    def spy(dataset, *args, **kwargs):
        reads.append(dataset.name)
        return plain(dataset, *args, **kwargs)

    pipeline.run([cohort / "a.svs"])
    monkeypatch.setattr(h5py.Dataset, "__getitem__", spy)
    result = pipeline.run([cohort / "a.svs"])
    artifact = (result.tile_artifacts or result.slide_artifacts)[0]
    assert not [each for each in reads if each.startswith(("/features", "/slide_features"))]
    assert artifact.load().shape == artifact.shape


# Aggregation


@pytest.fixture
def made(plugins, cohort, tmp_path):
    """Give the tile embeddings of a slide, in a store."""

    def make(model="mean", **settings):
        settings = PreprocessingConfig(segmentation={"method": "otsu"}, **settings)
        execution = ExecutionOptions(output_dir=tmp_path / "made")
        pipeline = Pipeline(Model.from_preset(model, level="tile"), settings, execution=execution)
        return pipeline.run([cohort / "a.svs"]).tile_artifacts

    return make


@pytest.mark.parametrize(
    ("run", "told"),
    [
        ({"nonsense": 3, "bag_memory_gb": 1.0}, "it takes bag_memory_gb, not nonsense"),
        ({"engine": "local"}, "aggregate_tiles runs no slides: .* not engine"),
        ({"bag_memory_gb": -1.0}, "bag_memory_gb=-1 must be above 0"),
    ],
)
def test_aggregation_takes_no_options_of_a_run(made, run, told):
    tiles = made(requested_tile_size_px=128)
    with pytest.raises(ValueError, match=told):
        Model.from_preset("nominal").aggregate_tiles(tiles, execution=ExecutionOptions(run=run))


def test_aggregation_stays_below_the_cap(made):
    tiles, model = made(requested_tile_size_px=128), Model.from_preset("nominal")
    little = ExecutionOptions(run={"bag_memory_gb": 1e-9})
    with pytest.raises(EncoderError, match=r"nominal would take about .* bag_memory_gb allows"):
        model.aggregate_tiles(tiles, execution=little)
    assert model.aggregate_tiles(tiles, execution=ExecutionOptions(run={"bag_memory_gb": 1.0}))


def test_aggregation_refuses_what_there_is_no_memory_for(made):
    with pytest.raises(EncoderError, match="greedy would take about"):
        Model.from_preset("greedy").aggregate_tiles(made(requested_tile_size_px=128))


def test_aggregation_refuses_other_tiles(made):
    with pytest.raises(EncoderError, match=r"nominal needs .*128 px.*64 px"):
        Model.from_preset("nominal").aggregate_tiles(made(requested_tile_size_px=64))


def test_latents_that_are_lacking_are_made(made):
    tiles, model = made(requested_tile_size_px=128), Model.from_preset("nominal")
    (plain,) = model.aggregate_tiles(tiles)
    assert plain.latent_path is None
    (more,) = model.aggregate_tiles(tiles, execution=ExecutionOptions(save_latents=True))
    assert more.latent_path == more.path
    with h5py.File(more.path) as file:
        assert file["slide_latents/nominal"].shape == (2, 4)


def test_stores_elsewhere_are_not_taken_for_the_output(made, tmp_path):
    tiles, model = made(requested_tile_size_px=128), Model.from_preset("nominal")
    elsewhere = ExecutionOptions(output_dir=tmp_path / "other")
    with pytest.raises(ValueError, match="is not in output_dir="):
        model.aggregate_tiles(tiles, execution=elsewhere)
    files = ExecutionOptions(output_dir=tmp_path / "other", output_format="npz")
    (artifact,) = model.aggregate_tiles(tiles, execution=files)
    assert artifact.path.is_relative_to(tmp_path / "other")
    assert artifact.load().shape == (3,)
