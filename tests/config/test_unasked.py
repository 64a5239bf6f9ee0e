"""What nobody chose is left out of a run of slide encoders, and of no other."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from config_standins import fill, module
from omegaconf import OmegaConf

from microtome.config.nodes import to_run_config
from microtome.config.schema import options_node, plugin_node
from microtome.config.words import unasked_kinds
from microtome.plugin import SlideEncoderSpec
from microtome.plugin.registry import Registry

CHOSEN = {"reader": "openslide", "segmenter": "classic", "tiler": "grid", "engine": "local"}


@pytest.fixture(scope="module")
def registry():
    """Give the stand-ins, and a slide encoder."""
    made = fill(Registry())
    spec = SlideEncoderSpec(name="slides", target="nowhere:Thing", summary="s")
    made.add(module("of_slides", slide_encoders=[spec]), "of_slides", "microtome-of-slides")
    return made


@pytest.fixture
def encoders(registry):
    """Compose a run and give the names of its encoders."""

    def compose(encoder, *, unasked, slides=True):
        nodes = {kind: plugin_node(registry.find(kind, name).spec) for kind, name in CHOSEN.items()}
        nodes["encoder"] = {encoder: plugin_node(registry.find("encoder", encoder).spec)}
        slide_node = plugin_node(registry.find("slide_encoder", "slides").spec)
        nodes["slide_encoder"] = {"slides": slide_node} if slides else {}
        cfg = OmegaConf.create(options_node() | nodes | {"slides": ["a.svs"], "output": "out"})
        run = to_run_config(cfg, registry=registry, unasked=unasked)
        return [choice.name for choice in run.encoders]

    return compose


def test_the_default_alone_is_left_out(encoders):
    assert encoders("handcrafted", unasked={"encoder"}) == []


def test_what_was_asked_for_stays(encoders):
    assert encoders("handcrafted", unasked=()) == ["handcrafted"]
    assert encoders("resnet18", unasked={"encoder"}) == ["resnet18"]  # out of a preset
    assert encoders("handcrafted", unasked={"encoder"}, slides=False) == ["handcrafted"]


@pytest.mark.parametrize(
    ("word", "asked"),
    [
        ("encoder=[a,b]", {"encoder"}),
        ("encoder.handcrafted.batch_size=2", {"encoder"}),
        ("+encoder@encoder.mine=resnet18", {"encoder"}),
        ("encoder_plugin=['x.py']", set()),
        ("slide_encoder=titan", {"slide_encoder"}),
        ("tiler.size=512", set()),
    ],
)
def test_words_are_told_by_their_first_key(word, asked):
    job = SimpleNamespace(overrides=SimpleNamespace(task=[word]))
    kinds = {"inspector", "encoder", "slide_encoder", "patient_encoder", "writer"}
    assert unasked_kinds(job) == kinds - asked
