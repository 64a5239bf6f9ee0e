"""Slides as slide2vec's users name them: a path, a mapping, or a row of a manifest."""

from __future__ import annotations

import csv
import difflib
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from microtome.errors import ConfigError, InputError
from microtome.plugin.options import configure
from microtome.plugin.registry import Registry
from microtome.plugin.wording import unknown
from microtome.run.inputs.paths import absolute
from microtome.run.inputs.sources import is_url, url_path
from microtome.run.inputs.tables import ManifestEntry, parse_mpp, read_manifest
from microtome.store.atomic import write_bytes

_TABLES = (".csv", ".tsv", ".txt", ".xlsx", ".json")
"""Suffixes of what is no slide and lists some."""

_FEW = 5


def few(names: Sequence[str]) -> str:
    """Write some names, of many the first."""
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return ", ".join(map(repr, names[:_FEW])) + more


@runtime_checkable
class SlideLike(Protocol):
    """Anything with the fields of a slide; `mask_path` and the others may be missing."""

    sample_id: str
    image_path: str | Path


SlideInput = str | Path | Mapping[str, Any] | SlideLike
"""A slide: its path or URL, or ``sample_id``, ``image_path`` and what else is known of it."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A slide to embed.

    Attributes:
        sample_id: Name of its outputs; the file's stem if not given.
        image_path: The file, or a URL.
        mask_path: A tissue mask of the user's own.
        spacing_at_level_0: µm per level-0 pixel, which wins over the file.
        patient_id: Whose slide it is; empty if nobody said.
    """

    sample_id: str
    image_path: str | Path
    mask_path: Path | None = None
    spacing_at_level_0: float | None = None
    patient_id: str = ""

    @property
    def word(self) -> str:
        """Name it as a run does."""
        return str(self.image_path)


_KNOWN = tuple(each.name for each in fields(Sample))


def read_samples(slides: SlideInput | Iterable[SlideInput]) -> tuple[Sample, ...]:
    """Make sense of slides, in the order given.

    Raises:
        ConfigError: If there is none, two have one id, or one cannot be made sense of.
    """
    given: Any = slides
    if isinstance(slides, str | Path | Mapping) or not isinstance(slides, Iterable):
        given = [slides]
    samples = tuple(map(read_sample, given))
    if not samples:
        raise ConfigError("No slides are given: at least one is needed.")
    refuse_twins(samples)
    return samples


def read_sample(slide: SlideInput) -> Sample:
    """Make sense of one slide.

    Raises:
        ConfigError: If it does not say what it is.
    """
    if isinstance(slide, Sample):
        return slide
    if isinstance(slide, str | Path):
        return _sample({"image_path": slide})
    if isinstance(slide, Mapping):
        for name in slide:
            if name not in _KNOWN:
                raise ConfigError(unknown("field of a slide", str(name), _KNOWN))
        return _sample(slide)
    if isinstance(slide, SlideLike):
        return _sample({name: getattr(slide, name, None) for name in _KNOWN})
    raise ConfigError(f"{slide!r} is no slide: give a path, or a mapping with image_path.")


def _sample(given: Mapping[str, Any]) -> Sample:
    image = given.get("image_path")
    if not isinstance(image, str | Path) or not str(image):
        raise ConfigError(f"{dict(given)!r} names no slide: it needs image_path.")
    mask = given.get("mask_path")
    sample_id = given.get("sample_id")
    patient_id = given.get("patient_id")
    path = url_path(str(image)) if is_url(str(image)) else absolute(Path(image))
    if path.suffix.lower() in _TABLES:
        raise ConfigError(
            f"{image} is no slide. A manifest of slides is for a pipeline: "
            f"Pipeline(model, …).run(manifest_path={str(image)!r})."
        )
    return Sample(
        sample_id=(path.stem if sample_id in (None, "") else str(sample_id)).strip(),
        image_path=str(image) if is_url(str(image)) else path,
        mask_path=None if mask in (None, "") else absolute(Path(mask)),
        spacing_at_level_0=_spacing(given.get("spacing_at_level_0")),
        patient_id="" if patient_id is None else str(patient_id).strip(),
    )


def _spacing(value: object) -> float | None:
    """Read a spacing, as a number or as a manifest's text.

    Raises:
        ConfigError: If it is not a positive number.
    """
    if value is None or value == "":
        return None
    found = None if isinstance(value, bool) else parse_mpp(str(value))
    if found is None:
        raise ConfigError(f"spacing_at_level_0={value!r} is no positive number of µm per pixel.")
    return found


