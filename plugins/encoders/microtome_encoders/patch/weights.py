"""Weights: read from files, downloaded from the hub, fitted strictly, named for identities."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from microtome.errors import EncoderError
from microtome_encoders.options import WeightsConfig

HUB, RANDOM = "hub", "random"
PICKLES = (".pth", ".pt", ".bin")
SUFFIXES = (".safetensors", *PICKLES)
_CHUNK = 1 << 22


def find_file(config: WeightsConfig) -> Path | None:
    """Give the file that ``weights`` names, or None for ``hub`` and ``random``.

    Raises:
        EncoderError: If there is no such file, or one that is no weights by its suffix.
    """
    if config.weights in (HUB, RANDOM):
        return None
    path = Path(config.weights).expanduser()
    if not path.is_file():
        raise EncoderError(
            f"weights={config.weights} names no file. "
            f"Give 'hub', 'random' or the path of a file ({', '.join(SUFFIXES)})."
        )
    if path.suffix.lower() not in SUFFIXES:
        raise EncoderError(
            f"Weights are read from {', '.join(SUFFIXES)} files, which {path} is not."
        )
    return path


def file_digest(path: Path) -> str:
    """Give the SHA-256 of a file, remembered while its size and time stay as they are."""
    stat = path.stat()
    return _digest(path.resolve(), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _digest(path: Path, size: int, mtime_ns: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dictionary; pickles with ``weights_only=True`` alone, so no code runs.

    A dictionary under ``state_dict`` or ``model`` is unwrapped, and the prefix ``module.`` of
    data-parallel training removed.

    Raises:
        EncoderError: If the file cannot be read so.
    """
    try:
        state = _read(path)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        # Not torch's own words, which recommend to load the pickle without its guard.
        raise EncoderError(
            f"The weights in {path} cannot be read as a plain dictionary of tensors. "
            f"Save them as .safetensors, or with torch.save(model.state_dict(), path)."
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise EncoderError(
            f"The file {path} holds no dictionary of tensors. Save the model's state_dict()."
        )
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return dict(state)


def _read(path: Path) -> object:
    if path.suffix.lower() in PICKLES:
        return torch.load(path, map_location="cpu", weights_only=True)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def fit_state(
    model: nn.Module, state: Mapping[str, Tensor], where: str, *, ignore: Sequence[str] = ()
) -> None:
    """Load a state dictionary that must fit exactly.

    Args:
        model: What it is loaded into.
        state: The tensors by name.
        where: The file or hub entry that they are from, for the message.
        ignore: Names of layers that the model was stripped of: their tensors may be there.

    Raises:
        EncoderError: If tensors are missing, unknown or of another shape; says which.
    """
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    dropped = tuple(f"{name}." for name in ignore)
    # Files from before PyTorch 0.4.1 have no such counters, and inference reads none.
    missing = [n for n in wanted if n not in state and not n.endswith("num_batches_tracked")]
    unknown = [n for n in state if n not in wanted and not n.startswith(dropped)]
    shapes = [
        f"{name} is {tuple(state[name].shape)} and should be {shape}"
        for name, shape in wanted.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    found = [("missing", missing), ("unknown", unknown), ("of another shape", shapes)]
    problems = [f"{len(names)} {what} ({_some(names)})" for what, names in found if names]
    if problems:
        raise EncoderError(
            f"The weights in {where} do not fit {type(model).__name__}: {'; '.join(problems)}. "
            f"They are another model's, or lack its head's or backbone's prefix."
        )
    model.load_state_dict({n: t for n, t in state.items() if n in wanted}, strict=False)


def download(hub_id: str, revision: str | None) -> Path:
    """Fetch a model's weights into the hub's cache, or take them from there.

    Raises:
        EncoderError: If they cannot be had; says whether network, access or a name is missing.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    with hub_errors(hub_id):
        try:
            return Path(hf_hub_download(hub_id, "model.safetensors", revision=revision))
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            return Path(hf_hub_download(hub_id, "pytorch_model.bin", revision=revision))


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turn what a download raises into one sentence that says what to do.

    Raises:
        EncoderError: For access that was not granted, a name or revision that does not exist,
            and every failure of the network.
    """
    from huggingface_hub import errors

    elsewhere = "give weights=PATH of a downloaded file, or weights=random"
    try:
        yield
    except errors.GatedRepoError as error:
        raise EncoderError(
            f"The weights of {what} are gated: ask for access on the model's page and set "
            f"HF_TOKEN, or {elsewhere}."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise EncoderError(
            f"There are no weights {what} on the hub for you: check the name, set HF_TOKEN if "
            f"they are private or gated, or {elsewhere}."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise EncoderError(
            f"The hub has no such revision of {what}: correct or leave out 'revision'."
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise EncoderError(_unreachable(what, elsewhere)) from error
    except errors.EntryNotFoundError as error:
        raise EncoderError(
            f"The hub entry {what} holds no model.safetensors or pytorch_model.bin: {elsewhere}."
        ) from error
    except OSError as error:
        raise EncoderError(f"{_unreachable(what, elsewhere)} ({_first_line(error)})") from error


def _unreachable(what: str, elsewhere: str) -> str:
    return (
        f"The weights of {what} are not in the local cache and cannot be downloaded: "
        f"connect to the network, or {elsewhere}."
    )


def _some(names: Sequence[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
