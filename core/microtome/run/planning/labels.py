"""Labels in a run: what is refused before a slide is opened, and which file is whose."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from microtome.errors import ConfigError, InputError, MissingDependencyError
from microtome.plugin.registry import Registry
from microtome.plugin.specs import WriterSpec
from microtome.run.inputs.annotated import file_key, list_annotations, recognise_format
from microtome.run.inputs.paths import is_file
from microtome.run.labelling import LabelBy, LabelSettings, Origin, OtherGroups, WithoutFile
from microtome.run.settings import RunConfig
from microtome.slide.groups import group_key
from microtome.slide.labels import LabelRule
from microtome.slide.types import SlideRef
from microtome.store.identity import describe
from microtome.store.patches import LABELLED

LABEL_VERSION = 1
"""Of how outlines become labels, part of their identity: raised when labels change."""

_SHOWN = 3


def wants_labels(config: RunConfig) -> bool:
    """Whether a run labels its tiles."""
    return bool(config.labels.classes) and config.task in ("coords", "process")


def label_rule(settings: LabelSettings) -> LabelRule:
    """Give the rule that settings describe."""
    names = settings.names
    groups = {
        group_key(group): names.index(name)
        for name, own in settings.classes.items()
        for group in own
    }
    return LabelRule(
        classes=names,
        groups=groups,
        exclude=frozenset(map(group_key, settings.exclude)),
        exclude_others=settings.others is OtherGroups.exclude,
        centre=settings.rule is LabelBy.centre,
        min_fraction=settings.min_fraction,
    )


def check_labels(config: RunConfig) -> None:
    """Refuse options of labels that make no sense, whatever the slides.

    Raises:
        ConfigError: If it is not said which groups are what, or there is nothing to go by.
        InputError: If the annotations are not there, or cannot be looked at.
        MissingDependencyError: If shapely is not installed.
    """
    settings, asked = config.labels, config.annotations is not None or config.labels.required
    if config.task == "tissue" or not (asked or settings.classes):
        return
    if len(settings.names) < 2:
        raise ConfigError(
            "Tiles are labelled by classes, and labels.classes names none beside the background: "
            "say which groups of outlines are what, labels.classes.tumor=[Tumor,metastases]."
        )
    if config.annotations is not None:
        _refuse_absent(config.annotations)
    if find_spec("shapely") is None:
        raise MissingDependencyError(
            "Labels of tiles need shapely, which is not installed. "
            "Install with: pip install 'microtome[annotations]'"
        )


def _refuse_absent(place: Path) -> None:
    try:
        place.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise InputError(f"There is no file or folder annotations={place}.") from error
    except OSError as error:
        told = error.strerror or error
        raise InputError(f"annotations={place} cannot be read: {told}.") from error


def check_files(
    config: RunConfig, slides: Sequence[SlideRef], registry: Registry
) -> tuple[str, ...]:
    """Refuse a run whose slides have nothing to be labelled by, and say which have.

    Args:
        config: The run.
        slides: That it found.
        registry: Knows the formats.

    Returns:
        What the user should know before it starts, a sentence each.

    Raises:
        ConfigError: If there are no annotations at all, or one file for several slides.
        InputError: If a file is named as several slides, or a folder cannot be listed.
    """
    given = [ref for ref in slides if ref.annotation_path is not None]
    if not wants_labels(config):
        brings_labels = getattr(registry.find("tiler", config.tiler.plugin).spec, "labels", False)
        if not given or config.task == "tissue" or brings_labels:
            return ()
        told = f"The {len(given)} annotation_path given are not looked at: "
        return (f"{told}labels.classes.NAME=[GROUP,…] labels tiles by them.",)
    folder = config.annotations
    if folder is None and not given:
        raise ConfigError(
            "labels.classes says what outlines mean, and there are none: give "
            "annotations=FOLDER, or a manifest with the column annotation_path."
        )
    if folder is not None and not _is_folder(folder) and len(slides) - len(given) > 1:
        raise ConfigError(
            f"annotations={folder} is one slide's file, and the run has {len(slides)} slides: give "
            "a folder with a file for each, or a manifest with the column annotation_path."
        )
    found = {
        ref.slide_id: _files_of(config.annotations, ref, registry)
        for ref in slides
        if ref.annotation_path is None
    }
    _refuse_shared(folder, found)
    return (
        *_tell_idle(config.labels),
        *_tell_files(config, given, found, registry),
        *_tell_overruled(config, given, registry),
        *_tell_lost(config, registry),
    )


def _refuse_shared(folder: Path | None, found: Mapping[str, Sequence[Path]]) -> None:
    """Refuse a file that is named as several slides: of at most one of them it is true."""
    owners: dict[Path, str] = {}
    for slide_id, files in found.items():
        for file in files:
            first = owners.setdefault(file, slide_id)
            if first != slide_id:
                raise InputError(
                    f"{file} is named as both {first} and {slide_id}, and can be the outlines of "
                    f"one: name each slide's file by its slide id ({folder}/{slide_id}"
                    f"{file.suffix}), or in a manifest's column annotation_path."
                )


def _tell_idle(settings: LabelSettings) -> Iterator[str]:
    """Tell of an option that changes nothing."""
    least = settings.min_fraction
    if settings.rule is LabelBy.centre and least != LabelSettings().min_fraction:
        yield (
            f"labels.min_fraction={least:g} changes nothing: labels.rule=centre goes by the centre "
            "of a tile alone, and labels.rule=fraction by its area."
        )


def _tell_files(
    config: RunConfig,
    given: Sequence[SlideRef],
    found: Mapping[str, Sequence[Path]],
    registry: Registry,
) -> Iterator[str]:
    """Tell how many slides have outlines, and which files are of none.

    Args:
        config: The run.
        given: The slides that have a file by the manifest.
        found: The files of each other slide.
        registry: Knows the formats.
    """
    count = len(given) + len(found)
    having = len(given) + sum(bool(files) for files in found.values())
    meaning = {
        "background": f"all tiles of the others are {config.labels.background}",
        "unlabelled": "the others have no labels",
        "fail": "the others fail, as labels.missing=fail says",
    }[config.labels.missing.name]
    told = f"labels {', '.join(config.labels.names)}: "
    told += f"{having} of {count} slides have outlines"
    yield told if having == count else f"{told}; {meaning}"
    if config.annotations is None or having == count:
        return
    named = {path for files in found.values() for path in files}
    named |= {path for ref in given for path in _files_of(config.annotations, ref, registry)}
    there = list_annotations(config.annotations, registry).values()
    strangers = sorted(path.name for paths in there for path in paths if path not in named)
    if strangers:
        more = f" and {len(strangers) - _SHOWN} more" if len(strangers) > _SHOWN else ""
        yield (
            f"{config.annotations}: {', '.join(strangers[:_SHOWN])}{more} "
            f"{'are' if len(strangers) > 1 else 'is'} named as no slide of this run."
        )


def _tell_overruled(
    config: RunConfig, given: Sequence[SlideRef], registry: Registry
) -> Iterator[str]:
    """Tell of files that are named as slides of which the manifest names another."""
    if config.annotations is None or not _is_folder(config.annotations):
        return
    files = {
        path
        for ref in given
        for path in _files_of(config.annotations, ref, registry)
        if ref.annotation_path is not None and path.resolve() != ref.annotation_path.resolve()
    }
    if files:
        shown = ", ".join(sorted(path.name for path in files)[:_SHOWN])
        more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
        yield (
            f"{config.annotations}: {shown}{more} {'are' if len(files) > 1 else 'is'} not looked "
            "at: the manifest's annotation_path names another file for the slide."
        )


def _tell_lost(config: RunConfig, registry: Registry) -> Iterator[str]:
    """Tell of labels that are made for nothing: no writer of the run stores them."""
    specs = [registry.find("writer", choice.plugin).spec for choice in config.writers]
    keeping = ("features", LABELLED)
    if not any(isinstance(spec, WriterSpec) and spec.consumes in keeping for spec in specs):
        names = ", ".join(choice.name for choice in config.writers)
        yield (
            f"labels are counted and stored nowhere: writer=[{names}] keeps none. Add a writer "
            "that does, hdf5 or zarr, or one of labelled images, such as imagefolder."
        )


def find_file(config: RunConfig, ref: SlideRef, registry: Registry) -> Path | None:
    """Find a slide's file of outlines: the manifest's, or the one that is named as the slide.

    Args:
        config: The run.
        ref: The slide.
        registry: Knows the suffixes of the formats.

    Returns:
        The file; None if there is none, and that is no error.

    Raises:
        InputError: If the file that the manifest names is not there, there are several, or there
            is none and ``labels.missing=fail``.
    """
    if ref.annotation_path is not None:
        if not is_file(ref.annotation_path):
            raise InputError(f"There is no file annotation_path={ref.annotation_path}.")
        return ref.annotation_path
    found = _files_of(config.annotations, ref, registry)
    if len(found) > 1:
        raise InputError(
            f"{ref.slide_id} has several files of outlines, {found[0].name} and {found[1].name} in "
            f"{found[0].parent}: leave one there, or name it in a manifest's annotation_path."
        )
    if not found and config.labels.missing is WithoutFile.fail:
        raise InputError(
            f"{ref.slide_id} has no file of outlines in {config.annotations or 'the manifest'}. "
            f"labels.missing=background takes all of its tiles for {config.labels.background}."
        )
    return found[0] if found else None


def _files_of(place: Path | None, ref: SlideRef, registry: Registry) -> Sequence[Path]:
    """List the files that are named as a slide: by its id, its stem or its whole name."""
    if place is None or not _is_folder(place):
        return () if place is None else (place,)
    folder, _, name = ref.slide_id.rpartition("/")
    names = sorted({file_key(each) for each in (name, ref.path.stem, ref.path.name)})
    for each in dict.fromkeys([place / folder, place]):
        by_name = list_annotations(each, registry)
        if found := [path for name in names for path in by_name.get(name, ())]:
            return found
    return ()


def _is_folder(place: Path) -> bool:
    try:
        return place.is_dir()
    except OSError as error:
        told = error.strerror or error
        raise InputError(f"annotations={place} cannot be read: {told}.") from error


def label_fields(settings: LabelSettings, file: Path | None, registry: Registry) -> dict[str, Any]:
    """Give what a slide's labels depend on besides its tiles.

    Args:
        settings: The run's.
        file: The slide's outlines; None without.
        registry: Knows the formats.

    Raises:
        InputError: If the file cannot be read.
        AnnotationError: If no format recognises it.
        PluginError: As of `recognise_format`.
    """
    rule: dict[str, Any] = {"classes": [*settings.names], "version": LABEL_VERSION}
    if file is None:
        return {"labels": {**rule, "missing": settings.missing.name}, "file": ""}
    rule |= {
        "groups": [sorted(map(group_key, settings.classes.get(n, ()))) for n in settings.names],
        "exclude": sorted(map(group_key, settings.exclude)),
        "rule": settings.rule.name,
    }
    if settings.rule is LabelBy.fraction:
        rule["min_fraction"] = settings.min_fraction
    if settings.others is OtherGroups.exclude:
        rule["others"] = settings.others.name
    if settings.origin is Origin.bounds:
        rule["origin"] = settings.origin.name
    # In this order: a file that is changed in between does not pass when it has been read.
    content = digest_file(file)
    return {
        "labels": rule,
        "file": content,
        "format": describe(recognise_format(file, registry), None),
    }


def digest_file(file: Path) -> str:
    """Hash a file of outlines.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}.") from error
