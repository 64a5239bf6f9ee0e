"""The hooks. A package implements those it has something for, in a module that is cheap to import.

Register the module in ``pyproject.toml``::

    [project.entry-points.microtome]
    acme = "microtome_acme"

and implement hooks in it with `hookimpl`; the code that a spec names is imported when chosen.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pluggy

from microtome.plugin.specs import (
    AnnotationSpec,
    EncoderSpec,
    EngineSpec,
    FileFormat,
    InspectorSpec,
    LayoutSpec,
    PatientEncoderSpec,
    ReaderSpec,
    SegmenterSpec,
    SlideEncoderSpec,
    TaskSpec,
    TilerSpec,
    WriterSpec,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

PROJECT = "microtome"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def microtome_readers() -> Iterable[ReaderSpec]:
    """Register slide readers.

    Example::

        from microtome.plugin import ReaderSpec, hookimpl

        @hookimpl
        def microtome_readers():
            yield ReaderSpec(
                name="acme",
                target="microtome_acme.reader:AcmeReader",
                summary="Acme scanners' own format",
                extensions=(".acme",),
            )

    Returns:
        The specs of the readers, each naming a callable ``(path, config) -> Reader``.
    """
    raise NotImplementedError


@hookspec
def microtome_segmenters() -> Iterable[SegmenterSpec]:
    """Register tissue segmenters.

    Example::

        from microtome.plugin import SegmenterSpec, hookimpl

        @hookimpl
        def microtome_segmenters():
            yield SegmenterSpec(
                name="acme",
                target="microtome_acme.tissue:AcmeSegmenter",
                summary="Everything darker than paper",
                input_mpp=10.0,
                max_px=2048,
            )

    Returns:
        The specs of the segmenters, each naming a callable ``(config) -> Segmenter``.
    """
    raise NotImplementedError


@hookspec
def microtome_tilers() -> Iterable[TilerSpec]:
    """Register tilers.

    Example::

        from microtome.plugin import TilerSpec, hookimpl

        @hookimpl
        def microtome_tilers():
            yield TilerSpec(
                name="acme",
                target="microtome_acme.tiles:AcmeTiler",
                summary="One tile in the middle of the tissue",
            )

    Returns:
        The specs of the tilers, each naming a callable ``(config) -> Tiler``.
    """
    raise NotImplementedError


@hookspec
def microtome_inspectors() -> Iterable[InspectorSpec]:
    """Register inspectors: what gives numbers of every tile, for its quality.

    Example::

        from microtome.plugin import InspectorSpec, hookimpl

        @hookimpl
        def microtome_inspectors():
            yield InspectorSpec(
                name="acme",
                target="microtome_acme.quality:AcmeInspector",
                summary="How bright a tile is",
                columns={"brightness": "Mean grey value, 0 to 1."},
            )

    Returns:
        The specs of the inspectors, each naming a callable ``(config) -> Inspector``.
    """
    raise NotImplementedError


@hookspec
def microtome_encoders() -> Iterable[EncoderSpec]:
    """Register patch encoders.

    Example::

        from microtome.plugin import EncoderCard, EncoderSpec, hookimpl

        @hookimpl
        def microtome_encoders():
            yield EncoderSpec(
                name="acme",
                target="microtome_acme.model:AcmeEncoder",
                summary="Mean colour, the simplest encoder there is",
                card=EncoderCard(dim=3),
            )

    Returns:
        The specs of the encoders, each naming a callable ``(config) -> Encoder``.
    """
    raise NotImplementedError


@hookspec
def microtome_slide_encoders() -> Iterable[SlideEncoderSpec]:
    """Register slide encoders: what makes one vector of all tiles of a slide.

    Example::

        from microtome.plugin import SlideEncoderSpec, TileNeed, hookimpl

        @hookimpl
        def microtome_slide_encoders():
            yield SlideEncoderSpec(
                name="acme",
                target="microtome_acme.slides:AcmeSlideEncoder",
                summary="Attention over the tiles of UNI",
                needs=(TileNeed(encoder="uni_v1", patch_size=256, magnification=20),),
                coords="level0",
            )

    Returns:
        The specs of the slide encoders, each naming a callable ``(config) -> SlideEncoder``.
    """
    raise NotImplementedError


@hookspec
def microtome_patient_encoders() -> Iterable[PatientEncoderSpec]:
    """Register patient encoders: what makes one vector of all slides of a patient.

    Example::

        from microtome.plugin import PatientEncoderSpec, hookimpl

        @hookimpl
        def microtome_patient_encoders():
            yield PatientEncoderSpec(
                name="acme",
                target="microtome_acme.patients:AcmePatientEncoder",
                summary="The slide that differs most from the others",
                takes="slides",
            )

    Returns:
        The specs of the patient encoders, each naming a callable ``(config) -> PatientEncoder``.
    """
    raise NotImplementedError


@hookspec
def microtome_writers() -> Iterable[WriterSpec]:
    """Register writers.

    Example::

        from microtome.plugin import WriterSpec, hookimpl

        @hookimpl
        def microtome_writers():
            yield WriterSpec(
                name="acme",
                target="microtome_acme.store:AcmeWriter",
                summary="One npz a slide",
                consumes="features", suffix=".npz", layout="file",
            )

    Returns:
        The specs of the writers, each naming a callable ``(config) -> StoreWriter``,
        ``(config) -> TileWriter`` or ``(config) -> PatchWriter``, as its ``consumes`` says.
    """
    raise NotImplementedError


@hookspec
def microtome_engines() -> Iterable[EngineSpec]:
    """Register engines: what starts the workers of a run.

    Example::

        from microtome.plugin import EngineSpec, hookimpl

        @hookimpl
        def microtome_engines():
            yield EngineSpec(
                name="acme",
                target="microtome_acme.engine:AcmeEngine",
                summary="Workers of Acme's own scheduler",
            )

    Returns:
        The specs of the engines, each naming a callable ``(config) -> Engine``.
    """
    raise NotImplementedError


@hookspec
def microtome_tasks() -> Iterable[TaskSpec]:
    """Register tasks: what a run can do instead of taking slides to features.

    Example::

        from microtome.plugin import TaskSpec, hookimpl

        @hookimpl
        def microtome_tasks():
            yield TaskSpec(
                name="acme",
                target="microtome_acme.tasks:Count",
                summary="Counts the tiles of all slides that are stored",
            )

    Returns:
        The specs of the tasks, each naming a callable ``(config) -> Task``.
    """
    raise NotImplementedError


@hookspec
def microtome_annotations() -> Iterable[AnnotationSpec]:
    """Register formats of annotations: what people drew on slides.

    Example::

        from microtome.plugin import AnnotationSpec, hookimpl

        @hookimpl
        def microtome_annotations():
            yield AnnotationSpec(
                name="acme",
                target="microtome_acme.annotations:AcmeReader",
                summary="Outlines that were drawn in Acme's viewer",
                extensions=(".acme.json",), tool="Acme Viewer",
            )

    Returns:
        The specs of the formats, each naming a callable ``() -> AnnotationReader``.
    """
    raise NotImplementedError


@hookspec
def microtome_layouts() -> Iterable[LayoutSpec]:
    """Register layouts: other tools' files, to export to and to import from.

    Example::

        from microtome.plugin import LayoutSpec, hookimpl

        @hookimpl
        def microtome_layouts():
            yield LayoutSpec(
                name="acme",
                target="microtome_acme.layout:AcmeLayout",
                summary="A CSV of coordinates a slide, as Acme's viewer reads it",
                tool="Acme Viewer",
                loses="features",
            )

    Returns:
        The specs of the layouts, each naming a callable ``(config) -> Layout``.
    """
    raise NotImplementedError


@hookspec
def microtome_file_formats() -> Iterable[FileFormat]:
    """Register kinds of plugin files that other tools define.

    Example::

        from microtome.plugin import FileFormat, hookimpl

        @hookimpl
        def microtome_file_formats():
            yield FileFormat(
                function="register_acme_models",
                target="microtome_acme.files:adapt",
                importing="microtome_acme.files:stand_ins",
            )

    Returns:
        The formats, each naming what makes an object with hooks of a file's module.
    """
    raise NotImplementedError


@hookspec
def microtome_run_started(run: Mapping[str, Any]) -> None:
    """Observe that a run starts. Called in the driving process only; raising drops the observer.

    Example::

        from microtome.plugin import hookimpl

        @hookimpl
        def microtome_run_started(run):
            print("slides:", run["slides"])

    Args:
        run: The run record as it stands: resolved configuration, versions, number of slides.

    Returns:
        Nothing.
    """


@hookspec
def microtome_slide_finished(status: Mapping[str, Any]) -> None:
    """Observe that a slide is done, empty, reused or failed. Raising drops the observer.

    Example::

        from microtome.plugin import hookimpl

        @hookimpl
        def microtome_slide_finished(status):
            print(status["slide_id"], status["state"])

    Args:
        status: The slide's status record.

    Returns:
        Nothing.
    """


@hookspec
def microtome_run_finished(run: Mapping[str, Any]) -> None:
    """Observe that a run is over. Raising drops the observer.

    Example::

        from microtome.plugin import hookimpl

        @hookimpl
        def microtome_run_finished(run):
            print("exit code", run["exit_code"])

    Args:
        run: The run record: counts of slides by state, seconds, exit code.

    Returns:
        Nothing.
    """