def refuse_twins(samples: Sequence[Sample]) -> None:
    """See that every slide has an id and a file of its own.

    Raises:
        ConfigError: If two share one.
    """
    for name, values in (
        ("sample_id", [sample.sample_id for sample in samples]),
        ("image_path", [sample.word for sample in samples]),
    ):
        value, count = Counter(values).most_common(1)[0]
        if count > 1:
            way_out = "give each a sample_id of its own" if name == "sample_id" else "name it once"
            raise ConfigError(f"{count} slides have the {name} {value!r}: {way_out}.")


def read_rows(path: str | Path) -> tuple[Sample, ...]:
    """Read a manifest: ``sample_id, image_path[, mask_path, spacing_at_level_0, patient_id]``.

    Our own names of columns, such as ``slide_id`` and ``mpp``, are understood as well. A file that
    is missing is told by the run, as that slide's failure.

    Raises:
        InputError: Naming file and line.
    """
    samples = tuple(map(_row, read_manifest(Path(path))))
    try:
        refuse_twins(samples)
    except ConfigError as error:
        raise InputError(f"{path}: {error}") from error
    return samples


def _row(entry: ManifestEntry) -> Sample:
    extra = entry.extra
    try:
        spacing = _spacing(extra.get("spacing_at_level_0"))
    except ConfigError as error:
        raise InputError(f"{entry.where}: {error}") from error
    return Sample(
        sample_id=entry.slide_id or extra.get("sample_id") or entry.path.stem,
        image_path=entry.url or entry.path,
        mask_path=entry.mask_path,
        spacing_at_level_0=entry.mpp if spacing is None else spacing,
        patient_id=extra.get("patient_id") or extra.get("case_id") or "",
    )


def write_rows(path: Path, samples: Sequence[Sample]) -> None:
    """Write the manifest that a run is given.

    Raises:
        StoreError: If it cannot be written.
    """
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("slide_path", "slide_id", "mpp", "mask_path", "patient_id"))
    for sample in samples:
        mpp, mask = sample.spacing_at_level_0, sample.mask_path
        rows.writerow(
            (
                sample.word,
                sample.sample_id,
                "" if mpp is None else repr(mpp),
                "" if mask is None else mask,
                sample.patient_id,
            )
        )
    write_bytes(path, text.getvalue().encode())


def with_patients(
    samples: Sequence[Sample], patients: Mapping[str, str] | None
) -> tuple[Sample, ...]:
    """Say whose slides these are: by the map, else as they say, else each its own patient's.

    Raises:
        ConfigError: If the map names a slide that there is not.
    """
    known = {} if patients is None else {str(k): str(v) for k, v in patients.items()}
    names = [sample.sample_id for sample in samples]
    if lost := [name for name in known if name not in names]:
        near = difflib.get_close_matches(lost[0], names, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"patient_id_map names {len(lost)} slides that are not given: {few(lost)}.{hint} "
            f"Given are {few(names)}."
        )
    return tuple(
        replace(s, patient_id=known.get(s.sample_id) or s.patient_id or s.sample_id)
        for s in samples
    )


def of_one_patient(samples: Sequence[Sample], patient_id: str | None) -> tuple[Sample, ...]:
    """Say that all slides are one patient's: the id given, the one that they name, or the first's.

    Raises:
        ConfigError: If they name several patients.
    """
    named = list(dict.fromkeys(sample.patient_id for sample in samples if sample.patient_id))
    if patient_id is None and len(named) > 1:
        raise ConfigError(
            f"embed_patient is given slides of {len(named)} patients, {', '.join(named)}. Give "
            "patient_id, or call embed_patients."
        )
    chosen = patient_id or (named[0] if named else samples[0].sample_id)
    return tuple(replace(sample, patient_id=str(chosen)) for sample in samples)


def slides_of(folder: Path, registry: Registry) -> tuple[Sample, ...]:
    """Find the slides that a folder of coordinates is of.

    Raises:
        InputError: If there are none, or the folder does not say where one lies.
        ConfigError: If it is no folder of coordinates.
    """
    config = configure(registry.find("tiler", "stored").spec, folder=str(folder.absolute()))
    found: Mapping[str, str] = registry.create("tiler", "stored", config).slides()
    if not found:
        raise InputError(f"{folder} holds coordinates of no slide.")
    lost = [name for name, path in found.items() if not path]
    if lost:
        raise InputError(
            f"{folder} does not say where the slide of {len(lost)} coordinates lies, {lost[0]} for "
            "one: give slides=."
        )
    return tuple(
        Sample(sample_id=name, image_path=path if is_url(path) else absolute(Path(path)))
        for name, path in sorted(found.items())
    )
