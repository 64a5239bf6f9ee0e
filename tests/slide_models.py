"""Code of hub entries as their publishers wrote its signatures, over networks of a few numbers.

Each model notes in ``calls`` what it is called with.
"""

from __future__ import annotations

import json

from safetensors.torch import save

CONFIGURATION = """
from transformers import PretrainedConfig

class TinyConfig(PretrainedConfig):
    model_type = "tiny_slide"

    def __init__(self, width=4, dim=6, text_decoder_model_id="", **kwargs):
        self.width, self.dim = width, dim
        self.text_decoder_model_id = text_decoder_model_id
        super().__init__(**kwargs)
"""
HEAD = """
import torch
from torch import nn
from transformers import AutoConfig, GPT2Tokenizer, PreTrainedModel, PreTrainedTokenizerFast

from .configuration_tiny import TinyConfig


class Base(PreTrainedModel):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.calls = []
        self.make(config)
        self.post_init()

    def _init_weights(self, module):
        pass

    def note(self, **arguments):
        self.calls.append({**arguments, "autocast": torch.is_autocast_enabled("cpu")})
"""
TITAN = """
class TinyModel(Base):
    def make(self, config):
        self.proj = nn.Linear(config.dim, config.width)
        self.text_encoder = nn.Linear(3, 3)
        self.text_encoder.tokenizer = PreTrainedTokenizerFast.from_pretrained("MahmoodLab/TITAN")

    def encode_slide_from_patch_features(self, patch_features, patch_coords, patch_size_lv0):
        self.note(features=patch_features, coords=patch_coords, size=patch_size_lv0)
        grid = torch.zeros(1, patch_features.size(-1))
        cells = torch.zeros(patch_features.size(1), dtype=torch.int64)
        grid.index_add_(0, cells, patch_features[0])
        places = torch.floor_divide(patch_coords - patch_coords.min(1).values, patch_size_lv0)
        return self.proj(grid) + places.sum()
"""
PRISM = """
class TinyModel(Base):
    def make(self, config):
        layer = nn.Linear(config.dim, config.width)
        self.layers = nn.ModuleList([layer, layer])
        self.text_decoder = nn.Linear(3, 3)
        self.text_decoder.tokenizer = GPT2Tokenizer.from_pretrained(
            "microsoft/biogpt", revision="eb0d815e95434dc9e3b78f464e52b899bee7d923"
        )

    def slide_representations(self, tile_embeddings, tile_mask=None):
        self.note(features=tile_embeddings, mask=tile_mask)
        latents = self.layers[1](tile_embeddings)[:, :3]
        return {"image_embedding": latents.mean(1), "image_latents": latents}
"""
PRISM2 = """
class TinyModel(Base):
    def make(self, config):
        self.image_resampler = nn.Linear(config.dim, config.width)
        self.img_projection = nn.Linear(config.width, config.width + 1)
        self.text_decoder = nn.Linear(config.width + 1, config.width + 1)
        self.told = AutoConfig.from_pretrained(config.text_decoder_model_id).hidden_size

    def get_base_embedding(self, tile_embeddings=None, attention_mask=None):
        self.note(features=tile_embeddings, mask=attention_mask)
        return self.image_resampler(tile_embeddings).mean(1)

    def get_diagnostic_embedding(self, tile_embeddings=None, attention_mask=None):
        self.note(features=tile_embeddings, mask=attention_mask)
        read = self.img_projection(self.image_resampler(tile_embeddings).mean(1))
        return self.text_decoder(read)
"""
FEATHER = """
class Pooling(nn.Module):
    def __init__(self, dim, width):
        super().__init__()
        self.patch_embed = nn.Linear(dim, width)
        self.global_attn = nn.Linear(width, 1)
        self.classifier = nn.Linear(width, 2)

    def forward_features(self, h, attn_mask=None, return_attention=True):
        self.noted(features=h, mask=attn_mask)
        h = self.patch_embed(h)
        scores = self.global_attn(h).transpose(-2, -1)
        return (scores.softmax(-1) @ h).flatten(1), {"attention": scores}


class TinyModel(Base):
    def make(self, config):
        self.model = Pooling(config.dim, config.width)
        self.model.noted = self.note
        self.forward_features = self.model.forward_features
"""
CARE = """
from types import SimpleNamespace


class TinyModel(Base):
    def make(self, config):
        self.proj = nn.Linear(config.dim, config.width)

    def forward(self, x, N_values, coords):
        self.note(features=x, count=N_values, coords=coords)
        return SimpleNamespace(wsi_embedding=self.proj(x).mean(1) + coords.sum(), aux_loss=0.0)
"""


def publish(hub, entry, code, state, **more):
    """Publish a stand-in and give its commit.

    Args:
        hub: The stand-in hub.
        entry: The entry's name.
        code: Of its model.
        state: Its weights, in one file if they are tensors by name, else files by name.
        more: Further files, with __ for a dot.
    """
    config = {"model_type": "tiny_slide", "text_decoder_model_id": PHI3}
    config["auto_map"] = {
        "AutoConfig": "configuration_tiny.TinyConfig",
        "AutoModel": "modeling_tiny.TinyModel",
    }
    return hub.commit(
        entry,
        config__json=json.dumps(config).encode(),
        configuration_tiny__py=CONFIGURATION.encode(),
        modeling_tiny__py=(HEAD + code).encode(),
        **(state and {"model__safetensors": save(state, metadata={"format": "pt"})}),
        **more,
    )


PHI3 = "microsoft/Phi-3-mini-128k-instruct"
