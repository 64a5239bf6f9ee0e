"""Needs of slide and patient encoders become tilings and patch encoders, or a refusal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import bag_standins
import pytest
import standins

from microtome.errors import ConfigError, PluginError
from microtome.plugin.options import configure
from microtome.plugin.registry import get_registry
from microtome.run.planning.models import plan_slide_encoders
from microtome.run.planning.plan import make_plan
from microtome.run.planning.solve import solve
from microtome.run.settings import (
    Choice,
    EncoderChoice,
    PatientEncoderChoice,
    RunConfig,
    SlideEncoderChoice,
)
from microtome.run.slides.identities import asked_for
from microtome.slide.types import SlideRef


@pytest.fixture(scope="module")
def plugins():
    """Make the stand-ins part of a registry once: nothing here runs."""
    made = get_registry().copy()
    made.add(standins.Plugins, "standins", "microtome-standins")
    made.add(bag_standins.Plugins, "bag_standins", "microtome-bag-standins")
    assert not made.broken
    return made


@pytest.fixture
def registry(plugins):
    """Give it by the name that it has here."""
    return plugins


@pytest.fixture
def passes(registry):
    """Solve a run of some slide encoders."""

    def make(*slides, patients=(), tiler=None, encoders=(), **more):
        options = configure(registry.find("tiler", "grid").spec, **(tiler or {}))
        config = RunConfig(
            slides=("x.svs",),
            output=Path("out"),
            tiler=Choice(plugin="grid", config=options),
            encoders=tuple(_encoder(registry, each) for each in encoders),
            slide_encoders=tuple(_slide(registry, each) for each in slides),
            patient_encoders=tuple(PatientEncoderChoice(plugin=name) for name in patients),
            **more,
        )
        return solve(config, registry)

    return make


def _encoder(registry, given):
    plugin, key, options = given if isinstance(given, tuple) else (given, given, {})
    config = configure(registry.find("encoder", plugin).spec, **options)
    return EncoderChoice(plugin=plugin, key=key, config=config)


def _slide(registry, given):
    plugin, key, options = given if isinstance(given, tuple) else (given, given, {})
    config = configure(registry.find("slide_encoder", plugin).spec, **options) if options else None
    return SlideEncoderChoice(plugin=plugin, key=key, config=config)


def _tiling(config):
    options = config.tiler.config
    return options.size, options.magnification, options.mpp


def _names(config):
    return [choice.name for choice in config.encoders]


def test_a_run_without_them_is_left_alone(registry):
    config = RunConfig(slides=("x",), output=Path("out"))
    assert solve(config, registry) == (config,)


def test_what_is_missing_is_added_and_told(passes):
    (one,) = passes("nominal")
    assert _tiling(one) == (128, 20, None)
    assert _names(one) == ["mean"]
    assert one.tiling == ""
    assert one.derived == ("Added the encoder mean, 128 px at 20x, for nominal.",)


def test_options_that_are_needed_give_a_key_of_their_own(passes, registry):
    (one,) = passes("nominal", "scaled")
    assert _names(one) == ["mean", "mean_2.0"]
    assert one.encoders[1].config.scale == 2.0
    planned = make_plan(one, registry).slide_encoders
    assert [dict(each.reads) for each in planned] == [{"mean": "mean"}, {"mean_2.0": "mean_2.0"}]


def test_one_tiling_is_shared_and_a_physical_target_meets_a_nominal_one(passes):
    (one,) = passes("nominal", "physical")
    assert _tiling(one) == (128, None, 0.5)
    assert _names(one) == ["mean"]


def test_a_level_is_shared_and_each_slide_held_against_the_needs(passes, registry):
    (one,) = passes("nominal", "coarse", tiler={"level": 1})
    assert _tiling(one) == (128, None, None)
    assert one.tiler.config.level == 1
    assert one.derived[0].startswith("Added the encoder mean, 128 px of level 1, for nominal")
    assert make_plan(one, registry).tiler_fields["level"] == 1


def test_two_tilings_are_two_passes_with_a_folder_each(passes, registry):
    first, second = passes("nominal", "coarse", "pool", encoders=["handcrafted"])
    assert [_tiling(each) for each in (first, second)] == [(128, 20, None), (128, 10, None)]
    assert {each.tiling for each in (first, second)} == {"auto"}
    assert _names(first) == ["mean", "handcrafted"]
    assert _names(second) == ["mean"]
    assert [c.name for c in first.slide_encoders] == ["nominal", "pool"]
    assert [c.name for c in second.slide_encoders] == ["coarse", "pool"]
    assert "2 tilings" in first.derived[-1]
    assert make_plan(second, registry).layout.root == Path("out/10x_128px_0px")


def test_a_pooling_takes_every_feature_set_and_else_the_default(passes, registry):
    (one,) = passes("pool", encoders=["mean", "seeded"])
    assert [e.name for e in make_plan(one, registry).slide_encoders] == ["pool-mean", "pool-seeded"]
    (other,) = passes("pool")
    assert _names(other) == ["handcrafted"]
    assert _tiling(other) == (None, None, None)


def test_a_pooling_of_so_many_columns_passes_others_over(passes, registry):
    (one,) = passes("three", encoders=["handcrafted", "mean"])
    assert [e.name for e in make_plan(one, registry).slide_encoders] == ["three-mean"]
    (none,) = passes("three", encoders=["handcrafted"])
    with pytest.raises(ConfigError, match=r"pools features of 3 columns.*handcrafted"):
        make_plan(none, registry)


def test_an_encoder_of_the_users_own_is_taken_by_what_it_is(passes, registry):
    (one,) = passes("nominal", encoders=[("mean", "mine", {})])
    assert _names(one) == ["mine"]
    (planned,) = make_plan(one, registry).slide_encoders
    assert planned.reads == {"mean": "mine"}


def test_a_seed_is_no_other_encoder_and_overlap_may_be_allowed(passes):
    (one,) = passes("lapped", tiler={"size": 100, "step": 50, "magnification": 20})
    assert _tiling(one) == (100, 20, None)


def test_an_object_may_know_its_needs_better_than_its_spec(passes):
    (one,) = passes("chooser")
    assert _names(one) == ["mean_1.0"]


@pytest.mark.parametrize(
    ("slides", "more", "told"),
    [
        (["nominal"], {"tiler": {"size": 256}}, r"tiler\.size=256\. Leave out tiler\.size=256"),
        (["nominal"], {"tiler": {"magnification": 10}}, r"at 20x .* tiler\.magnification=10"),
        (["nominal"], {"tiler": {"mpp": 0.6}}, r"at 20x .* tiler\.mpp=0\.6"),
        (["physical"], {"tiler": {"magnification": 20}}, r"0\.5 µm/px .* tiler\.magnification=20"),
        (["physical"], {"tiler": {"mpp": 0.53}}, r"0\.5 µm/px .* tiler\.mpp=0\.53"),
        (["nominal"], {"tiler": {"step": 64}}, r"step=64, by which tiles overlap"),
        (["nominal"], {"tiler": {"step": 256}}, r"step=256, by which tiles leave gaps"),
        (["scaled"], {"feature_dtype": "float16"}, r"in float32 .* feature_dtype=float16"),
        (
            ["nominal"],
            {"encoders": [("mean", "mean", {"scale": 3.0})]},
            r"encoder\.mean is that encoder with other options",
        ),
        (["nominal"], {"encoders": [("nan", "mean", {})]}, r"encoder\.mean is nan\. Give it a key"),
        (["nominal", "coarse"], {"tiling": "mine"}, r"tiler\.name=mine names one tiling"),
        (["torn"], {}, r"magnification 10 and 20.*same tiles"),
        (["nominal"], {"task": "coords"}, r"task=coords computes no features"),
    ],
)
def test_a_near_miss_is_refused_with_the_reason(passes, slides, more, told):
    with pytest.raises(ConfigError, match=told):
        passes(*slides, **more)


def test_features_of_other_columns_are_refused(passes, registry):
    (one,) = passes("mismade")
    with pytest.raises(ConfigError, match=r"needs 4 columns of 'mean', and it gives 3"):
        make_plan(one, registry)


def test_an_unsolved_run_says_what_is_missing(registry):
    config = RunConfig(
        slides=("x",),
        output=Path("out"),
        encoders=(),
        slide_encoders=(SlideEncoderChoice(plugin="nominal"),),
    )
    with pytest.raises(ConfigError, match="add encoder=mean"):
        plan_slide_encoders(config, registry, (), [])


def test_an_encoder_that_is_not_there_is_named(passes):
    with pytest.raises(PluginError, match="no slide_encoder named 'titanic'"):
        passes("titanic")


def test_a_patient_encoder_brings_its_slide_encoder(passes, registry):
    (one,) = passes(patients=["of_nominal"])
    assert [c.name for c in one.slide_encoders] == ["nominal"]
    plan = make_plan(one, registry)
    assert [(e.name, e.embeddings) for e in plan.patient_encoders] == [("of_nominal", "nominal")]


def test_a_patient_encoder_of_tiles_has_needs_or_those_of_its_slide_encoder(passes, registry):
    (one,) = passes(patients=["of_tiles", "by_nominal"])
    assert _tiling(one) == (128, 20, None)
    assert one.slide_encoders == ()
    tiles, by_nominal = make_plan(one, registry).patient_encoders
    assert (tiles.name, tiles.embedder) == ("of_tiles", None)
    assert by_nominal.name == "by_nominal-nominal"
    assert by_nominal.embedder.made.spec.name == "nominal"


def test_a_pooling_of_slides_is_made_for_each_slide_encoder_of_each_pass(passes, registry):
    plans = [make_plan(p, registry) for p in passes("nominal", "coarse", patients=["over_slides"])]
    names = [[e.name for e in plan.patient_encoders] for plan in plans]
    assert names == [["over_slides-nominal"], ["over_slides-coarse"]]
    with pytest.raises(ConfigError, match=r"slide_encoder=mean, for instance"):
        passes(patients=["over_slides"])


def test_a_pooling_with_needs_goes_where_they_are_met(passes, registry):
    plans = [make_plan(p, registry) for p in passes("nominal", "coarse", "sized")]
    names = [[e.name for e in plan.slide_encoders] for plan in plans]
    assert names == [["nominal"], ["coarse"], ["sized-handcrafted"]]
    of_three = passes("nominal", "coarse", "three", encoders=["handcrafted"])
    names = [[c.name for c in each.slide_encoders] for each in of_three]
    assert names == [["nominal", "three"], ["coarse", "three"]]
    of_none = passes("nominal", "coarse", "seven")
    with pytest.raises(ConfigError, match=r"pools features of 7 columns.*mean \(3\)"):
        make_plan(of_none[0], registry)
    assert [c.name for c in of_none[1].slide_encoders] == ["coarse"]


def _on_stored(registry, *slides):
    spec = registry.find("tiler", "stored").spec
    return RunConfig(
        slides=("x.svs",),
        output=Path("out"),
        encoders=(),
        tiler=Choice(plugin="stored", config=configure(spec, folder="tiles")),
        slide_encoders=tuple(SlideEncoderChoice(plugin=name) for name in slides),
    )


def test_tiles_that_there_are_stay_one_tiling(registry):
    (one,) = solve(_on_stored(registry, "nominal", "scaled"), registry)
    assert one.derived[0] == "Added the encoder mean, tiles by stored, for nominal."
    assert one.tiling == ""
    with pytest.raises(ConfigError, match=r"at 10x .* tiler=stored, of whose tiles nominal needs"):
        solve(_on_stored(registry, "nominal", "coarse"), registry)


def test_a_model_takes_the_slide_encoder_that_it_was_made_for_whatever_its_key(passes, registry):
    (one,) = passes(("nominal", "mine", {}), patients=["of_nominal"])
    (planned,) = make_plan(one, registry).patient_encoders
    assert (planned.embeddings, planned.name) == ("mine", "of_nominal")
    assert planned.contract == ({"slide_encoder": "nominal", "dim": 3},)
    (one,) = passes(("nominal", "twice", {"times": 2.0}), patients=["of_nominal", "over_slides"])
    assert [c.name for c in one.slide_encoders] == ["twice", "nominal"]
    planned = make_plan(one, registry).patient_encoders
    assert [each.embeddings for each in planned] == ["nominal", "twice", "nominal"]
    assert planned[1].contract == ({"slide_encoder": "nominal", "times": 2.0, "dim": 3},)


@pytest.mark.parametrize("other", [("pool", {}), ("nominal", {"times": 2.0})])
def test_another_model_by_the_key_of_the_one_that_is_needed_is_refused(passes, other):
    plugin, options = other
    with pytest.raises(ConfigError, match=r"of_nominal .* slide_encoder\.nominal is another"):
        passes((plugin, "nominal", options), patients=["of_nominal"])


def test_options_of_the_runs_slide_encoder_hold_inside_a_patient_encoder(passes, registry):
    def embedder(*slides):
        (one,) = passes(*slides, patients=["by_nominal"])
        return make_plan(one, registry).patient_encoders[0].embedder

    assert embedder().made.options.times == 1.0
    assert embedder(("nominal", "nominal", {"times": 3.0})).made.options.times == 3.0
    assert embedder(("pool", "nominal", {})).made.spec.name == "nominal"
    with pytest.raises(ConfigError, match=r"by nominal, which a and b all are"):
        embedder(("nominal", "a", {}), ("nominal", "b", {"times": 2.0}))


def test_what_a_slide_encoder_is_promised_and_given_is_part_of_what_is_asked(passes, registry):
    ref = SlideRef(path=Path("x.svs"), slide_id="x", version="1")
    (one,) = passes("nominal", tiler={"region_tiles": 2})

    def planned(**changes):
        return make_plan(replace(one, **changes), registry)

    plan, before = planned(), asked_for(planned(), ref)
    assert asked_for(plan, ref) == before
    assert plan.slide_encoders[0].contract[0]["coords"] == "level0"
    plan.slide_encoders[0].contract = ({"encoder": "mean", "dim": 4},)
    assert asked_for(plan, ref) != before
    assert asked_for(planned(slide_encoders=()), ref) != before
    assert asked_for(planned(region_features=True), ref) != before
