"""Published weights: found in the local cache or downloaded, silently, each with its commit."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

import torch

from microtome.errors import EncoderError
from microtome_encoders.patch.weights import file_digest

NAMES = ("model.safetensors", "pytorch_model.bin")
"""Of the weights in a hub entry, the first that there is."""

_COMMIT = re.compile("[0-9a-f]{40}")
SHA256 = re.compile("[0-9a-f]{64}")
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.")
_ELSEWHERE = (
    "give the path of a downloaded file, encoder.NAME.weights=PATH, or encoder.NAME.weights=random"
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights on this machine.

    Attributes:
        path: Where it is.
        source: Its hub entry, ``file`` for a user's own, or its name at its publisher's.
        commit: Of the hub entry's snapshot that holds it; empty for other sources.
    """

    path: Path
    source: str = "file"
    commit: str = ""

    @property
    def sha256(self) -> str:
        """Its SHA-256: the name of its blob in the hub's cache where that is one, else computed."""
        # One link only: what a blob itself may be a link to is named by another hash.
        blob = self.path.readlink().name if self.commit and self.path.is_symlink() else ""
        return blob if SHA256.fullmatch(blob) else file_digest(self.path)

    @property
    def facts(self) -> dict[str, str]:
        """What is put on record of it."""
        facts = {"source": self.source, "file": self.path.name, "commit": self.commit}
        return {key: value for key, value in facts.items() if value} | {"sha256": self.sha256}


def fetch_hub(hub_id: str, revision: str | None, names: Sequence[str] = NAMES) -> WeightsFile:
    """Find a file of a hub entry in the hub's cache, or download it.

    A commit that is in the cache is taken from there. For a branch, a tag or nothing the hub is
    asked, once and without retries, which commit that is now; where it cannot be reached, the
    cache says which it was last.

    Args:
        hub_id: The entry, ``owner/name``.
        revision: A commit, tag or branch; the main branch if None.
        names: The files looked for, the first that there is.

    Raises:
        EncoderError: If it cannot be had; says whether network, access or a name is missing.
    """
    with _hub_errors(hub_id), _silent_hub():
        name, path = _find(hub_id, revision, names)
    return WeightsFile(path, hub_id, commit=path.parents[name.count("/")].name)


def fetch_url(url: str, what: str) -> WeightsFile:
    """Find a published file in torch's cache, or download it there.

    Raises:
        EncoderError: If it cannot be downloaded, or is not the file that its name says.
    """
    name = Path(urlsplit(url).path).name
    path = Path(torch.hub.get_dir(), "checkpoints", name)
    if not path.exists():
        _log.info("Downloading %s for %s", url, what)
        path.parent.mkdir(parents=True, exist_ok=True)
        promised = _HASH_IN_NAME.search(name)
        try:
            torch.hub.download_url_to_file(url, str(path), promised and promised[1], progress=False)
        except (OSError, HTTPException, RuntimeError) as error:
            raise EncoderError(
                f"The weights of {what} cannot be downloaded ({_first_line(error)}): connect to "
                f"the network, or {_ELSEWHERE}."
            ) from error
    return WeightsFile(path, name)


def _find(hub_id: str, revision: str | None, names: Sequence[str]) -> tuple[str, Path]:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

    if _COMMIT.fullmatch(revision or "") and (cached := _cached(hub_id, revision, names)):
        return cached
    for name in names:
        try:
            # Alone, hf_hub_download tries for 25 s to reach a hub that is not there.
            found = get_hf_file_metadata(hf_hub_url(hub_id, name, revision=revision))
        except RevisionNotFoundError:
            raise
        except EntryNotFoundError:
            continue
        except _failures():
            if cached := _cached(hub_id, revision, names):
                return cached
            raise
        if not _cached(hub_id, found.commit_hash, [name]):
            _log.info("Downloading %s of %s (%s bytes)", name, hub_id, found.size)
        return name, Path(hf_hub_download(hub_id, name, revision=revision))
    raise EncoderError(f"The hub entry {hub_id} holds no {' or '.join(names)}: {_ELSEWHERE}.")


def _cached(hub_id: str, revision: str | None, names: Sequence[str]) -> tuple[str, Path] | None:
    from huggingface_hub import try_to_load_from_cache

    for name in names:
        path = try_to_load_from_cache(hub_id, name, revision=revision)
        if isinstance(path, str):
            return name, Path(path)
    return None


def _failures() -> tuple[type[Exception], ...]:
    """Give what the hub's library raises for any trouble: its HTTP library's root, and OSError."""
    from huggingface_hub.errors import HfHubHTTPError

    return (*HfHubHTTPError.__bases__, OSError)


@contextmanager
def _silent_hub() -> Iterator[None]:
    """Keep the hub's progress bars and advice off the terminal, unless its variables ask for them.

    Who wants to show downloads listens to this module's logger.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    bars = constants.HF_HUB_DISABLE_PROGRESS_BARS is None and not are_progress_bars_disabled()
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(max(level, logging.ERROR))
    if bars:
        disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            enable_progress_bars()


@contextmanager
def _hub_errors(hub_id: str) -> Iterator[None]:
    """Turn what the hub's library raises into one sentence that says what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError as error:
        raise EncoderError(f"{hub_id!r} is no name of a hub entry: give owner/name.") from error
    except errors.GatedRepoError as error:
        raise EncoderError(
            f"The weights of {hub_id} are gated: ask for access on the model's page and set "
            f"HF_TOKEN, or {_ELSEWHERE}."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise EncoderError(
            f"There are no weights {hub_id} on the hub for you: check the name, set HF_TOKEN if "
            f"they are private or gated, or {_ELSEWHERE}."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise EncoderError(
            f"The hub has no such revision of {hub_id}: correct or leave out 'revision'."
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise EncoderError(
            f"The weights of {hub_id} are not in the local cache and HF_HUB_OFFLINE is set: "
            f"unset it, or {_ELSEWHERE}."
        ) from error
    except _failures() as error:
        raise EncoderError(
            f"The weights of {hub_id} are not in the local cache and cannot be downloaded "
            f"({_first_line(error)}): connect to the network, or {_ELSEWHERE}."
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
