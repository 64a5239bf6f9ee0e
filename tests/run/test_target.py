"""The run's target: the user's, else the cards', else 256 px at 20x; and what is said of it."""

from __future__ import annotations

import pytest

from microtome.errors import ConfigError
from microtome.plugin import EncoderCard
from microtome.plugin.registry import get_registry
from microtome.run.planning.target import name_tiling, settle_target, target_fields
from microtome.slide import Edge, GridConfig
from microtome.store.identity import describe

UNI = EncoderCard(dim=1, patch_size=256, magnification=20, mpp=0.5)
CONCH = EncoderCard(dim=1, patch_size=512, magnification=20, mpp=0.5)
CTRANSPATH = EncoderCard(dim=1, patch_size=256, magnification=10, mpp=1.0)
PHYSICAL = EncoderCard(dim=1, patch_size=224, mpp=0.5)
NOMINAL = EncoderCard(dim=1, patch_size=224, magnification=20)
UNSIZED = EncoderCard(dim=1, magnification=20)
SILENT = EncoderCard(dim=1)


def settle(cards, **options):
    settled, notes = settle_target(GridConfig(**options), cards)
    return (settled.size, settled.magnification, settled.mpp), notes


def test_nothing_said_is_256_px_at_20x_and_told():
    found, notes = settle({"plain": SILENT})
    assert found == (256, 20, None)
    assert notes == ["Tiles are 256 px at 20x: size and resolution are the default."]


def test_one_card_decides():
    assert settle({"conch": CONCH, "plain": SILENT}) == (
        (512, 20, None),
        ["Tiles are 512 px at 20x: size and resolution are what the encoders' cards say."],
    )


def test_a_card_without_magnification_decides_the_mpp():
    assert settle({"model": PHYSICAL})[0] == (224, None, 0.5)


def test_cards_that_differ_leave_the_default_and_each_misfit_is_told():
    found, notes = settle({"conch": CONCH, "ctranspath": CTRANSPATH})
    assert found == (256, 20, None)
    assert "since the encoders' cards differ" in notes[0]
    assert notes[1:] == [
        "conch was made for 512 px at 20x, the run gives 256 px at 20x.",
        "ctranspath was made for 256 px at 10x, the run gives 256 px at 20x.",
    ]


def test_cards_that_agree_on_the_resolution_only():
    found, notes = settle({"uni": UNI, "conch": CONCH})
    assert found == (256, 20, None)
    assert notes[1:] == ["conch was made for 512 px at 20x, the run gives 256 px at 20x."]


def test_what_the_user_says_holds_without_a_word_where_it_fits():
    assert settle({"uni": UNI}, size=256, magnification=20) == ((256, 20, None), [])
    assert settle({"uni": UNI}, size=256, mpp=0.51) == ((256, None, 0.51), [])


def test_what_the_user_says_holds_with_a_word_where_it_does_not():
    found, notes = settle({"uni": UNI}, size=256, mpp=0.6)
    assert found == (256, None, 0.6)
    assert notes == ["uni was made for 256 px at 20x, the run gives 256 px at 0.6 µm/px."]


@pytest.mark.parametrize("options", [{"magnification": 40}, {"magnification": 20}, {"mpp": 1.02}])
def test_what_else_a_model_was_trained_at_fits_too(options):
    trained = EncoderCard(dim=1, patch_size=224, magnification=20, mpp=0.5, also_mpp=(0.25, 1.0))
    assert settle({"several": trained}, size=224, **options)[1] == []
    (note,) = settle({"several": trained}, size=224, magnification=5)[1]
    assert note == "several was made for 224 px at 20x, the run gives 224 px at 5x."


