"""Models by name: ours, other tools', of which level, and what they refuse."""

from __future__ import annotations

import warnings

import pytest
import standins

import microtome
from microtome import ExecutionOptions, Model, PreprocessingConfig
from microtome.errors import ConfigError, PluginError, UnknownPluginError
from microtome.plugin import EncoderCard, EncoderSpec, PatientEncoderSpec, hookimpl
from microtome.plugin.registry import Broken


class Named:
    """Models with names elsewhere."""

    @staticmethod
    @hookimpl
    def microtome_encoders():
        """Register three."""
        for name, names in (
            ("one", {"slide2vec": "shared-name", "trident": "uno"}),
            ("two", {"trident": "shared-name"}),
            ("both", {"slide2vec": "both"}),
        ):
            yield EncoderSpec(
                name=name,
                target="standins:MeanEncoder",
                summary="A stand-in",
                config=standins.MeanConfig,
                names=names,
                card=EncoderCard(dim=3, patch_size=64, magnification=20, precision="fp16"),
            )

    @staticmethod
    @hookimpl
    def microtome_patient_encoders():
        """Register one of a name that a tile model has."""
        yield PatientEncoderSpec(name="both", target="bag_standins:Together", summary="A stand-in")


@pytest.fixture
def named(plugins):
    plugins.add(Named, "named", "microtome-named")
    assert not plugins.broken
    return plugins


def test_the_level_is_the_kind_of_plugin(plugins):
    assert Model.from_preset("handcrafted").level == "tile"
    assert Model.from_preset("nominal").level == "slide"
    assert Model.from_preset("of_tiles").level == "patient"


def test_list_models_lists_each_level(plugins):
    assert "handcrafted" in microtome.list_models("tile")
    assert "nominal" in microtome.list_models("slide")
    assert "of_tiles" in microtome.list_models("patient")
    every = microtome.list_models()
    assert every == sorted(every)
    assert {"handcrafted", "nominal", "of_tiles"} <= {*every}
    with pytest.raises(ValueError, match="level='region' is not one of tile, slide, patient"):
        microtome.list_models("region")


def test_a_broken_plugin_is_a_warning(plugins):
    plugins.broken.append(Broken("acme", "acme-models", "No module named 'acme'"))
    with pytest.warns(RuntimeWarning, match="acme of acme-models: No module named 'acme'"):
        assert "handcrafted" in microtome.list_models()


@pytest.mark.parametrize("name", ["uno", "UNO", "one", "One"])
def test_names_of_other_tools_are_ours(named, name):
    assert Model.from_preset(name).name == "one"


def test_spelling_does_not_matter():
    assert Model.from_preset("UNI-v2", device="cpu").name == "uni_v2"


def test_an_ambiguous_name_says_what_it_means(named):
    with pytest.raises(ConfigError, match=r"one \(slide2vec\) and two \(trident\)"):
        Model.from_preset("shared_name")


def test_a_name_of_several_levels_is_asked_about(named):
    with pytest.raises(ConfigError, match="say which, level='tile', level='slide' and level"):
        Model.from_preset("mean")
    assert Model.from_preset("mean", level="slide", encoder="handcrafted").level == "slide"
    # Where one tool knows it by that name, its word counts.
    assert Model.from_preset("both").level == "tile"


def test_an_unknown_name_has_a_near_one():
    with pytest.raises(UnknownPluginError, match="Near it are 'handcrafted'"):
        Model.from_preset("handcraftet")


def test_options_are_checked_at_once(plugins):
    with pytest.raises(PluginError, match="no option of encoder seeded named 'sede'"):
        Model.from_preset("seeded", sede=3)
    with pytest.raises(ValueError, match="device=gpu is not"):
        Model.from_preset("handcrafted", device="gpu")
    with pytest.raises(ValueError, match="precision=half is not one of"):
        Model.from_preset("handcrafted", precision="half")


def test_a_pooling_reads_one_encoder(plugins):
    with pytest.raises(ConfigError, match="gives one embedding"):
        Model.from_preset("pool", encoder=["handcrafted", "seeded"])


