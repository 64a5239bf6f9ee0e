"""What the room registers: cheap to list, cards that hold for the architectures they describe."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

import pytest

from microtome.plugin.options import configure
from microtome.plugin.specs import RUNTIME

HEAVY = ("torch", "torchvision", "timm", "cv2", "numpy", "huggingface_hub", "safetensors")


def create(registry, name, **options):
    return registry.create(
        "encoder", name, configure(registry.find("encoder", name).spec, **options)
    )


def test_what_is_no_row_of_the_catalogue(registry):
    names = set(registry.names("encoder"))
    rows = {name for name in names if "recipe" in registry.find("encoder", name).spec.fixed}
    assert names - rows == {"handcrafted", "timm", "torchvision"}


def test_listing_imports_no_heavy_library():
    code = (
        "import sys, microtome_encoders as m\n"
        "assert len(list(m.microtome_encoders())) >= 50\n"
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
