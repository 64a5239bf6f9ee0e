"""What choosing a model means: what it reads, its tiles, its devices, its names."""

from __future__ import annotations

import bag_standins
import numpy as np
import pytest
import standins

import microtome
from microtome import ExecutionOptions, Model, PreprocessingConfig
from microtome.api import choices
from microtome.errors import ConfigError, PluginClashError, PluginError
from microtome.plugin import (
    EncoderCard,
    EncoderSpec,
    PatientEncoderSpec,
    SlideEncoderSpec,
    hookimpl,
)

FAST = PreprocessingConfig(segmentation={"method": "otsu"}, requested_tile_size_px=128)


class Stacked:
    """A patient model of tiles whose slides are embedded by a slide model of the same name."""

    @staticmethod
    @hookimpl
    def microtome_slide_encoders():
        """Register the slide model, and one that runs with torch."""
        for name, requires in (("stacked", ()), ("by_torch", ("torch",))):
            yield SlideEncoderSpec(
                name=name,
                target="bag_standins:Sum",
                summary="A stand-in",
                config=bag_standins.SumConfig,
                needs=(bag_standins.NOMINAL,),
                coords="level0",
                card=EncoderCard(dim=3),
                requires=requires,
            )

    @staticmethod
    @hookimpl
    def microtome_patient_encoders():
        """Register the patient model."""
        yield PatientEncoderSpec(
            name="stacked",
            target="bag_standins:Together",
            summary="A stand-in",
            takes="tiles",
            needs=(bag_standins.NOMINAL,),
            card=EncoderCard(dim=3),
        )


@pytest.fixture
def stacked(plugins):
    """Register them."""
    plugins.add(Stacked, "stacked", "microtome-stacked")
    assert not plugins.broken
    return plugins


def slides(cohort):
    return [{"image_path": cohort / f"{name}.svs", "patient_id": "P"} for name in "ab"]


def test_concat_is_by_the_slide_encoder_that_is_named(plugins, cohort):
    found = {}
    for name in ("mean", "max"):
        model = Model.from_preset("concat", slide_encoder=name, encoder={"mean": {}})
        (patient,) = model.embed_patients(slides(cohort), preprocessing=FAST)
        found[name] = patient.patient_embedding
        assert not patient.slide_embeddings
    tiles = Model.from_preset("mean", level="tile").embed_slides(slides(cohort), preprocessing=FAST)
    every = np.concatenate([slide.tile_embeddings for slide in tiles])
    np.testing.assert_allclose(found["mean"], every.mean(0), rtol=1e-5)
    np.testing.assert_array_equal(found["max"], every.max(0))


def test_concat_gives_slide_embeddings_on_request(plugins, cohort):
    model = Model.from_preset("concat", slide_encoder="max", encoder={"mean": {}})
    execution = ExecutionOptions(save_slide_embeddings=True)
    patient = model.embed_patient(slides(cohort), preprocessing=FAST, execution=execution)
    both = np.stack(list(patient.slide_embeddings.values()))
    np.testing.assert_array_equal(patient.patient_embedding, both.max(0))


def test_concat_is_by_one(plugins):
    with pytest.raises(ConfigError, match="by one slide encoder; slide_encoder= names 2"):
        Model.from_preset("concat", slide_encoder=["mean", "max"])


def test_abmil_is_of_the_encoder_that_is_named(plugins):
    given = {"weights": "random", "hidden": 4}
    options = ExecutionOptions()
    model = Model.from_preset("abmil", encoder="mean", **given)
    assert model.encoder == "mean"
    node = choices.model_options(model, FAST, options)["slide_encoder"]["abmil"]
    assert node["encoder"] == "mean"
    # One with options of its own is not what the bare name means; it is the only one all the same.
    scaled = Model.from_preset("abmil", encoder={"mean": {"scale": 2.0}}, **given)
    assert "encoder" not in choices.model_options(scaled, FAST, options)["slide_encoder"]["abmil"]


def test_a_patient_model_of_tiles_gives_its_slides_by_the_slide_model_of_its_name(stacked, cohort):
    model = Model.from_preset("stacked", level="patient")
    patient = model.embed_patient(slides(cohort), preprocessing=FAST)
    plain = Model.from_preset("stacked", level="slide").embed_slides(
        slides(cohort), preprocessing=FAST
    )
    assert list(patient.slide_embeddings) == ["a", "b"]
    for slide in plain:
        np.testing.assert_array_equal(
            patient.slide_embeddings[slide.sample_id], slide.slide_embedding
        )


def test_slide_embeddings_that_nobody_makes_are_refused(stacked, cohort):
    execution = ExecutionOptions(save_slide_embeddings=True)
    with pytest.raises(ConfigError, match="of_tiles makes a patient's embedding of tiles, without"):
        Model.from_preset("of_tiles").embed_patients(slides(cohort), execution=execution)


