"""Encoders of one tiny entry on the stand-in hub, and what is told when it cannot be had."""

from __future__ import annotations

import hashlib

import pytest
import timm
import torch

from microtome.errors import EncoderError
from microtome.plugin.specs import EncoderCard, Transform
from microtome_encoders.options import HubConfig, ModelConfig
from microtome_encoders.patch.timm import TimmEncoder
from microtome_encoders.recipe import Recipe

ENTRY = "acme/tiny"


def state(seed, **options):
    """Give random weights of the entry's model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model("test_vit", **options).state_dict()


def row(pinned=None, **options):
    """Make a catalogue row's encoder, pinned by its card or, with ``revision``, by the user."""
    card = EncoderCard(dim=64, hub_id=ENTRY, revision=pinned, transform=Transform())
    recipe = Recipe(architecture="test_vit", card=card, arguments={"dynamic_img_size": True})
    return TimmEncoder(HubConfig(**options), recipe=recipe)


def named(model, **options):
    """Make an encoder by a name of timm's."""
    return TimmEncoder(ModelConfig(model=model, **options))


def sha256(content):
    """Give the hash of bytes."""
    return hashlib.sha256(content).hexdigest()


def offline(monkeypatch):
    """Have the user ask for no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def refused(make, match):
    """Give what an encoder tells when it refuses: one short line."""
    with pytest.raises(EncoderError, match=match) as info:
        make()
    text = str(info.value)
    assert "\n" not in text
    assert len(text) < 500
    return text
