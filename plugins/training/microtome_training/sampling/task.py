"""The task ``sample``: a balanced subset of the labelled tiles, the index left as it is."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from microtome.errors import ConfigError, IdentityError, InputError, TaskError
from microtome.run.inputs.tables import read_table
from microtome.run.job import TaskOutcome
from microtome.store.atomic import remove, sweep, write_json
from microtome.store.identity import IDENTITY, Identity, describe, difference, make_identity
from microtome.store.patches import tile_key
from microtome_training.changed import tell_edited
from microtome_training.names import SAMPLES
from microtome_training.reading import rows_by_slide
from microtome_training.sampling.drawing import draw, number_patients
from microtome_training.sampling.files import SUFFIX, write_sample
from microtome_training.stores import read_tiles, root
from microtome_training.tiles import Tiles

if TYPE_CHECKING:
    from microtome.run.job import TaskJob
    from microtome_training.options.sample import SampleConfig

_NAME = re.compile(r"\w[\w.,=+-]*")
_CAPS = ("per_slide", "per_patient", "per_class")
_BUILT_FROM = ("slide_id", "x", "y")


class SampleTask:
    """Draws a sample and writes it below the tiling.

    Args:
        config: The rules.

    Raises:
        ConfigError: If they make no sense.
    """

    def __init__(self, config: SampleConfig) -> None:
        _check(config)
        self._config = config

    def run(self, job: TaskJob) -> TaskOutcome:
        """Draw the sample, unless it is there already.

        Raises:
            TaskError: If there are no labelled tiles, or of a class none.
            InputError: If the list of hard tiles cannot be read, or names others than there are.
            IdentityError: If there is another sample of that name.
        """
        name = name_sample(self._config.name, job.config.label)
        folder = root(job) / SAMPLES
        final, record = folder / f"{name}{SUFFIX}", folder / f"{name}.json"
        sweep(folder)
        with job.reporter:
            job.reporter.note(f"drawing the sample {name}")
            tiles = read_tiles(job)
            for note in tell_edited(tiles.slides):
                job.reporter.note(note)
            hard = _find_hard(tiles, self._config.hard_file)
            identity = self._identify(job, tiles, hard)
            if not job.config.force and _is_there(final, record, identity):
                return _tell(final, json.loads(record.read_text("utf-8")), reused=True)
            self._refuse_empty(tiles)
            drawn = tiles.take(draw(tiles, self._config, hard))
            remove(record)  # killed between the two, it must not be told of another sample's tiles
            write_sample(final, drawn, identity)
            told = _describe(tiles, drawn, hard, identity)
            write_json(record, told)
        return _tell(final, told, reused=False)

    def _identify(self, job: TaskJob, tiles: Tiles, hard: NDArray[np.bool_]) -> Identity:
        spec = job.registry.find("task", "sample").spec
        fields: dict[str, Any] = {
            "sample": describe(spec, self._config),
            "classes": tiles.classes,
            "slides": {
                slide.slide_id: {"coords": slide.identity, "labels": _digest(tiles, rows)}
                for slide, rows in zip(tiles.slides, rows_by_slide(tiles), strict=True)
            },
        }
        if hard.any():
            keys = "\n".join(tiles.take(hard).keys())
            fields["hard"] = hashlib.sha256(keys.encode("utf-8", "surrogateescape")).hexdigest()
        if self._config.per_patient is not None:
            fields["patients"] = {slide.slide_id: slide.patient_id for slide in tiles.slides}
        return make_identity("sample", fields)

    def _refuse_empty(self, tiles: Tiles) -> None:
        """See that there is something to draw of every class.

        Raises:
            TaskError: If there is not, or patients are to be capped and nobody's are known.
        """
        if self._config.per_patient is not None and not any(s.patient_id for s in tiles.slides):
            raise TaskError(
                "sample.per_patient caps patients, and of no slide it is known whose it is: name "
                "slides by a CSV manifest with a column patient_id."
            )
        enough = tiles.fraction >= np.float32(self._config.min_fraction)
        for label, name in enumerate(tiles.classes):
            of_class = tiles.label == label
            if not (of_class & enough).any():
                told = f"no tile of the class {name}"
                if of_class.any():
                    told += f" with sample.min_fraction={self._config.min_fraction:g}"
                raise TaskError(
                    f"There is {told} on {len(tiles.slides)} slides, so nothing can be balanced. "
                    "See which groups the annotations have, and name them in labels.classes."
                )


def name_sample(name: str, label: str) -> str:
    """Give a sample's name: as it is said; of ``auto`` by what a sweep sweeps, else ``sample``.

    Raises:
        ConfigError: If it cannot be the name of a file.
    """
    if name == "auto":
        swept = label.replace("sample.", "").replace("/", "_")
        name = re.sub(r"[^\w.,=+-]+", "_", swept) or "sample"
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"sample.name={name} cannot name a file: use letters, digits and any of _ . , = + -."
        )
    return name


def _check(config: SampleConfig) -> None:
    ratio = config.negatives_per_positive
    if ratio is not None and not 0 < ratio < math.inf:
        raise ConfigError(
            f"sample.negatives_per_positive={ratio:g} must be above 0; null takes all."
        )
    for name in _CAPS:
        if (most := getattr(config, name)) is not None and most < 1:
            raise ConfigError(f"sample.{name}={most} must be at least 1; null caps nothing.")
    for name in ("min_fraction", "hard_share"):
        if not 0 <= (share := getattr(config, name)) <= 1:
            raise ConfigError(f"sample.{name}={share:g} is a share, from 0 to 1.")
    if config.hard_file is None and config.hard_share != type(config)().hard_share:
        raise ConfigError(
            f"sample.hard_share={config.hard_share:g} is the share of listed tiles, and there is "
            "no list: name it with sample.hard_file=FILE, or leave the share out."
        )


def _is_there(final: Path, record: Path, identity: Identity) -> bool:
    """Tell whether a sample is there already.

    Raises:
        IdentityError: If it was drawn otherwise.
    """
    if not record.is_file() or not final.is_file():
        return False
    try:
        told = json.loads(record.read_text("utf-8"))
        same, before = told[IDENTITY] == identity.digest, dict(told["identity_fields"])
    except (ValueError, LookupError, TypeError):  # damaged: drawn again
        return False
    if not same:
        raise IdentityError(
            f"The sample {final} was drawn otherwise: {difference(before, identity.fields)}. Give "
            "this one another sample.name, or replace it with force=true."
        )
    return True


def _digest(tiles: Tiles, rows: NDArray[np.int64]) -> str:
    """Hash the labels of a slide's tiles."""
    label, fraction = tiles.label[rows], tiles.fraction[rows]
    data = label.astype("<i2").tobytes() + fraction.astype("<f4").tobytes()
    return hashlib.sha256(data).hexdigest()


