"""What the room registers: cheap to list, cards that hold for the architectures they describe."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

import pytest

from microtome.plugin.registry import Registry, configure
from microtome.plugin.specs import RUNTIME

HEAVY = ("torch", "torchvision", "timm", "cv2", "numpy", "huggingface_hub", "safetensors")
CATALOGUE = [
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("dinov2_small", "dinov2_base", "dinov2_large", "dinov2_giant"),
    *("uni_v1", "uni_v2", "virchow_v2", "h_optimus_0"),
]


@pytest.fixture(scope="module")
def registry():
    import microtome_encoders

    registry = Registry()
    registry.add(microtome_encoders, "encoders", "microtome")
    assert not registry.broken
    return registry


def create(registry, name, **options):
    return registry.create(
        "encoder", name, configure(registry.find("encoder", name).spec, **options)
    )


def test_names(registry):
    assert set(registry.names("encoder")) == {"handcrafted", "timm", "torchvision", *CATALOGUE}


def test_listing_imports_no_heavy_library():
    code = (
        "import sys, microtome_encoders as m\n"
        "assert len(list(m.microtome_encoders())) >= 16\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_handcrafted_needs_no_torch():
    code = (
        "import sys, numpy as np\n"
        "from microtome.slide.batch import TileBatch\n"
        "from microtome_encoders.patch.handcrafted import HandcraftedEncoder\n"
        "tiles = TileBatch(np.full((1, 64, 64, 3), 200, np.uint8), np.zeros((1, 5), np.int32))\n"
        "print(HandcraftedEncoder().encode(tiles).embedding.shape[0], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "False"]


def test_requirements_end_in_a_pip_command(registry):
    for entry in registry.entries("encoder"):
        assert entry.spec.install.startswith("pip install")
        assert ("torch" in entry.spec.requires) == (entry.spec.name != "handcrafted")


def test_options_are_documented(registry):
    for entry in registry.entries("encoder"):
        for option in fields(entry.spec.config):
            assert option.metadata["help"]


def test_the_place_of_the_weights_is_no_part_of_an_identity(registry):
    spec = registry.find("encoder", "resnet18").spec
    by_name = {option.name: option.metadata for option in fields(spec.config)}
    assert by_name["weights"].get(RUNTIME)
    assert not by_name["seed"].get(RUNTIME)
    spec = registry.find("encoder", "uni_v2").spec
    (revision,) = (option for option in fields(spec.config) if option.name == "revision")
    assert revision.metadata.get(RUNTIME)


@pytest.mark.parametrize("name", CATALOGUE)
def test_card_holds_for_the_architecture(registry, name):
    torch = pytest.importorskip("torch")
    encoder = create(registry, name, weights="random")
    card = registry.find("encoder", name).spec.card
    assert encoder.card == card
    with torch.device("meta"):
        model = encoder.build()
        images = torch.empty(2, 3, card.input_size, card.input_size)
    assert encoder.forward(model.eval(), images).shape == (2, card.dim)
    assert sum(parameter.numel() for parameter in model.parameters()) == card.params
    assert card.transform.crop in (card.input_size, None)
    assert card.licence
    assert card.paper


@pytest.mark.parametrize("name", [n for n in CATALOGUE if n.startswith("resnet")])
def test_transform_is_torchvisions_own(registry, name):
    models = pytest.importorskip("torchvision.models")
    preset = models.get_model_weights(name)["IMAGENET1K_V1"].transforms()
    transform = registry.find("encoder", name).spec.card.transform
    assert [transform.resize] == preset.resize_size
    assert [transform.crop] == preset.crop_size
    assert transform.interpolation == preset.interpolation.value
    assert (list(transform.mean), list(transform.std)) == (preset.mean, preset.std)


@pytest.mark.parametrize("name", [n for n in CATALOGUE if n.startswith("dinov2")])
def test_dinov2_normalisation_and_filter_are_timms(registry, name):
    timm = pytest.importorskip("timm")
    spec = registry.find("encoder", name).spec
    config = timm.get_pretrained_cfg(spec.fixed["recipe"].architecture)
    assert config.hf_hub_id == spec.card.hub_id
    assert (config.mean, config.std) == (spec.card.transform.mean, spec.card.transform.std)
    assert config.interpolation == spec.card.transform.interpolation


def test_virchow_variants(registry):
    torch = pytest.importorskip("torch")
    from microtome_encoders.options import Variant

    both = create(registry, "virchow_v2", weights="random")
    cls = create(registry, "virchow_v2", weights="random", variant=Variant.cls)
    assert (both.card.dim, cls.card.dim) == (2560, 1280)
    assert cls.card.pooling == "class token"

    class Tokens(torch.nn.Module):
        num_prefix_tokens = 5  # the class token and four registers

        def forward(self, images):
            return images

    tokens = torch.arange(2 * 9 * 3, dtype=torch.float32).view(2, 9, 3)
    joined = both.forward(Tokens(), tokens)
    assert torch.equal(joined[:, :3], tokens[:, 0])
    assert torch.equal(joined[:, 3:], tokens[:, 5:].mean(1))
    assert torch.equal(cls.forward(Tokens(), tokens), tokens[:, 0])


def test_weights_that_torchvision_pins_are_named_without_a_download(registry):
    pytest.importorskip("torch")
    assert create(registry, "resnet50").weights() == {
        "weights": "torchvision/resnet50",
        "revision": "IMAGENET1K_V1",
    }


def test_options_become_a_configuration_schema(registry):
    omegaconf = pytest.importorskip("omegaconf")
    for entry in registry.entries("encoder"):
        node = omegaconf.OmegaConf.structured(entry.spec.config)
        assert omegaconf.OmegaConf.to_object(node) == configure(entry.spec)
    node = omegaconf.OmegaConf.structured(registry.find("encoder", "virchow_v2").spec.config)
    node.variant = "cls"
    with pytest.raises(omegaconf.ValidationError):
        node.variant = "mean"
