"""Labels in a run: what is refused before a slide is opened, and which file is whose."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from microtome.errors import ConfigError, InputError, MissingDependencyError
from microtome.plugin.registry import Registry
from microtome.plugin.specs import AnnotationSpec
from microtome.run.labelling import LabelBy, LabelSettings, Origin, OtherGroups, WithoutFile
from microtome.run.settings import RunConfig
from microtome.slide.labels import LabelRule, group_key
from microtome.slide.types import SlideRef

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
        InputError: If the annotations are not there.
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
    if config.annotations is not None and not config.annotations.exists():
        raise InputError(f"There is no file or folder annotations={config.annotations}.")
    if find_spec("shapely") is None:
        raise MissingDependencyError(
            "Labels of tiles need shapely, which is not installed. "
            "Install with: pip install 'microtome[annotations]'"
        )


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
    """
    given = [ref for ref in slides if ref.annotation_path is not None]
    if not wants_labels(config):
        if not given or config.task == "tissue":
            return ()
        told = f"The {len(given)} annotation_path given are not looked at: "
        return (f"{told}labels.classes.NAME=[GROUP,…] labels tiles by them.",)
    folder = config.annotations
    if folder is None and not given:
        raise ConfigError(
            "labels.classes says what outlines mean, and there are none: give "
            "annotations=FOLDER, or a manifest with the column annotation_path."
        )
    if folder is not None and not folder.is_dir() and len(slides) - len(given) > 1:
        raise ConfigError(
            f"annotations={folder} is one slide's file, and the run has {len(slides)} slides: give "
            "a folder with a file for each, or a manifest with the column annotation_path."
        )
    return tuple(_tell_files(config, slides, registry))


def _tell_files(config: RunConfig, slides: Sequence[SlideRef], registry: Registry) -> list[str]:
    listed = _Files(config.annotations, registry)
    owned = {ref.slide_id: ref.annotation_path or listed.of(ref) for ref in slides}
    having = sum(bool(files) for files in owned.values())
    meaning = {
        "background": f"all tiles of the others are {config.labels.background}",
        "unlabelled": "the others have no labels",
        "fail": "the others fail, as labels.missing=fail says",
    }[config.labels.missing.name]
    told = f"labels {', '.join(config.labels.names)}: "
    told += f"{having} of {len(slides)} slides have outlines"
    notes = [told if having == len(slides) else f"{told}; {meaning}"]
    named = {path for files in owned.values() if isinstance(files, list) for path in files}
    if config.annotations is not None and config.annotations.is_dir():
        strangers = sorted(path.name for path in listed.all() if path not in named)
        if strangers and having < len(slides):
            more = f" and {len(strangers) - _SHOWN} more" if len(strangers) > _SHOWN else ""
            notes.append(
                f"{config.annotations}: {', '.join(strangers[:_SHOWN])}{more} "
                f"{'are' if len(strangers) > 1 else 'is'} named as no slide of this run."
            )
    return notes


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
        if not ref.annotation_path.is_file():
            raise InputError(f"There is no file annotation_path={ref.annotation_path}.")
        return ref.annotation_path
    found = _Files(config.annotations, registry).of(ref)
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


class _Files:
    """The files of outlines in a folder, or the one file."""

    def __init__(self, place: Path | None, registry: Registry) -> None:
        self._place = place
        specs = (entry.spec for entry in registry.entries("annotation"))
        self._suffixes = tuple(
            suffix for spec in specs if isinstance(spec, AnnotationSpec)
            for suffix in spec.extensions
        )  # fmt: skip
        self._known: dict[Path, dict[str, list[Path]]] = {}

    def of(self, ref: SlideRef) -> list[Path]:
        """List the files that are named as a slide: by its id, its stem or its whole name."""
        if self._place is None or not self._place.is_dir():
            return [] if self._place is None else [self._place]
        folder, _, name = ref.slide_id.rpartition("/")
        names = {_nfc(each) for each in (name, ref.path.stem, ref.path.name)}
        for place in dict.fromkeys([self._place / folder, self._place]):
            by_name = self._list(place)
            if found := [path for each in sorted(names) for path in by_name.get(each, ())]:
                return found
        return []

    def all(self) -> list[Path]:
        """List the files of the folder itself."""
        return [p for files in self._list(self._place or Path()).values() for p in files]

    def _list(self, folder: Path) -> dict[str, list[Path]]:
        """List a folder's files by their names without the suffix."""
        if folder not in self._known:
            found: dict[str, list[Path]] = {}
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                fits = [s for s in self._suffixes if path.name.lower().endswith(s)]
                if fits and not path.name.startswith(".") and path.is_file():
                    stem = path.name[: -max(map(len, fits))]
                    found.setdefault(_nfc(stem), []).append(path)
            self._known[folder] = found
        return self._known[folder]


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def label_fields(settings: LabelSettings, file: Path | None, registry: Registry) -> dict[str, Any]:
    """Give what a slide's labels depend on besides its tiles.

    Args:
        settings: The run's.
        file: The slide's outlines; None without.
        registry: Knows the formats.

    Raises:
        InputError: If the file cannot be read.
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
    try:
        with file.open("rb") as opened:
            content = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}.") from error
    formats = {
        spec.name: spec.output_version
        for entry in registry.entries("annotation")
        if isinstance(spec := entry.spec, AnnotationSpec)
        and file.name.lower().endswith(spec.extensions)
    }
    return {"labels": rule, "file": content, "formats": formats}
