"""What a format of annotations promises: a drawing in its file comes out as it was drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from microtome.errors import AnnotationError
from microtome.plugin.registry import Registered, Registry
from microtome.plugin.specs import AnnotationSpec
from microtome.run.inputs.annotated import HEAD, read_annotations
from microtome.slide.annotations import Annotation
from microtome.slide.types import SlideInfo
from microtome.testing.contracts.base import PluginContract
from microtome.testing.samples import make_info

OUTLINE = ((1000.0, 2000.0), (1400.0, 2000.0), (1300.0, 2400.0), (1000.0, 2300.0))
"""What `AnnotationContract.make_sample` draws, in level-0 pixels."""

_AREA = 125_000.0
_FOREIGN = (b"", b"\x89PNG\r\n\x1a\n" + bytes(64), b"slide_id,x,y\na,1,2\n", b"\xff\xfe\x00")


class AnnotationContract(PluginContract):
    """Subclass it for a format of annotations, and say how to write one.

    Attributes:
        group: What the polygon that ``make_sample`` writes is called.
    """

    kind: ClassVar[str] = "annotation"
    group: ClassVar[str] = "Tumor"

    def make_sample(self, folder: Path) -> Path:
        """Write a file as the tool does, with the polygon `OUTLINE` in ``group`` and no more.

        Args:
            folder: An empty one.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a make_sample(folder)")

    def make_slide(self) -> SlideInfo:
        """Describe the slide that it is drawn on; 20000 × 15000 pixels of 0.25 µm."""
        return make_info()

    @pytest.fixture
    def sample(self, tmp_path: Path) -> Path:
        """The file."""
        (tmp_path / "sample").mkdir()
        return self.make_sample(tmp_path / "sample")

    @pytest.fixture
    def reader(self, registry: Registry, entry: Registered) -> Any:
        """What reads it."""
        return registry.load("annotation", entry.spec.name)()

    def test_its_spec_names_tool_and_extensions(self, entry: Registered) -> None:
        """Files are found by extension, messages name the tool."""
        assert isinstance(entry.spec, AnnotationSpec)
        assert entry.spec.tool.strip()
        assert entry.spec.extensions
        assert all(e.startswith(".") and e == e.lower() for e in entry.spec.extensions)

    def test_it_recognises_its_own_files(self, reader: Any, sample: Path) -> None:
        """And no others; what is told from the first bytes may be told again."""
        head = sample.read_bytes()[:HEAD]
        assert reader.recognises(head) is True
        assert reader.recognises(head) is True
        assert not any(reader.recognises(foreign) for foreign in _FOREIGN)

    def test_the_core_finds_it(self, registry: Registry, entry: Registered, sample: Path) -> None:
        """By extension and first bytes, among all formats."""
        assert isinstance(entry.spec, AnnotationSpec)
        assert sample.name.lower().endswith(entry.spec.extensions)
        assert len(read_annotations(sample, self.make_slide(), registry)) == 1

    def test_what_was_drawn_comes_out(self, reader: Any, sample: Path) -> None:
        """In level-0 pixels, in its group, with a place for messages."""
        (drawn,) = reader.read(sample, self.make_slide())
        assert isinstance(drawn, Annotation)
        assert drawn.geometry.is_valid
        assert drawn.geometry.geom_type in ("Polygon", "MultiPolygon")
        assert drawn.geometry.area == pytest.approx(_AREA, rel=1e-3)
        assert drawn.geometry.bounds == pytest.approx((1000, 2000, 1400, 2400), abs=0.5)
        assert (drawn.group, drawn.repaired) == (self.group, "")
        assert drawn.where

    def test_reading_changes_nothing(self, reader: Any, sample: Path) -> None:
        """Neither the file nor what is read next."""
        before = sample.read_bytes()
        first, second = (reader.read(sample, self.make_slide()) for _ in range(2))
        assert sample.read_bytes() == before
        assert [a.geometry.wkb for a in first] == [a.geometry.wkb for a in second]

    @pytest.mark.parametrize("known", ["nothing", "no properties"])
    def test_of_a_slide_that_says_little_it_reads_or_says_so(
        self, reader: Any, sample: Path, known: str
    ) -> None:
        """In one sentence, naming the file: a plain image has no properties."""
        slide = replace(self.make_slide(), properties={}) if known != "nothing" else None
        found, refusal = _or_refusal(lambda: reader.read(sample, slide))
        if refusal:
            assert str(sample) in refusal
        else:
            assert [a.geometry.area for a in found] == [pytest.approx(_AREA, rel=1e-3)]

    @pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
    def test_half_a_file_is_refused(self, reader: Any, sample: Path, share: float) -> None:
        """In one sentence, naming the file."""
        data = sample.read_bytes()
        sample.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(AnnotationError) as caught:
            reader.read(sample, self.make_slide())
        assert str(sample) in str(caught.value)

    def test_other_bytes_are_refused(self, reader: Any, sample: Path) -> None:
        """In one sentence, naming the file."""
        for foreign in _FOREIGN:
            sample.write_bytes(foreign)
            with pytest.raises(AnnotationError) as caught:
                reader.read(sample, self.make_slide())
            assert str(sample) in str(caught.value)

    def test_the_core_refuses_what_nobody_knows(self, registry: Registry, sample: Path) -> None:
        """Naming the formats that there are."""
        sample.write_bytes(b"nothing that any tool wrote")
        with pytest.raises(AnnotationError, match=r"Formats: .*\("):
            read_annotations(sample, self.make_slide(), registry)


def _or_refusal(read: Callable[[], Sequence[Annotation]]) -> tuple[Sequence[Annotation], str]:
    try:
        return read(), ""
    except AnnotationError as error:
        return (), str(error)
