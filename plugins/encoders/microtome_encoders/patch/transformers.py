"""Models of the transformers library whose architecture is the library's own.

The architecture is built from the row's configuration, so neither random weights nor a file by its
path need a network. Published names differ from those of the library's present release, which
knows how to convert them, so it loads them itself; what it could not place is refused here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from logging import CRITICAL
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.utils import logging

from microtome.errors import EncoderError
from microtome.plugin.weights.hub import WeightsFile, fetch_hub
from microtome_encoders.patch.dense import Anatomy, last_layer
from microtome_encoders.patch.published import PublishedEncoder, State

OPTIONS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"ViTModel": MappingProxyType({"add_pooling_layer": False})}
)
"""What a class is given besides its configuration."""

SILENT = ("hidden_act", "layer_norm_eps", "num_attention_heads", "rope_theta")
"""What changes features but neither the name nor the shape of any tensor."""


WITHOUT_CLASS_TOKEN = ("SiglipVisionModel",)
"""The classes whose tokens are those of patches alone."""


def hidden_states(output: Any) -> Tensor:
    """Give (n, tokens, dim), all tokens as the model norms them."""
    tokens: Tensor = output.last_hidden_state
    return tokens


def class_token(output: Any, model: nn.Module) -> Tensor:
    """Give the class token."""
    token: Tensor = output.last_hidden_state[:, 0]
    return token


def class_and_mean(output: Any, model: nn.Module) -> Tensor:
    """Give the class token, then the mean of the patch tokens, without registers."""
    first = 1 + getattr(model.config, "num_register_tokens", 0)
    patches = output.last_hidden_state[:, first:].mean(1)
    return torch.cat([class_token(output, model), patches], dim=-1)


def pooled(output: Any, model: nn.Module) -> Tensor:
    """Give what the model's own head makes of its tokens."""
    embedding: Tensor = output.pooler_output
    return embedding


def projected(output: Any, model: nn.Module) -> Tensor:
    """Give the image's vector in the space that it shares with text."""
    embedding: Tensor = output.image_embeds
    return embedding


POOLINGS: Mapping[str, Callable[[Any, nn.Module], Tensor]] = MappingProxyType(
    {
        "cls": class_token,
        "cls_mean": class_and_mean,
        "pooler": pooled,
        "projected": projected,
    }
)
"""How an output becomes (n, dim), by the name of a variant or of a recipe's pooling."""


class TransformersEncoder(PublishedEncoder):
    """A vision model of transformers, by its class and configuration."""

    def build(self) -> nn.Module:
        """Make the model with random weights."""
        kind = self._kind()
        model: nn.Module = kind(self._config(kind), **OPTIONS.get(self.recipe.architecture, {}))
        return model

    def fetch(self) -> WeightsFile:
        """Find the published weights and their configuration, or download both.

        Raises:
            EncoderError: If the weights cannot be had, or their configuration says something else
                than the row, in a way that would not show in the weights.
        """
        weights = super().fetch()
        try:
            said = fetch_hub(self.name, weights.commit, ["config.json"])
        except EncoderError as error:
            self.notes = [f"The configuration of {self.name} could not be looked at: {error}"]
        else:
            self._compare(json.loads(said.path.read_text("utf-8")))
        return weights

    def _compare(self, said: Mapping[str, Any]) -> None:
        """Hold what a hub entry says of its model against what is built here."""
        said = said.get("vision_config") or said
        built = self._config(self._kind())
        for key in SILENT:
            ours = getattr(built, key, None)
            if None not in (ours, said.get(key)) and said[key] != ours:
                raise EncoderError(
                    f"The hub entry {self.name} says {key}={said[key]} of its model, where "
                    f"{ours} is known here, so its features would be others: give the commit that "
                    f"you mean, encoder.NAME.revision=COMMIT, or a file, encoder.NAME.weights=PATH."
                )

    def build_pretrained(self, path: Path) -> nn.Module:
        """Make the model with the weights of its hub entry."""
        return self._load(self.adapt(self.read_tower(path)), self.name)

    def fit_file(self, model: nn.Module, path: Path, where: str) -> None:
        """Load a file of weights in the published layout, or in the model's own."""
        loaded = self._load(self.adapt(self.read_tower(path)), where)
        model.load_state_dict(loaded.state_dict(), assign=True)

    def read_tower(self, path: Path) -> State:
        """Read a file of weights, as far as the image tower is concerned."""
        return self.read_file(path)

    def adapt(self, state: State) -> State:
        """Drop what belongs to text; the library takes the tower's prefix off itself."""
        dropped = tuple(f"{name}." for name in self.recipe.removed)
        return {
            name: value
            for name, value in state.items()
            if name not in self.recipe.removed and not name.startswith(dropped)
        }

    def anatomy(self, model: nn.Module) -> Anatomy | None:
        """Say where the normed tokens are: of a CLIP, before the projection."""
        if self.recipe.architecture in WITHOUT_CLASS_TOKEN:
            return Anatomy(owner=model, read=hidden_states)
        tower: Any = model.vision_model if hasattr(model, "visual_projection") else model
        norm = getattr(tower, "post_layernorm", None)  # a CLIP itself norms the class token alone
        return Anatomy(
            owner=model,
            read=hidden_states if norm is None else lambda output: norm(hidden_states(output)),
            prefix=1 + getattr(model.config, "num_register_tokens", 0),
            block=last_layer(tower),
        )

    def forward(self, model: nn.Module, images: Tensor) -> Tensor:
        """Embed images as the recipe, or the variant, pools them."""
        pool = POOLINGS[self.variant or self.recipe.pooling]
        return pool(model(pixel_values=images), _uncompiled(model))

    def _kind(self) -> Any:
        return getattr(transformers, self.recipe.architecture)

    def _config(self, kind: Any) -> Any:
        return kind.config_class(**self.recipe.arguments)

    def _load(self, state: State, where: str) -> nn.Module:
        kind = self._kind()
        with quiet():
            try:
                model, found = kind.from_pretrained(
                    None,
                    config=self._config(kind),
                    state_dict=state,
                    output_loading_info=True,
                    dtype=torch.float32,
                    **OPTIONS.get(self.recipe.architecture, {}),
                )
            except RuntimeError as error:  # tensors of other shapes
                raise _misfit(kind, where, "tensors of another shape") from error
        check_loaded(kind, found, where)
        loaded: nn.Module = model
        return loaded


def check_loaded(kind: type, found: Mapping[str, Any], where: str) -> None:
    """Refuse what the library could not place.

    Args:
        kind: The model's class.
        found: What the library says of the tensors that it loaded.
        where: The file or hub entry.

    Raises:
        EncoderError: If tensors are missing, unknown or of another shape; says which.
    """
    named = (("missing_keys", "missing"), ("unexpected_keys", "unknown"))
    problems = [
        f"{len(found[key])} {what} ({', '.join(sorted(found[key])[:4])})"
        for key, what in (*named, ("mismatched_keys", "of another shape"))
        if found.get(key)
    ]
    if problems:
        raise _misfit(kind, where, "; ".join(problems))


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the library's bars and reports off the terminal: what matters is raised."""
    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity(CRITICAL)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _misfit(kind: type, where: str, problems: str) -> EncoderError:
    return EncoderError(
        f"The weights in {where} do not fit {kind.__name__}: {problems}. They are another model's, "
        f"or an incomplete one's."
    )


def _uncompiled(model: nn.Module) -> nn.Module:
    inner: nn.Module = getattr(model, "_orig_mod", model)
    return inner
