"""Options of the task ``sample`` and of the tiler ``sampled``. Cheap to import."""

from __future__ import annotations

from dataclasses import dataclass

from microtome.plugin import option, runtime


@dataclass
class SampleConfig:
    """Options of the task ``sample``."""

    name: str = runtime(
        "auto",
        help="The sample's name: `<tiling>/samples/<name>.parquet`. By default `sample`, and in a "
        "sweep what is swept.",
    )
    negatives_per_positive: float | None = option(
        3.0,
        help="Tiles of the background for each tile of another class, over all slides; null for "
        "all that there are.",
    )
    per_slide: int | None = option(
        None, help="At most so many tiles of each class from one slide; null for no cap."
    )
    per_patient: int | None = option(
        None, help="At most so many tiles of each class from one patient; null for no cap."
    )
    per_class: int | None = option(
        None, help="At most so many tiles of each class in all; null for no cap."
    )
    min_fraction: float = option(
        0.0, help="Tiles of which a smaller share has the label are not drawn, 0 to 1."
    )
    hard_file: str | None = runtime(  # its tiles are part of the identity
        None,
        help="Tiles to take before others: a CSV or Parquet file with a column `key`, or with "
        "`slide_id`, `x` and `y`.",
    )
    hard_share: float = option(
        1.0, help="The share of a class that such tiles may fill where it is limited, 0 to 1."
    )
    seed: int = option(42, help="Another seed draws other tiles.")


@dataclass
class SampledConfig:
    """Options of the ``sampled`` tiler."""

    name: str = runtime("", help="Folder of this tiling below the output.")
    sample_file: str = runtime(
        "", help="The sample: a file that `task=sample` wrote, OUTPUT/samples/NAME.parquet."
    )
