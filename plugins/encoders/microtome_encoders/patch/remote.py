"""Models whose architecture is code in their hub entry: it runs only at a commit that is pinned.

The code, its configuration and the weights are fetched as files of that commit, and loaded from
there: the library is given a folder, so that it asks no network, and nothing runs that this commit
does not hold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.dynamic_module_utils import get_relative_imports

from microtome.errors import EncoderError
from microtome.plugin.specs import Transform
from microtome.plugin.weights.hub import NAMES, WeightsFile, fetch_hub
from microtome_encoders.patch.dense import TOKENS, Anatomy
from microtome_encoders.patch.published import PublishedEncoder, PublishedModel
from microtome_encoders.patch.transformers import (
    check_loaded,
    class_and_mean,
    class_token,
    hidden_states,
    quiet,
)

COMMIT = re.compile("[0-9a-f]{40}")
CODE_FAILURES = (
    ImportError,
    AttributeError,
    TypeError,
    ValueError,
    KeyError,
    RuntimeError,
    OSError,
)
"""What code of another can raise where it does not run."""
_CLASSES = ("AutoConfig", "AutoModel")
_SAME_COLOUR = 0.001

CALLS: Mapping[str, Callable[[Any, Tensor], Tensor]] = MappingProxyType(
    {
        "output": lambda model, images: model(images),
        "pooler": lambda model, images: model(pixel_values=images).pooler_output,
        "image": lambda model, images: model.encode_image(images)[0],
        "cls": lambda model, images: class_token(model(pixel_values=images), model),
        "cls_mean": lambda model, images: class_and_mean(model(pixel_values=images), model),
    }
)
"""How (n, dim) comes out of a model, by the name of a variant or of a recipe's pooling."""
SEQUENCES = ("cls", "cls_mean", "pooler")
"""Those of models that give their normed tokens in the same call: class token, registers, patches.
"""


class RemoteModel(PublishedModel):
    """A model that its hub entry's own code builds."""

    @property
    def commit(self) -> str:
        """The commit whose code may run.

        Raises:
            EncoderError: If none is pinned: a branch may hold other code tomorrow.
        """
        revision = self.revision or ""
        if COMMIT.fullmatch(revision):
            return revision
        why = f"{revision} may come to hold other code" if revision else "none is known here"
        raise EncoderError(
            f"{self.name} is built by code of its hub entry, which only runs at a commit that is "
            f"pinned, and {why}: look at the code and give its commit, "
            f"encoder.NAME.revision=COMMIT of 40 hexadecimal digits."
        )

    @cached_property
    def code(self) -> Sequence[Path]:
        """The commit's configuration and its modules, in one folder of the hub's cache."""
        files = [fetch_hub(self.name, self.commit, ["config.json"]).path]
        classes = json.loads(files[0].read_text("utf-8")).get("auto_map") or {}
        if missing := [key for key in _CLASSES if key not in classes]:
            raise EncoderError(
                f"The config.json of {self.name} at {self.commit[:8]} names no code for "
                f"{' and '.join(missing)}: give a commit that does, encoder.NAME.revision=COMMIT."
            )
        wanted = [classes[key].rpartition(".")[0] for key in _CLASSES]
        known: set[str] = set()
        while wanted:
            module = wanted.pop()
            if "--" in module:
                raise EncoderError(
                    f"{self.name} wants code of another hub entry, {module.split('--')[0]}, which "
                    f"its commit does not pin, so it is not run."
                )
            if module not in known:
                known.add(module)
                files.append(fetch_hub(self.name, self.commit, [f"{module}.py"]).path)
                wanted += get_relative_imports(files[-1])
        return files

    @property
    def folder(self) -> Path:
        """Where the commit's files are, in a folder of its name."""
        return self.code[0].parent

    def fetch(self) -> WeightsFile:
        """Find the weights of the commit, or download them."""
        return fetch_hub(self.name, self.commit, self.recipe.files or NAMES)

    def files(self) -> Sequence[Path]:
        """Find or download the code, which every weights need, and the weights."""
        return (*self.code, *super().files())

    def weights(self) -> Mapping[str, str]:
        """Say which weights these are, and which commit's code runs them, which is fetched too."""
        return {"code": self.folder.name, **super().weights()}

    def load(self, device: str, precision: str) -> None:
        """Load the weights into what the code builds.

        Raises:
            EncoderError: As for every encoder of torch; if no commit is pinned, or its code does
                not run here or wants other colours than the card says.
        """
        super().load(device, precision)
        self.loaded_weights = {**self.loaded_weights, "code": self.commit}

    def build(self) -> nn.Module:
        """Make the model with random weights."""
        folder = self.folder
        with self.running():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
            model: nn.Module = AutoModel.from_config(  # type: ignore[no-untyped-call]
                config, trust_remote_code=True
            )
        self.compare(config)
        return model.float()

    def build_pretrained(self, path: Path) -> nn.Module:
        """Make the model with the weights beside its code."""
        folder = self.folder
        with self.running():
            model, found = AutoModel.from_pretrained(
                folder, trust_remote_code=True, output_loading_info=True, dtype=torch.float32
            )
        # What such a model leaves aside is its own affair; what it lacks would be random.
        check_loaded(type(model), {**found, "unexpected_keys": []}, self.name)
        self.compare(model.config)
        loaded: nn.Module = model
        return loaded

    def compare(self, config: Any) -> None:
        """Hold what a configuration says of its model against what is known of it here."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Say whose code it is that does not run here."""
        try:
            with quiet():
                yield
        except EncoderError:  # it cannot be had
            raise
        except CODE_FAILURES as error:
            raise EncoderError(
                f"The code of {self.name} at {self.commit[:8]} does not run with transformers "
                f"{transformers.__version__}: {' '.join(str(error).split())[:300]}"
            ) from error


class RemoteEncoder(RemoteModel, PublishedEncoder):
    """A model of tiles that its hub entry's own code builds."""

    def compare(self, config: Any) -> None:
        """Hold the colours that a configuration may say against the card's."""
        transform = self.card.transform or Transform()
        for key, ours in (("pixel_mean", transform.mean), ("pixel_std", transform.std)):
            said = getattr(config, key, None) or ours
            if max(abs(a - b) for a, b in zip(said, ours, strict=True)) > _SAME_COLOUR:
                raise EncoderError(
                    f"{self.name} at {self.commit[:8]} says {key}={list(said)} of its model, where "
                    f"{list(ours)} is known here, so its features would be others: give the "
                    f"commit that you mean, encoder.NAME.revision=COMMIT."
                )

    def forward(self, model: nn.Module, images: Tensor) -> Tensor:
        """Embed images as the recipe, or the variant, says."""
        return CALLS[self.variant or self.recipe.pooling](model, images)

    @cached_property
    def gives(self) -> tuple[str, ...]:
        """What its code is known to give: it is not run to find out."""
        return (TOKENS,) if (self.variant or self.recipe.pooling) in SEQUENCES else ()

    def anatomy(self, model: nn.Module) -> Anatomy | None:
        """Say that the tokens are the last hidden state, without class token and registers."""
        if not self.gives:
            return None
        config: Any = model.config
        prefix = 1 + getattr(config, "num_register_tokens", 0)
        return Anatomy(owner=model, read=hidden_states, prefix=prefix)
