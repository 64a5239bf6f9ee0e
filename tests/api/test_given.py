"""Tiles that are there already are held against the settings and the model's card."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import standins

from microtome import ExecutionOptions, Model, Pipeline, PreprocessingConfig
from microtome.api.jobs import Job
from microtome.api.samples import Sample
from microtome.plugin import EncoderCard, EncoderSpec, hookimpl

FAST = PreprocessingConfig(segmentation={"method": "otsu"}, requested_tile_size_px=128)
OF_REGIONS = replace(FAST, region_tile_multiple=2)


class Carded:
    """A model with a card."""

    @staticmethod
    @hookimpl
    def microtome_encoders():
        """Register it."""
        yield EncoderSpec(
            name="carded",
            target="standins:MeanEncoder",
            summary="A stand-in",
            config=standins.MeanConfig,
            card=EncoderCard(dim=3, patch_size=128, magnification=20),
        )


@pytest.fixture
def model(plugins):
    """Give a model that was made for 128 px at 20x."""
    plugins.add(Carded, "carded", "microtome-carded")
    return Model.from_preset("carded", device="cpu")


@pytest.fixture
def placed(plugins, cohort, tmp_path):
    """Place tiles, and give the folder of their coordinates."""

    def place(settings):
        execution = ExecutionOptions(output_dir=tmp_path / "placed")
        model = Model.from_preset("mean", level="tile")
        Pipeline(model, settings, execution=execution).run([cohort / "a.svs"], tiling_only=True)
        (folder,) = (tmp_path / "placed").glob("*/patches")
        return folder

    return place


@pytest.fixture
def again(tmp_path):
    """Run a model over coordinates."""

    def run(model, folder, settings=None):
        execution = ExecutionOptions(output_dir=tmp_path / "again")
        pipeline = Pipeline(model, settings or PreprocessingConfig(), execution=execution)
        return pipeline.run_with_coordinates(folder)

    return run


def test_tiles_of_the_card_are_taken(model, placed, again):
    (artifact,) = again(model, placed(FAST)).tile_artifacts
    assert artifact.num_tiles > 0


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (replace(FAST, requested_tile_size_px=64), "the run gives 64 px at 20x"),
        (replace(FAST, requested_spacing_um=4.0), "the run gives 128 px at 4 µm/px"),
    ],
)
def test_tiles_away_from_the_card_are_refused(model, placed, again, settings, told):
    folder = placed(settings)
    with pytest.raises(ValueError, match=f"a: carded was made for 128 px at 20x, {told}") as error:
        again(model, folder)
    assert "allow_non_recommended_settings=True" in str(error.value)
    allowed = Model.from_preset("carded", device="cpu", allow_non_recommended_settings=True)
    assert again(allowed, folder).tile_artifacts


def test_archives_are_held_against_the_card(model, plugins, cohort, tmp_path):
    settings = replace(FAST, requested_tile_size_px=64, save_tiles=True)
    execution = ExecutionOptions(output_dir=tmp_path)
    tiles = Model.from_preset("mean", level="tile")
    tiles.embed_slide(cohort / "a.svs", preprocessing=settings, execution=execution)
    (archives,) = tmp_path.glob("*/tiles")
    stored = PreprocessingConfig(read_tiles_from=archives)
    with pytest.raises(ValueError, match="the run gives 64 px at 20x"):
        model.embed_slide(cohort / "a.svs", preprocessing=stored)


@pytest.mark.parametrize(
    "asked", [{"requested_tile_size_px": 256}, {"requested_spacing_um": 1.0}], ids=str
)
def test_what_is_asked_for_is_what_is_there(plugins, placed, again, asked):
    folder, model = placed(FAST), Model.from_preset("mean", level="tile")
    (name,) = asked
    with pytest.raises(ValueError, match=f"128 px at 0.5 µm/px, and asked for is {name}"):
        again(model, folder, PreprocessingConfig(**asked))
    same = PreprocessingConfig(requested_tile_size_px=128, requested_spacing_um=0.5)
    assert again(model, folder, same).tile_artifacts


@pytest.mark.parametrize(
    "asked",
    [
        {"region_tile_multiple": 2},
        {"requested_region_size_px": 256, "requested_tile_size_px": 128},
    ],
    ids=str,
)
def test_given_tiles_are_no_regions(plugins, placed, again, asked):
    folder = placed(FAST)
    with pytest.raises(ValueError, match="there already, in no regions"):
        again(Model.from_preset("mean", level="tile"), folder, PreprocessingConfig(**asked))


def test_given_regions_are_regions(plugins, placed, again):
    folder, model = placed(OF_REGIONS), Model.from_preset("mean", level="tile")
    result = again(model, folder, PreprocessingConfig(region_tile_multiple=2))
    (artifact,) = result.hierarchical_artifacts
    assert artifact.shape == (artifact.num_regions, 4, 3)
    assert not result.tile_artifacts
    with pytest.raises(ValueError, match="in regions of 2 × 2 tiles, 256 px"):
        again(model, folder, PreprocessingConfig(region_tile_multiple=3))


@pytest.mark.parametrize("source", ["read_coordinates_from", "read_tiles_from"])
def test_what_places_tiles_is_told_to_change_nothing(plugins, tmp_path, source):
    settings = PreprocessingConfig(
        overlap=0.5,
        tissue_threshold=0.2,
        filtering={"a_t": 4},
        segmentation={"method": "otsu"},
        **{source: tmp_path},
    )
    job = Job(
        model=Model.from_preset("mean", level="tile"),
        samples=(Sample(sample_id="s", image_path=tmp_path / "s.svs"),),
        preprocessing=settings,
        execution=ExecutionOptions(),
        output=tmp_path,
    )
    config, _ = job.config(job.samples, masked=False)
    told = [note.partition(" changes nothing: tiles")[0] for note in config.derived]
    wanted = [
        "PreprocessingConfig.overlap=0.5",
        "PreprocessingConfig.tissue_threshold=0.2",
        "FilterConfig.a_t=4.0",
        *(["SegmentationConfig.method='otsu'"] if source == "read_tiles_from" else []),
    ]
    assert sorted(told) == sorted(wanted)


def test_a_slide_that_cannot_be_opened_is_the_runs(model, placed, cohort, tmp_path):
    folder = placed(FAST)
    execution = ExecutionOptions(output_dir=tmp_path / "again")
    pipeline = Pipeline(model, execution=execution)
    with pytest.warns(RuntimeWarning, match="e: failed at open"):
        result = pipeline.run_with_coordinates(folder, slides=[cohort / "a.svs", cohort / "e.svs"])
    assert np.isfinite(result.tile_artifacts[0].load()).all()