def test_an_output_variant_is_the_option_variant():
    model = Model.from_preset("virchow_v2", output_variant="cls")
    assert model.options["variant"] == "cls"
    assert model.key == "virchow_v2_cls"
    with pytest.raises(ValueError, match="handcrafted has one embedding"):
        Model.from_preset("handcrafted", output_variant="cls")


def test_the_default_variant_has_no_other_key():
    assert Model.from_preset("virchow_v2").key == "virchow_v2"


def test_the_dimension_is_known_before_loading(plugins):
    assert Model.from_preset("handcrafted").feature_dim == 67
    assert Model.from_preset("nominal").feature_dim == 3
    with pytest.raises(ConfigError, match="as many columns as what it pools"):
        _ = Model.from_preset("pool", encoder="handcrafted").feature_dim


def test_a_models_file_brings_models(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from microtome.plugin import EncoderCard, EncoderSpec, hookimpl\n"
        "@hookimpl\n"
        "def microtome_encoders():\n"
        "    yield EncoderSpec(name='mine', target='standins:MeanEncoder', summary='Mine',\n"
        "                      card=EncoderCard(dim=3))\n"
    )
    assert Model.from_preset("mine", encoder_plugin=file).feature_dim == 3
    with pytest.raises(UnknownPluginError):
        Model.from_preset("mine")


def test_settings_away_from_the_card_are_refused(named, cohort):
    model = Model.from_preset("one", device="cpu")
    for settings, told in (
        ({"requested_tile_size_px": 128}, "made for 64 px at 20x, the run gives 128 px"),
        ({"requested_spacing_um": 2.0}, "made for 64 px at 20x, the run gives 64 px at 2"),
    ):
        with pytest.raises(ValueError, match=told) as caught:
            model.embed_slide(cohort / "a.svs", preprocessing=PreprocessingConfig(**settings))
        assert "allow_non_recommended_settings=True" in str(caught.value)


def test_settings_near_the_card_are_none_of_these(named, cohort):
    model = Model.from_preset("one", device="cpu")
    settings = PreprocessingConfig(
        segmentation={"method": "otsu"}, requested_spacing_um=0.5, requested_tile_size_px=64
    )
    assert model.embed_slide(cohort / "a.svs", preprocessing=settings).tile_size_lv0 == 128


def test_precision_away_from_the_card_is_refused(named, cohort):
    execution = ExecutionOptions(precision="bf16")
    with pytest.raises(ValueError, match="one was made for fp16, and precision='bf16'"):
        Model.from_preset("one").embed_slide(cohort / "a.svs", execution=execution)


def test_other_settings_are_allowed_by_choice(named, cohort):
    model = Model.from_preset("one", device="cpu", allow_non_recommended_settings=True)
    settings = PreprocessingConfig(segmentation={"method": "otsu"}, requested_tile_size_px=128)
    assert model.embed_slide(cohort / "a.svs", preprocessing=settings).tile_size_lv0 == 256


def test_what_a_slide_model_needs_is_needed_all_the_same(plugins, cohort):
    model = Model.from_preset("nominal", allow_non_recommended_settings=True)
    with pytest.raises(ValueError, match="slide_encoder=nominal"):
        model.embed_slide(
            cohort / "a.svs", preprocessing=PreprocessingConfig(requested_tile_size_px=256)
        )


def test_each_method_has_its_levels(plugins, cohort):
    slide = cohort / "a.svs"
    with pytest.raises(ValueError, match="embed_patients needs a model of patient level"):
        Model.from_preset("handcrafted").embed_patients([slide])
    with pytest.raises(ValueError, match="embed_patient needs a model of patient level"):
        Model.from_preset("nominal").embed_patient([slide])
    with pytest.raises(ValueError, match="call embed_patients"):
        Model.from_preset("of_tiles").embed_slides([slide])
    with pytest.raises(ValueError, match="aggregate_tiles needs a model of slide level"):
        Model.from_preset("handcrafted").aggregate_tiles([])


def test_nothing_is_warned_of_without_reason():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        microtome.list_models("slide")
