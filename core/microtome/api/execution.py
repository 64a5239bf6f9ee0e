"""What a run uses and what it leaves, in the words of slide2vec's users."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microtome.api.fields import at_least, check, hint, mapped, named_fields, one_of
from microtome.errors import ConfigError
from microtome.run.inputs.paths import absolute
from microtome.run.settings import DEFAULT_BATCH_SIZE, PRECISIONS

if TYPE_CHECKING:
    from microtome.api.preprocessing import PreprocessingConfig

STORES = ("hdf5", "zarr")
"""Output formats that are our own stores."""

FILES = ("pt", "npz")
"""Output formats of a file for each embedding, with a sidecar."""

_DTYPES = {"fp32": "float32", "fp16": "float16"}


@named_fields
@dataclass(frozen=True, kw_only=True)
class ExecutionOptions:
    """Devices, threads and files of a run; what is None is decided by the machine and the model.

    Every field and what it sets of a run is listed on the page on Python parity.

    Raises:
        ConfigError: A ``ValueError``: if a field has a value that it cannot have.
    """

    output_dir: str | Path | None = mapped(  # noqa: RUF009 - it makes a field
        None,
        "output",
        says="Where everything is kept; without one, results live in memory alone.",
    )
    output_format: str = mapped(
        "hdf5",
        "writer",
        says="`hdf5` or `zarr`, our stores; `pt` or `npz` beside an HDF5 store, one file an "
        "embedding with a sidecar that is written last.",
    )
    batch_size: int | None = mapped(
        DEFAULT_BATCH_SIZE,
        "encoder.batch_size",
        says="Tiles at once; None for as many as a GPU has memory for.",
    )
    num_gpus: int | None = mapped(
        None,
        "engine.devices",
        "tile_devices",
        says="GPUs, all if None: whole slides are spread over them, or the tiles of a single one.",
    )
    precision: str | None = mapped(
        None, "precision", says="`fp16`, `bf16` or `fp32`; None for the card's, fp32 on a CPU."
    )
    output_dtype: str | None = mapped(
        None, "feature_dtype", says="`fp16` or `fp32`, as which features are kept; fp32 if None."
    )
    num_workers: int | None = mapped(
        None,
        "reader_threads",
        says="Threads that read tiles; by what the encoder needs if None, within the CPUs of the "
        "job (affinity, cgroup, SLURM).",
    )
    num_preprocessing_workers: int | None = mapped(
        None, "threads", says="CPU threads of the whole run; all of the job's if None."
    )
    prefetch_factor: int = hint(
        4, says="How far reading is ahead is bounded by memory: a few batches of tiles."
    )
    persistent_workers: bool = hint(
        True, says="Readers are threads of the run, which live as long as it does."
    )
    save_tile_embeddings: bool = mapped(
        False,
        "output_format",
        says="Of a slide or patient model, write tile embeddings as `pt` or `npz`, too; our stores "
        "always hold them.",
    )
    save_slide_embeddings: bool = mapped(
        False, "output_format", says="Likewise slide embeddings, of a patient model."
    )
    save_latents: bool = mapped(
        False, "latents", says="Keep and give the latents of slide encoders that have some."
    )
    run: Mapping[str, Any] = mapped(
        dict, "run", says="Further options as of `run_slides`, which win: `{'engine': 'local'}`."
    )

    def __post_init__(self) -> None:
        check(self)
        if self.output_dir is not None:
            object.__setattr__(self, "output_dir", absolute(Path(self.output_dir)))
        one_of(self, "output_format", (*STORES, *FILES))
        one_of(self, "precision", (None, *PRECISIONS))
        one_of(self, "output_dtype", (None, *_DTYPES))
        for name, least in (
            ("batch_size", 1),
            ("num_gpus", 1),
            ("num_workers", 0),
            ("num_preprocessing_workers", 0),
            ("prefetch_factor", 1),
        ):
            at_least(self, name, least)

    @property
    def folder(self) -> Path | None:
        """The output folder, if there is one."""
        return None if self.output_dir is None else Path(self.output_dir)

    @property
    def store(self) -> str:
        """The writer of features."""
        return self.output_format if self.output_format in STORES else STORES[0]

    def run_options(self) -> dict[str, Any]:
        """Give the options of a run that neither models nor slides have a say in."""
        options: dict[str, Any] = {"writer": [self.store]}
        if self.output_dtype is not None:
            options["feature_dtype"] = _DTYPES[self.output_dtype]
        # A DataLoader of no workers reads in the process itself: one thread.
        if self.num_workers is not None:
            options["reader_threads"] = max(1, self.num_workers)
        if self.num_preprocessing_workers is not None:
            options["threads"] = max(1, self.num_preprocessing_workers)
        if self.save_latents:
            options["latents"] = True
        return options


def refuse_files(preprocessing: PreprocessingConfig, execution: ExecutionOptions) -> None:
    """Refuse, where there is no output folder, what makes files.

    Raises:
        ConfigError: Naming it.
    """
    for name, is_wanted in (
        ("preview", bool(preprocessing.preview.kinds)),
        ("save_tiles=True", preprocessing.save_tiles),
        ("on_the_fly=False", not preprocessing.on_the_fly),
        (f"output_format={execution.output_format!r}", execution.output_format != STORES[0]),
    ):
        if is_wanted:
            raise ConfigError(
                f"{name} makes files: give ExecutionOptions(output_dir=…) to keep them."
            )


def idle(preprocessing: PreprocessingConfig, execution: ExecutionOptions) -> Iterator[str]:
    """Say what changes nothing where there is no output folder."""
    if preprocessing.resume and execution.folder is None:
        yield "PreprocessingConfig.resume=True changes nothing without an output_dir."
