"""Check everything that an output holds: against its records, and by itself."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from microtome.plugin.registry import Registry
from microtome.plugin.specs import TaskSpec, WriterSpec
from microtome.store.atomic import owner_of
from microtome.store.checks import Checker, Expected
from microtome.store.damage import AGAIN, Wrong
from microtome.store.layout import OutputLayout, taken_folders
from microtome.store.picture_checks import check_mask, check_overlay, check_regions
from microtome.store.same_labels import differing_labels
from microtome.store.status import FAILED
from microtome.store.survey import (
    SlideView,
    find_patients,
    find_slides,
    find_tilings,
    look,
    written,
)

_LOOKS = 3
"""At a slide that changes meanwhile."""

_LEFT = "{} is left of a process that died. Run the same command again, which sweeps it away."
_STALE = "{}: the worker{} is gone. Run the same command again, which takes the slide over."


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that is wrong.

    Attributes:
        kind: ``"output"`` (a file is not what it should be), ``"missing"``, ``"record"`` (of a
            status or a run), ``"claim"`` or ``"leftover"``.
        slide_id: The slide, where it is known.
        tiling: Name of the tiling; empty for none.
        path: The file or folder, below the output.
        message: What is wrong, where, and what to do.
    """

    kind: str
    slide_id: str
    tiling: str
    path: str
    message: str


@dataclass(eq=False, kw_only=True)
class Verification:
    """What was found.

    Attributes:
        files: How many outputs and records were checked, of slides and patients; a folder counts
            once.
        slides: Slides with a record or an output, over all tilings.
        running: Slides that were left out since a worker has them.
        faults: What is wrong.
        notes: What is no fault, and good to know.
    """

    files: int = 0
    slides: int = 0
    running: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify_output(
    output: Path,
    registry: Registry,
    *,
    deep: bool = True,
    tell: Callable[[int, int], None] = lambda done, slides: None,
) -> Verification:
    """Check an output: records, stores, patients, images, masks, overlays, claims and leftovers.

    Nothing is changed. Of features a bounded part is in memory at a time. Slides that a worker has
    at the moment are left out.

    Args:
        output: The output folder.
        registry: The writers that read it.
        deep: Whether all values and images are read; only shapes and attributes otherwise.
        tell: Told how many slides are done, of how many.

    Raises:
        InputError: If the folder is no output.
    """
    specs = [entry.spec for entry in registry.entries("writer")]
    writers = [spec for spec in specs if isinstance(spec, WriterSpec)]
    layouts = find_tilings(output, taken_folders(registry))
    tasks = [e.spec for e in registry.entries("task")]
    work = _Verifier(Checker(registry=registry, deep=deep), writers, layouts)
    work.folders |= {name for spec in tasks if isinstance(spec, TaskSpec) for name in spec.folders}
    work.run(tell)
    return work.found


