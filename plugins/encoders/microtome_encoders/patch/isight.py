"""iSight (Huang et al. 2026): CLIP's ViT-L/14 at 336 px, and a projection of its tokens.

Its tokens are taken before CLIP's last norm and projection, which were not trained with the rest.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from microtome_encoders.patch.dense import Anatomy, last_layer
from microtome_encoders.patch.published import PublishedEncoder, State

PARTS = ("patch_encoder.", "visual_token_projection.")
"""What the published names of the layers before the slide's head begin with."""


class Tower(nn.Module):
    """CLIP's image tower and the projection, by their published names."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.patch_encoder = CLIPVisionModelWithProjection(config)
        self.visual_token_projection = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, images: Tensor) -> Tensor:
        """Give the projected tokens of (n, 3, h, w) images, the class token first."""
        output = self.patch_encoder.vision_model(pixel_values=images)
        tokens: Tensor = self.visual_token_projection(output.last_hidden_state)
        return tokens


class ISightEncoder(PublishedEncoder):
    """The tile encoder of iSight."""

    def build(self) -> nn.Module:
        """Make the model with random weights."""
        return Tower(CLIPVisionConfig(**self.recipe.arguments))

    def adapt(self, state: State) -> State:
        """Keep the tile's layers of the training checkpoint; its other layers pool slides."""
        return super().adapt({n: t for n, t in state.items() if n.startswith(PARTS)})

    def anatomy(self, model: nn.Module) -> Anatomy:
        """Say where the projected tokens are."""
        return Anatomy(owner=model, prefix=1, block=last_layer(model))

    def forward(self, model: nn.Module, images: Tensor) -> Tensor:
        """Embed images as the mean of all tokens, or as the class token."""
        tokens: Tensor = model(images)
        return tokens[:, 0] if self.variant == "cls" else tokens.mean(1)
