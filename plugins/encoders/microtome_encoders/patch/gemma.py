"""The vision towers of Gemma 4, by transformers' own classes.

An entry holds the whole language model, of which only the tower's tensors are read.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from microtome.errors import EncoderError
from microtome.plugin.weights.hub import WeightsFile, fetch_hub
from microtome_encoders.patch.dense import TOKENS, Anatomy
from microtome_encoders.patch.published import State
from microtome_encoders.patch.transformers import TransformersEncoder, hidden_states

INDEX = "model.safetensors.index.json"


class GemmaEncoder(TransformersEncoder):
    """A vision tower of Gemma 4: the mean of its soft tokens."""

    def fetch(self) -> WeightsFile:
        """Find the file that holds the tower; where the weights lie in several, their index says.

        Raises:
            EncoderError: If the tower's tensors are in more files than one, which have to be
                brought together first.
        """
        if self.recipe.files != (INDEX,):
            return super().fetch()
        index = fetch_hub(self.name, self.revision, self.recipe.files)
        where: dict[str, str] = json.loads(index.path.read_text("utf-8"))["weight_map"]
        files = sorted({file for n, file in where.items() if n.startswith(self.recipe.prefix)})
        if len(files) != 1:
            raise EncoderError(
                f"The vision tower of {self.name} lies in {len(files)} files ({', '.join(files)}): "
                f"save its tensors in one and give its path, encoder.NAME.weights=PATH."
            )
        return fetch_hub(self.name, index.commit, files)

    def read_tower(self, path: Path) -> State:
        """Read the tower's tensors alone out of a file that may be too large for memory."""
        if path.suffix.lower() != ".safetensors":
            return self.read_file(path)
        prefix = self.recipe.prefix
        try:
            with safe_open(path, "pt") as file:
                names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
                names = names or list(file.keys())
                return {name.removeprefix(prefix): file.get_tensor(name) for name in names}
        except SafetensorError as error:
            raise EncoderError(f"The weights in {path} cannot be read: {error}") from error

    @cached_property
    def gives(self) -> tuple[str, ...]:
        """Its soft tokens: without weights it does not run to find out."""
        return (TOKENS,)

    def anatomy(self, model: nn.Module) -> Anatomy:
        """Say that its tokens are the soft ones: those of all images, one after the other."""
        config: Any = model.config
        side = self._side // (config.patch_size * config.pooling_kernel_size)

        def read(output: Any) -> Tensor:
            tokens = hidden_states(output)
            return tokens.reshape(-1, side, side, tokens.shape[-1])

        return Anatomy(owner=model, read=read)

    def forward(self, model: nn.Module, images: Tensor) -> Tensor:
        """Embed images as the mean of their soft tokens, each of nine patches."""
        side = self.recipe.arguments.get("patch_size", 16)
        rows, columns = (length // side for length in images.shape[-2:])
        cut = images.reshape(len(images), -1, rows, side, columns, side)
        patches = cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        y, x = torch.meshgrid(
            torch.arange(rows, device=images.device),
            torch.arange(columns, device=images.device),
            indexing="ij",
        )
        positions = torch.stack([x.flatten(), y.flatten()], dim=-1).expand(len(images), -1, -1)
        tokens = model(pixel_values=patches, pixel_position_ids=positions).last_hidden_state
        mean: Tensor = tokens.reshape(len(images), -1, tokens.shape[-1]).mean(1)
        return mean