@pytest.mark.parametrize(
    ("card", "options", "wanted"),
    [
        (PHYSICAL, {"size": 256, "magnification": 20}, "224 px at 0.5 µm/px"),
        (PHYSICAL, {"size": 224, "magnification": 40}, "224 px at 0.5 µm/px"),
        (PHYSICAL, {"size": 224, "mpp": 1.0}, "224 px at 0.5 µm/px"),
        (NOMINAL, {"size": 224, "mpp": 0.25}, "224 px at 20x"),
        (UNSIZED, {"size": 224, "magnification": 10}, "tiles at 20x"),
    ],
)
def test_a_card_of_one_kind_is_held_against_a_target_of_another(card, options, wanted):
    (note,) = settle({"model": card}, **options)[1]
    assert note.startswith(f"model was made for {wanted}, the run gives ")


@pytest.mark.parametrize(
    ("card", "options"),
    [
        (PHYSICAL, {"size": 224, "magnification": 20}),
        (NOMINAL, {"size": 224, "mpp": 0.5}),
        (UNSIZED, {"size": 300, "magnification": 20}),
    ],
)
def test_and_nothing_is_said_where_it_fits(card, options):
    assert settle({"model": card}, **options)[1] == []


def test_of_conch_and_its_successor():
    """Tools give CONCH tiles of 256 px, which was made for 512; its own input has 448."""
    entries = {name: get_registry().find("encoder", name) for name in ("conch_v1", "conch_v15")}
    cards = {name: entry.spec.card for name, entry in entries.items()}
    assert settle(cards) == (
        (512, 20, None),
        ["Tiles are 512 px at 20x: size and resolution are what the encoders' cards say."],
    )
    for size in (256, 448):
        assert settle(cards, size=size, magnification=20)[1] == [
            f"{name} was made for 512 px at 20x, the run gives {size} px at 20x." for name in cards
        ]
    uni = get_registry().find("encoder", "uni_v2").spec.card
    found, notes = settle({"conch_v15": cards["conch_v15"], "uni_v2": uni})
    assert found == (256, 20, None)
    assert notes[1:] == ["conch_v15 was made for 512 px at 20x, the run gives 256 px at 20x."]


def test_only_the_size_is_filled_in():
    assert settle({}, mpp=0.5) == (
        (256, None, 0.5),
        ["Tiles are 256 px at 0.5 µm/px: the size is the default."],
    )


def test_only_the_resolution_is_filled_in():
    assert settle({}, size=128)[1] == ["Tiles are 128 px at 20x: the resolution is the default."]


def test_two_targets_are_refused():
    with pytest.raises(ConfigError, match="two targets"):
        settle({}, magnification=20, mpp=0.5)


def test_the_identity_spells_out_defaults():
    assert target_fields(GridConfig(size=256, magnification=20)) == {
        "size": 256,
        "step": 256,
        "magnification": 20,
        "mpp": None,
    }


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"size": 256, "magnification": 20.0}, "20x_256px_0px"),
        ({"size": 256, "step": 128, "magnification": 2.5}, "2.5x_256px_128px"),
        ({"size": 224, "mpp": 0.5}, "0.5mpp_224px_0px"),
        ({"size": 256, "level": 2}, "level2_256px_0px"),
        ({"size": 256, "level": 0, "step": 128, "edge": Edge.pad}, "level0_256px_128px_edgepad"),
        ({"size": 256, "magnification": 20, "min_tissue": 0.5}, "20x_256px_0px_min_tissue0.5"),
        (
            {"size": 256, "magnification": 20, "edge": Edge.pad, "origin": [64, 0]},
            "20x_256px_0px_edgepad_origin64-0",
        ),
    ],
)
def test_a_tiling_is_named_by_all_that_makes_it(options, name):
    config = GridConfig(**options)
    spec = get_registry().find("tiler", "grid").spec
    assert name_tiling(describe(spec, config) | target_fields(config)) == name


def test_a_tiling_of_another_tiler_has_its_name():
    assert name_tiling({"plugin": "sample", "output_version": 1, "count": 3}) == "sample_count3"
    assert name_tiling({"plugin": "sample", "output_version": 1, "level": 3}) == "sample_level3"
