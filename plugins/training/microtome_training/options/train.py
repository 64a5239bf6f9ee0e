"""Options of the task ``train``. Cheap to import."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from microtome.plugin import option, runtime
from microtome_training.options.evaluate import MeasureOptions
from microtome_training.options.predict import HeatmapConfig
from microtome_training.options.split import SplitOptions


class Source(Enum):
    """Where a training reads its tiles."""

    auto = "auto"
    pixels = "pixels"
    patches = "patches"
    features = "features"


class LossKind(Enum):
    """What a training makes small."""

    focal = "focal"
    cross_entropy = "cross_entropy"


class OptimizerKind(Enum):
    """How it does."""

    adamw = "adamw"
    sgd = "sgd"


class Schedule(Enum):
    """What becomes of the learning rate."""

    none = "none"
    cosine = "cosine"


class LoggerKind(Enum):
    """What is written of each epoch besides the CSV."""

    csv = "csv"
    tensorboard = "tensorboard"


class AugmentWhich(Enum):
    """Which tiles are transformed."""

    all = "all"
    positive = "positive"
    none = "none"


@dataclass
class FocalOptions:
    """Of the focal loss."""

    gamma: float = option(
        2.0, help="How much less a tile counts that is classified well; 0 is cross-entropy."
    )


@dataclass
class OhemOptions:
    """Of the mining of hard negatives in each batch."""

    ratio: float = option(
        3.0,
        help="The hardest tiles of the background that count for each tile of another class; 0 for "
        "all of them.",
    )
    floor: int = option(8, help="So many count in a batch at least, with few positives or none.")


@dataclass
class AugmentOptions:
    """The random transforms of training tiles."""

    which: AugmentWhich = option(
        AugmentWhich.all,
        help="Which tiles are transformed. `positive` leaves the background as it is, and lets a "
        "network tell the classes apart by the transforms themselves.",
    )
    flips: bool = option(True, help="Flips and quarter turns, all eight alike.")
    brightness: float = option(0.1, help="A factor between 1 - this and 1 + this.")
    contrast: float = option(0.1, help="Likewise.")
    saturation: float = option(0.1, help="Likewise.")
    hue: float = option(0.02, help="A shift of up to this share of the circle, 0 to 0.5.")


@dataclass
class TrainConfig:
    """Options of the task ``train``."""

    name: str = runtime(
        "auto",
        help="The training's name: `<tiling>/training/<name>/`. By default the model's, and in a "
        "sweep what is swept.",
    )
    source: Source = option(
        Source.auto,
        help="Where tiles are read: pixels of the slides, a store of patches, or stored features; "
        "auto takes what `features` or `patches_folder` says, else pixels.",
    )
    features: str = option("", help="An encoder's stored features to train on, by name.")
    patches_folder: str | None = runtime(
        None,
        help="The folder of a patch store, in which a writer left tiles of these slides; null for "
        "the only one of the output.",
    )
    sample: str = option(
        "",
        help="A sample that task=sample drew, to train on; empty for all labelled tiles. Slides "
        "that validate and test keep all of theirs.",
    )
    split: SplitOptions = field(default_factory=SplitOptions)
    model: str = option(
        "auto",
        help="small_cnn, any model of timm, or on features linear or mlp; auto is resnet50, and on "
        "features linear.",
    )
    weights: str = option(
        "auto",
        help="What it begins with: pretrained, random, or a file; auto is pretrained for models "
        "of timm, else random.",
    )
    input_size: int | None = option(
        None, help="Side in pixels to which tiles are resized; null for what the model takes."
    )
    hidden: int = option(256, help="Width of the hidden layer of mlp.")
    dropout: float = option(0.0, help="Share of values dropped before the last layer.")
    lr: float = option(1e-3, help="The learning rate.")
    optimizer: OptimizerKind = option(OptimizerKind.adamw, help="What takes the steps.")
    weight_decay: float = option(0.01, help="Of the optimizer.")
    momentum: float = option(0.9, help="Of sgd.")
    schedule: Schedule = option(
        Schedule.none, help="cosine lowers the learning rate to 0 over max_epochs."
    )
    max_epochs: int = option(50, help="Epochs at most.")
    patience: int = option(
        2, help="Epochs without a lower validation loss before it stops; 0 for never."
    )
    batch_size: int = option(64, help="Tiles of a step, those of all devices together.")
    aug_factor: int = option(
        5, help="How often each tile of a class other than the background appears in an epoch."
    )
    augment: AugmentOptions = field(default_factory=AugmentOptions)
    class_weights: bool = option(
        True, help="Weight classes inversely to how often an epoch shows them."
    )
    loss: LossKind = option(LossKind.focal, help="What is made small.")
    focal: FocalOptions = field(default_factory=FocalOptions)
    ohem: OhemOptions = field(default_factory=OhemOptions)
    shuffle_labels: bool = option(
        False,
        help="Permute the labels of all tiles, for a check: nothing can then be learned, and an "
        "AUROC far from 0.5 tells of a leak.",
    )
    seed: int = option(42, help="Of the first weights, the order of tiles and their transforms.")
    save_interval: int = runtime(
        5, help="Keep checkpoints/ckpt_epoch_N.pt of every so many epochs; 0 for none."
    )
    logger: LoggerKind = runtime(
        LoggerKind.csv, help="tensorboard also writes what tensorboard reads."
    )
    devices: int = option(1, help="Devices of the run's kind that share each batch.")
    deterministic: bool = runtime(
        True, help="Use only kernels that give the same twice, where there are some."
    )
    num_workers: int | None = runtime(
        None, help="Processes that read batches; null for up to 4 by the CPUs, 0 for none."
    )
    memory_gb: float = runtime(
        4.0, help="Tiles that fit into so many GiB are read once and kept there; 0 for never."
    )
    heatmaps: bool = runtime(True, help="Draw the heatmaps of the slides that are tested on.")
    evaluate: MeasureOptions = field(default_factory=MeasureOptions)
    heatmap: HeatmapConfig = field(default_factory=HeatmapConfig)