class _Verifier:
    def __init__(
        self, checker: Checker, writers: list[WriterSpec], layouts: list[OutputLayout]
    ) -> None:
        self.found = Verification()
        self._checker, self._writers, self._layouts = checker, writers, layouts
        self._top = OutputLayout(layouts[0].output)
        self._elsewhere = 0
        self.folders = {spec.folder for spec in writers}

    def run(self, tell: Callable[[int, int], None]) -> None:
        """Check slide after slide, then what no slide owns alone."""
        slides: dict[tuple[OutputLayout, str], dict[Path, WriterSpec]] = {}
        for layout in self._layouts:
            slides |= {(layout, slide_id): {} for slide_id in find_slides(layout)}
            for path, slide_id, spec in self._outputs(layout):
                slides.setdefault((layout, slide_id), {}).setdefault(path, spec)
        self.found.slides = len(slides)
        for done, ((layout, slide_id), paths) in enumerate(slides.items()):
            tell(done, len(slides))
            self._slide(layout, slide_id, paths)
        tell(len(slides), len(slides))
        for layout in self._layouts:
            self._patients(layout)
        self._tissue()
        self._runs()
        for folder in self._folders():
            self._leftovers(folder)
        self._note()

    def _outputs(self, layout: OutputLayout) -> Iterator[tuple[Path, str, WriterSpec]]:
        """Find what writers wrote of slides, whether a record tells of it or not."""
        for spec in self._writers:
            yield from written(layout.root / spec.folder, spec)

    def _patients(self, layout: OutputLayout) -> None:
        """Check what writers wrote of patients."""
        for path, spec in find_patients(layout, self._writers).items():
            self._add(path, *self._checker.patient(path, spec, layout))

    def _slide(self, layout: OutputLayout, slide_id: str, paths: dict[Path, WriterSpec]) -> None:
        """Check a slide; once more if it changed meanwhile, for then it was two things at once."""
        for _ in range(_LOOKS):
            before = _moment(layout, slide_id)
            view = look(layout, slide_id)
            if view.is_running:
                self.found.running.append(slide_id)
                return
            counted = list(self._check(view, paths))
            faults = [fault for _, found in counted for fault in found]
            if not faults or before == _moment(layout, slide_id):
                break
        self.found.files += len(counted)
        self.found.faults += faults

    def _check(
        self, view: SlideView, paths: dict[Path, WriterSpec]
    ) -> Iterator[tuple[Path, list[Fault]]]:
        """Check everything of a slide but its tissue, file by file."""
        layout, status = view.layout, view.status
        record = layout.status(view.slide_id)
        yield record, list(self._record(view, bool(paths)))
        finished = status is not None and status.state not in FAILED
        listed = {} if status is None else {n: layout.output / p for n, p in status.outputs.items()}
        for path in listed.values() if finished else ():
            if not path.exists():
                what = Wrong("it is missing, its slide's record says that it is there", AGAIN)
                yield path, [self._fault("missing", view, path, what)]
        for name, path in listed.items():
            if name.endswith(" overlay") and path.exists():
                identities = dict(status.identities) if status is not None and finished else {}
                known = {k: v for k, v in identities.items() if k in ("tissue", "coords")}
                wrong = check_overlay(path, known)
                yield path, [self._fault("output", view, path, w) for w in wrong]
        specs = self._specs(view, paths, listed)
        differing = differing_labels(specs, listed.values(), self._checker.registry)
        stale = {path: (wrong,) for path, wrong in differing}
        for path, spec in specs.items():
            expected = _expected(view, spec) if path in listed.values() else Expected()
            found = [*self._checker.check(path, spec, expected), *stale.get(path, ())]
            yield path, [self._fault("output", view, path, w) for w in found]

    def _specs(
        self, view: SlideView, paths: dict[Path, WriterSpec], listed: dict[str, Path]
    ) -> dict[Path, WriterSpec]:
        """Say which writer reads which output: that of the record, else the one of the suffix."""
        by_name = {spec.name: spec for spec in self._writers}
        named = {p: by_name[n] for n, p in listed.items() if n in by_name and p.exists()}
        return {path: named.get(path, spec) for path, spec in paths.items()} | named

    def _record(self, view: SlideView, has_outputs: bool) -> Iterator[Fault]:
        """Check that a slide has a record, if it has anything, and that no dead worker has it."""
        path = view.layout.status(view.slide_id)
        if view.damage:
            yield self._fault("record", view, path, Wrong(view.damage, ""))
        elif view.status is None and (has_outputs or view.earlier):
            wrong = Wrong("it is missing, the run of its slide ended before it was written", AGAIN)
            yield self._fault("record", view, path, wrong)
        elif view.status is not None and view.status.state not in FAILED:
            yield from self._tissue_place(view)
        if view.holder is not None:
            attempt = view.holder.attempt
            who = "" if attempt is None else f", process {attempt.pid} of {attempt.host},"
            claim = view.layout.claim(view.slide_id, ".lease")
            yield self._fault("claim", view, claim, Wrong(_STALE.format(claim, who), ""))

    def _tissue_place(self, view: SlideView) -> Iterator[Fault]:
        """Check that a record names the tissue of its identity; what is in it is checked later."""
        status = view.status
        if status is None or "tissue" not in status.identities:
            return
        for name, suffix in (("tissue", ".png"), ("regions", ".geojson")):
            path = view.layout.tissue(view.slide_id, status.identities["tissue"], suffix)
            told = status.outputs.get(name)
            if told != view.layout.relative(path):
                wrong = Wrong(f"it names the {name} {told}, and has the identity of {path}", AGAIN)
                yield self._fault("record", view, view.layout.status(view.slide_id), wrong)

    def _tissue(self) -> None:
        """Check every mask and its regions; all tilings share them."""
        masks = _visible(self._top.tissue_folder, ".png")
        regions = _visible(self._top.tissue_folder, ".geojson")
        for path in masks:
            self._add(path, *check_mask(path))
        for path in regions:
            self._add(path, *check_regions(path))
        self._halves(set(masks), set(regions))

    def _halves(self, masks: set[Path], regions: set[Path]) -> None:
        """Find masks without regions, regions without a mask, that no record and no worker has."""
        told = {self._top.output / fault.path for fault in self.found.faults}
        missing = {path.with_suffix(".geojson"): path for path in masks}
        missing |= {path.with_suffix(".png"): path for path in regions}
        for path, other in sorted(missing.items()):
            slide_id = self._top.relative(path).partition("/")[2].rsplit(".", 2)[0]
            if path in masks | regions | told or slide_id in self.found.running:
                continue
            self._add(path, Wrong(f"it is missing, and {other} is there", AGAIN), kind="missing")

    def _runs(self) -> None:
        for path in _visible(self._top.runs_folder, "run.json"):
            try:
                json.loads(path.read_text("utf-8"))
                self._add(path)
            except (OSError, ValueError):
                self._add(path, Wrong("it is no record of a run, or is damaged", "Delete it"))

    def _folders(self) -> set[Path]:
        top = {self._top.tissue_folder, self._top.runs_folder}
        for layout in self._layouts:
            top |= {layout.status_folder, layout.visualization_folder, layout.claims_folder}
            top.add(layout.patients_folder)
            top |= {layout.root / name for name in self.folders}
        return top

    def _leftovers(self, top: Path) -> None:
        """Find private files whose process is gone."""
        for folder, names, files in os.walk(top):
            private = {name: owner_of(name) for name in (*names, *files)}
            names[:] = [name for name in names if not private[name]]
            for name in sorted(name for name, owner in private.items() if owner == "dead"):
                path = Path(folder, name)
                self._add(path, Wrong(_LEFT.format(path), ""), kind="leftover")
            self._elsewhere += sum(owner == "elsewhere" for owner in private.values())

    def _note(self) -> None:
        notes, unguarded = self.found.notes, len(self._checker.unguarded)
        if self.found.running:
            notes.append(f"{len(self.found.running)} slides are being worked on and were left out.")
        if unguarded:
            notes.append(
                f"{unguarded} outputs carry no checksum, or not for all they hold, as earlier "
                "versions wrote them: a flipped bit in them may go unseen."
            )
        if self._elsewhere:
            notes.append(
                f"{self._elsewhere} private files (.tmp) belong to processes of other machines; "
                "runs there sweep away those of dead ones."
            )

    def _add(self, path: Path, *wrong: Wrong, kind: str = "") -> None:
        self.found.files += 1
        view = SlideView(layout=self._top, slide_id="")
        of = kind or ("record" if path.suffix == ".json" else "output")
        self.found.faults += [self._fault(of, view, path, w) for w in wrong]

    def _fault(self, kind: str, view: SlideView, path: Path, wrong: Wrong) -> Fault:
        message = f"{path}: {wrong.what}. {wrong.remedy}." if wrong.remedy else wrong.what
        return Fault(
            kind=kind,
            slide_id=view.slide_id,
            tiling=view.tiling,
            path=view.layout.relative(path),
            message=message,
        )


def _expected(view: SlideView, spec: WriterSpec) -> Expected:
    """Give what a finished slide's record says of what a writer wrote."""
    status = view.status
    if status is None or status.state in FAILED:
        return Expected()
    has_features = spec.consumes == "features" and status.task == "process"
    encoders = status.encoders if has_features else ()
    return Expected(tiles=status.tiles, identities=status.identities, encoders=encoders)


def _moment(layout: OutputLayout, slide_id: str) -> tuple[int | None, bool]:
    """Tell one moment of a slide from another: no worker changes anything without a claim."""
    try:
        written = layout.status(slide_id).stat().st_mtime_ns
    except OSError:
        written = None
    return written, layout.claim(slide_id, ".lease").exists()


def _visible(top: Path, suffix: str) -> list[Path]:
    """List the files of a suffix below a folder that are not private."""
    found = top.rglob(f"*{suffix}")
    return sorted(path for path in found if not path.name.startswith(".") and path.is_file())