@pytest.fixture
def gpus(monkeypatch):
    """Pretend that there are four GPUs."""
    monkeypatch.setattr(choices, "count_gpus", lambda: 4)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mean", {"level": "patient", "slide_encoder": "by_torch"}),
        ("mean", {"level": "patient", "slide_encoder": {"key": {"plugin": "by_torch"}}}),
        ("concat", {"slide_encoder": "by_torch"}),
        ("mean", {"level": "patient", "slide_encoder": "mean", "encoder": "resnet18"}),
        ("by_torch", {}),
    ],
)
def test_what_is_on_top_of_torch_is_spread_over_gpus(stacked, gpus, name, options):
    model = Model.from_preset(name, **options)
    wanted = {"engine": {"local": {"devices": [0, 1]}}}
    assert choices.spread(model, ExecutionOptions(num_gpus=2), 9) == wanted


def test_what_is_on_top_of_no_torch_is_not(stacked, gpus):
    model = Model.from_preset("of_nominal")
    assert choices.spread(model, ExecutionOptions(), 9) == {}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("of_nominal", {}),
        ("by_nominal", {}),
        ("mean", {"level": "patient", "slide_encoder": "nominal"}),
        ("concat", {"slide_encoder": "nominal"}),
        ("nominal", {}),
    ],
)
def test_tiles_are_those_of_the_slide_encoder_below(stacked, name, options):
    card = choices.tile_card(Model.from_preset(name, **options))
    assert (card.patch_size, card.magnification) == (128, 20)


def test_regions_and_pieces_of_tissue_are_counted_in_those_tiles(stacked, cohort):
    settings = PreprocessingConfig(
        segmentation={"method": "otsu"}, requested_region_size_px=256, filtering={"a_t": 1}
    )
    model = Model.from_preset("mean", level="patient", slide_encoder="nominal")
    patient = model.embed_patient(slides(cohort), preprocessing=settings)
    assert patient.patient_embedding.shape == (3,)


@pytest.mark.parametrize(
    ("name", "level", "told"),
    [
        ("gigapath", "slide", "stamp mean prov_gigapath. Ask for prov_gigapath if"),
        ("chief", "slide", "lazyslide means chief_ctranspath"),
        ("resnet50", "tile", "trident means resnet50_trunc"),
    ],
)
def test_our_name_that_is_another_models_elsewhere_says_so(name, level, told):
    with pytest.warns(RuntimeWarning, match=told) as caught:
        model = Model.from_preset(name)
    assert (model.name, model.level) == (name, level)
    assert str(caught[0].message).startswith(f"{name!r} is the {level} model {name} here; ")
    assert caught[0].filename == __file__


def test_the_level_says_which_is_meant(recwarn):
    assert Model.from_preset("gigapath", level="tile").name == "prov_gigapath"
    assert Model.from_preset("gigapath", level="slide").name == "gigapath"
    assert Model.from_preset("prov_gigapath").level == "tile"
    assert Model.from_preset("uni_v2").name == Model.from_preset("uni2").name
    assert not recwarn.list


def test_a_model_tells_of_itself_in_a_line(plugins):
    told = repr(Model.from_preset("virchow_v2", output_variant="cls"))
    assert told.startswith("Model('virchow_v2_cls', level='tile', licence='")
    assert repr(Model.from_preset("of_nominal")) == "Model('of_nominal', level='patient', dim=3)"
    assert repr(Model.from_preset("pool", encoder="mean")) == "Model('pool', level='slide')"


def test_plugins_of_a_notebook_are_registered(fresh_registry, cohort):
    @microtome.register
    class Mine:
        @staticmethod
        @hookimpl
        def microtome_encoders():
            yield EncoderSpec(
                name="mine",
                target="standins:MeanEncoder",
                summary="Mine",
                config=standins.MeanConfig,
                card=EncoderCard(dim=3),
            )

    assert Model.from_preset("mine").embed_slide(cohort / "a.svs").tile_embeddings.shape[1] == 3
    # As when a cell is run again.
    assert microtome.register(Mine) is Mine
    assert microtome.list_models("tile").count("mine") == 1


def test_what_is_no_plugin_is_not_registered(fresh_registry):
    class Clashing:
        @staticmethod
        @hookimpl
        def microtome_encoders():
            yield EncoderSpec(name="resnet18", target="standins:MeanEncoder", summary="Not ours")

    class Broken:
        @staticmethod
        @hookimpl
        def microtome_encoders():
            yield "a name"

    with pytest.raises(PluginError, match="has no plugin in it"):
        microtome.register(standins.MeanEncoder)
    with pytest.raises(PluginError, match="Broken cannot be registered"):
        microtome.register(Broken)
    with pytest.raises(PluginClashError, match="resnet18"):
        microtome.register(Clashing)
