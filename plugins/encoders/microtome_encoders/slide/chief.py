"""CHIEF (Wang et al. 2024), by the code of its repository, of which there is no package."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from microtome.errors import EncoderError
from microtome.plugin.specs import EncoderCard
from microtome.plugin.weights.files import file_digest, find_file
from microtome.plugin.weights.hub import WeightsFile
from microtome.slide.bags import TileBag
from microtome_encoders.bag_options import ChiefConfig
from microtome_encoders.recipe import SlideRecipe
from microtome_encoders.slide.packaged import Embedded, PackagedSlideEncoder

MODULE = "models.CHIEF"
PACKAGES = ("models", "utils")
"""Folders of the repository that the model's module imports from."""
WEIGHTS = Path("model_weight") / "CHIEF_pretraining.pth"
ORGANS = 19
"""Sites that the model has a text embedding of. They shift its logits, not its feature."""
_BYTES = 12 * 1024
"""A tile needs: its features and the gates of its attention in float32, a few times over."""
_CODE_FAILURES = (ImportError, AttributeError, TypeError, ValueError, RuntimeError, OSError)


class ChiefSlideEncoder(PackagedSlideEncoder):
    """The mean of the tiles' features, weighted by attention.

    Args:
        config: The user's options: where the repository is.
        recipe: The row.

    Raises:
        ConfigError: If what the configuration allows is no SHA-256.
    """

    def __init__(self, config: ChiefConfig, *, recipe: SlideRecipe) -> None:
        super().__init__(config)
        self.recipe = recipe
        self._code = config.code_folder

    @property
    def card(self) -> EncoderCard:
        """What is known of the model."""
        return self.recipe.card

    @property
    def name(self) -> str:
        """The model's name in messages."""
        return "CHIEF"

    @property
    def code(self) -> Path:
        """The file that the model is built by.

        Raises:
            EncoderError: If the user named no folder, or none with that file.
        """
        path = Path(self._code, *MODULE.split(".")).expanduser().with_suffix(".py")
        if self._code and path.is_file():
            return path.resolve()
        named = f"in {self._code}, which has no {MODULE.replace('.', '/')}.py" if self._code else ""
        raise EncoderError(
            f"CHIEF is built by the code of its repository, which is not {named or 'here'}: clone "
            f"hms-dbmi/CHIEF and give encoder.NAME.code_folder=FOLDER."
        )

    @cached_property
    def weights_file(self) -> WeightsFile:
        """The user's file of weights, or the one where the repository's own programs look."""
        given = find_file(self.config.weights) if self.config.weights else None
        return WeightsFile(given) if given else self.fetch()

    def fetch(self) -> WeightsFile:
        """Find the weights in the repository's folder.

        Raises:
            EncoderError: If they are not there.
        """
        path = self.code.parents[1] / WEIGHTS
        if path.is_file():
            return WeightsFile(path)
        raise EncoderError(f"There is no {path}: {self.recipe.by_hand}")

    def files(self) -> Sequence[Path]:
        """Find the code and the weights."""
        return (self.code, *super().files())

    def weights(self) -> Mapping[str, str]:
        """Say which weights these are, and which code runs them."""
        return {**super().weights(), "code": f"sha256:{self._code_digest()}"}

    def _code_digest(self) -> str:
        """Hash the model's module and all that it may import from the folder."""
        folder = self.code.parents[1]
        files = sorted(file for name in PACKAGES for file in (folder / name).rglob("*.py"))
        told = (f"{file.relative_to(folder).as_posix()} {file_digest(file)}\n" for file in files)
        return hashlib.sha256("".join(told).encode()).hexdigest()

    def build(self) -> nn.Module:
        """Make the model with random weights.

        Raises:
            EncoderError: If the code does not run here.
        """
        try:
            module = import_apart(self.code.parents[1])
            with _without_text(module):
                model: nn.Module = module.CHIEF(size_arg="small", dropout=True, n_classes=2)
        except _CODE_FAILURES as error:
            raise EncoderError(
                f"The code in {self.code} does not build CHIEF "
                f"({type(error).__name__}: {' '.join(str(error).split())[:200]}): it wants the "
                f"repository's newest commit."
            ) from error
        return model

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Do without the text embeddings of sites where the file lacks them."""
        return {"organ_embedding": torch.zeros(ORGANS, 768), **state}

    def memory(self, tiles: int, extent: tuple[int, int]) -> int:
        """Estimate the bytes of attention, which is linear in the number of tiles."""
        return _BYTES * tiles

    def embed(self, model: Any, bag: TileBag) -> Embedded:
        """Give (n, 768) features, and a site, of which the slide's feature knows nothing."""
        result = model(self.tensor(self.features(bag)), torch.tensor([0]))
        attention = torch.softmax(result["attention_raw"].float().reshape(-1), 0)
        return Embedded(result["WSI_feature"], attention)


def import_apart(folder: Path) -> ModuleType:
    """Import the model's module from a folder whose packages have names that anything may have.

    ``models`` and ``utils`` of the folder are found for the import alone: modules of these names
    that were there before are there again afterwards.
    """
    before = _take_out()
    sys.path.insert(0, str(folder))
    try:
        return import_module(MODULE)
    finally:
        sys.path.remove(str(folder))
        _take_out()
        sys.modules.update(before)


def _take_out() -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name.split(".")[0] in PACKAGES]
    return {name: sys.modules.pop(name) for name in names}


class _Torch(ModuleType):
    """torch, but for loading files."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def load(*_: object, **__: object) -> Tensor:
        """Give text embeddings of nothing."""
        return torch.zeros(ORGANS, 768)


@contextmanager
def _without_text(module: ModuleType) -> Iterator[None]:
    """Have the code read no text embeddings, which it looks for in the current folder.

    They are a pickle, and no part of the feature.
    """
    module.torch = _Torch("torch")  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.torch = torch  # type: ignore[attr-defined]
