"""Image towers of open_clip, each with its projection.

Only the tower is built: a text tower may need files of its own from the hub. Where weights were
trained with QuickGELU, the architecture's name says ``-quickgelu``; open_clip itself would build
OpenAI's under the plain name with another activation, and only warn.
"""

from __future__ import annotations

from typing import Any

import open_clip
from open_clip.model import _build_vision_tower
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import normalize

from microtome.errors import EncoderError
from microtome_encoders.patch.dense import Anatomy, channels_last, last_layer, timm_anatomy
from microtome_encoders.patch.published import PublishedEncoder


class OpenClipEncoder(PublishedEncoder):
    """An image tower of open_clip, by the name of its architecture or by its configuration."""

    def build(self) -> nn.Module:
        """Make the image tower with random weights."""
        # There is no public way to build a tower alone.
        config = self._config()
        quick = config.get("quick_gelu", False)
        tower: nn.Module = _build_vision_tower(config["embed_dim"], config["vision_cfg"], quick)
        return tower

    def forward(self, model: nn.Module, images: Tensor) -> Tensor:
        """Embed images in the space that they share with text."""
        out = model(images)
        embedding: Tensor = out[0] if isinstance(out, tuple) else out
        return normalize(embedding, dim=-1) if self.recipe.pooling == "normalised" else embedding

    def anatomy(self, model: nn.Module) -> Anatomy | None:
        """Say where the normed tokens, or the last feature map, are: before the projection."""
        if isinstance(model, TimmModel):
            return timm_anatomy(model.trunk)
        if isinstance(model, ModifiedResNet):
            return Anatomy(owner=model.layer4, read=channels_last)
        if not isinstance(model, VisionTransformer) or model.attn_pool is not None:
            return None  # queries of a pooler are no grid
        return Anatomy(owner=model.ln_post, prefix=1, block=last_layer(model))

    def _config(self) -> dict[str, Any]:
        if self.recipe.arguments:
            return dict(self.recipe.arguments)
        config: dict[str, Any] | None = open_clip.get_model_config(self.recipe.architecture)
        if config is None:
            raise EncoderError(
                f"open_clip {open_clip.__version__} has no architecture "
                f"{self.recipe.architecture}, which {self.name} needs: upgrade open_clip_torch."
            )
        return config