def _find_hard(tiles: Tiles, name: str | None) -> NDArray[np.bool_]:
    """Find the tiles of a list: (n,).

    Raises:
        InputError: If it cannot be read, or names a tile that is not there.
    """
    hard = np.zeros(len(tiles), bool)
    if name is None:
        return hard
    path, rows = Path(name), {key: row for row, key in enumerate(tiles.keys())}
    wanted = list(_read_keys(path))
    unknown = [key for key in wanted if key not in rows]
    if unknown:
        raise InputError(
            f"{path}: {len(unknown)} of its {len(wanted)} tiles are not there, {unknown[0]} for "
            "one. A list is for the tiling that it was made of, and for the slides that are named."
        )
    hard[[rows[key] for key in wanted]] = True
    return hard


def _read_keys(path: Path) -> Iterator[str]:
    """Read the keys of a list of tiles.

    Raises:
        InputError: If there is no such file, or it is no such list.
    """
    if not path.is_file():
        raise InputError(f"sample.hard_file={path} is not there.")
    columns = _read_parquet(path) if path.suffix.lower() == SUFFIX else _read_csv(path)
    if "key" in columns:
        yield from columns["key"]
    elif all(name in columns for name in _BUILT_FROM):
        places = zip(*(columns[name] for name in _BUILT_FROM), strict=True)
        yield from (tile_key(str(name), x, y) for name, x, y in places)
    else:
        raise InputError(
            f"{path} has the columns {', '.join(columns)}; a list of tiles has key, or slide_id, "
            "x and y."
        )


def _read_parquet(path: Path) -> dict[str, list[Any]]:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read as a list of tiles: {error}") from error
    return {name: table.column(name).to_pylist() for name in table.column_names}


def _read_csv(path: Path) -> dict[str, list[Any]]:
    rows = read_table(path, ("key", "slide_id"))
    return {name: [row.values[name] for row in rows] for name in rows[0].values}


def _describe(
    tiles: Tiles, drawn: Tiles, hard: NDArray[np.bool_], identity: Identity
) -> dict[str, Any]:
    """Give the record of a sample, for people and for the next run."""
    counts = {
        name: {
            "tiles": int((tiles.label == label).sum()),
            "drawn": int((drawn.label == label).sum()),
            "slides": len(np.unique(drawn.slide[drawn.label == label])),
        }
        for label, name in enumerate(tiles.classes)
    }
    return {
        "classes": counts,
        "unlabelled": int((tiles.label < 0).sum()),
        "slides": len(tiles.slides),
        "patients": len(set(number_patients(tiles))) if _has_patients(tiles) else None,
        "hard": int(hard.sum()),
        **identity.attributes(),
        "identity_fields": dict(identity.fields),
    }


def _has_patients(tiles: Tiles) -> bool:
    return any(slide.patient_id for slide in tiles.slides)


def _tell(final: Path, told: Mapping[str, Any], *, reused: bool) -> TaskOutcome:
    """Sum a sample up."""
    counts: Mapping[str, Mapping[str, int]] = told["classes"]
    table: list[Sequence[object]] = [("class", "tiles", "drawn", "of slides")]
    table += [(name, each["tiles"], each["drawn"], each["slides"]) for name, each in counts.items()]
    total = sum(each["drawn"] for each in counts.values())
    verb = "is there already" if reused else "written"
    lines = [*_aligned(table), f"{final}: {total} tiles, {verb}"]
    record = {"sample": str(final), "drawn": total, "reused": reused, IDENTITY: told[IDENTITY]}
    return TaskOutcome(lines=tuple(lines), record=record)


def _aligned(table: Sequence[Sequence[object]]) -> list[str]:
    widths = [max(len(str(row[column])) for row in table) for column in range(len(table[0]))]
    return [
        "  ".join(
            f"{cell!s:<{width}}" if column == 0 else f"{cell!s:>{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]
