"""Which format reads a file, and what is refused whoever wrote it."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise
from types import ModuleType

import pytest
import shapely
from annotation_files import FORMATS, asap, asap_annotation, collection, feature, imagescope, put

from microtome.errors import AnnotationError, MissingDependencyError, PluginError
from microtome.plugin import AnnotationSpec, hookimpl
from microtome.plugin.registry import Registry, get_registry
from microtome.run.inputs.annotated import annotation_extensions, read_annotations
from microtome.slide.annotations import Annotation

SQUARE = ((0, 0), (100, 0), (100, 100), (0, 100))
RING = [*SQUARE, SQUARE[0]]


class Acme:
    def recognises(self, head):
        return b"acme" in head

    def read(self, path, slide=None):
        if path.stem.startswith("bad"):
            raise KeyError("corner")
        return [Annotation(geometry=shapely.box(0, 0, 1, 1), group="Acme")]


def with_acme(*, requires: tuple[str, ...] = (), extension: str = ".acme.json") -> Registry:
    @hookimpl
    def microtome_annotations():
        yield AnnotationSpec(
            name="acme",
            target=f"{__name__}:Acme",
            summary="Acme's",
            extensions=(extension,),
            tool="Acme Viewer",
            requires=requires,
            install="pip install acme",
        )

    module = ModuleType("acme")
    module.microtome_annotations = microtome_annotations
    registry = get_registry().copy()
    registry.add(module, "acme", "acme")
    assert not registry.broken
    return registry


@pytest.fixture
def acme(monkeypatch) -> Registry:
    monkeypatch.setattr("microtome.plugin.registry.resolve", _resolving(Acme))
    return with_acme()


def _resolving(target):
    from microtome.plugin.packages import resolve

    return lambda name: target if name == f"{__name__}:Acme" else resolve(name)


def test_one_extension_of_two_tools(tmp_path) -> None:
    (drawn,) = read_annotations(put(tmp_path / "a.xml", asap(asap_annotation(SQUARE))))
    assert drawn.group == "Tumor"
    assert read_annotations(put(tmp_path / "b.xml", imagescope())) == ()
    (drawn,) = read_annotations(put(tmp_path / "c.json", feature([RING], name="mine")))
    assert drawn.group == "mine"
    ncrf = {"positive": [{"name": "_0", "vertices": SQUARE}]}
    (drawn,) = read_annotations(put(tmp_path / "d.json", ncrf))
    assert drawn.group == "positive"


@pytest.mark.parametrize("name", ["slide", "slide.txt", "slide.ndpa", "SLIDE.XML"])
def test_another_extension_is_no_matter(tmp_path, name) -> None:
    (drawn,) = read_annotations(put(tmp_path / name, asap(asap_annotation(SQUARE))))
    assert drawn.geometry.area == 10_000


def test_the_longest_extension_is_asked_first(tmp_path, acme) -> None:
    path = put(tmp_path / "slide.acme.json", collection([feature([RING], name="acme")]))
    (drawn,) = read_annotations(path, registry=acme)
    assert drawn.group == "Acme"
    (drawn,) = read_annotations(path)
    assert drawn.group == "acme"


def test_extensions_of_all_formats(acme) -> None:
    found = annotation_extensions(acme)
    assert found[0] in (".acme.json", ".geojson.gz")
    assert {".xml", ".json", ".geojson", ".ndpa", ".acme.json"} < set(found)
    assert ".acme.json" not in annotation_extensions()


def test_a_format_that_fails_is_named(tmp_path, acme) -> None:
    path = put(tmp_path / "bad.acme.json", "acme")
    with pytest.raises(
        PluginError, match=r"'acme' of acme cannot be made to read .*bad\.acme\.json"
    ):
        read_annotations(path, registry=acme)


def test_a_missing_library_is_told_where_its_format_would_be_the_one(tmp_path) -> None:
    registry = with_acme(requires=("no_such_module",), extension=".acme")
    path = put(tmp_path / "slide.acme", "acme")
    with pytest.raises(MissingDependencyError, match=r"Install with: pip install acme$"):
        read_annotations(path, registry=registry)
    other = put(tmp_path / "slide.xml", asap(asap_annotation(SQUARE)))
    assert len(read_annotations(other, registry=registry)) == 1


@pytest.mark.parametrize("content", ["hello", '{"slides": []}', "<svg/>", "a,b\n1,2\n"])
def test_what_nobody_recognises_is_refused_naming_all(tmp_path, content) -> None:
    path = put(tmp_path / "slide.xml", content)
    with pytest.raises(AnnotationError) as caught:
        read_annotations(path)
    assert str(caught.value).startswith(f"{path} is no file of annotations that microtome reads.")
    assert all(f"{name} (." in str(caught.value) for name in FORMATS)


def test_what_cannot_be_read_is_told(tmp_path) -> None:
    for content in ("", " \n\n"):
        with pytest.raises(AnnotationError, match=r"slide\.xml is empty, and no file"):
            read_annotations(put(tmp_path / "slide.xml", content))
    with pytest.raises(AnnotationError, match=r"none\.xml cannot be read: No such file"):
        read_annotations(tmp_path / "none.xml")
    with pytest.raises(AnnotationError, match=r"cannot be read: Is a directory"):
        read_annotations(tmp_path)


BILLION = (
    "<!DOCTYPE ASAP_Annotations [<!ENTITY a 'ha'>"
    + "".join(f"<!ENTITY {n} '{f'&{p};' * 10}'>" for p, n in pairwise("abcdefghi"))
    + "]>"
)
EXTERNAL = '<!DOCTYPE ASAP_Annotations [<!ENTITY i SYSTEM "file:///etc/passwd">]>'
PARAMETER = '<!DOCTYPE ASAP_Annotations [<!ENTITY % i SYSTEM "file:///etc/passwd"> %i;]>'


@pytest.mark.parametrize("doctype", [BILLION, EXTERNAL, PARAMETER])
@pytest.mark.parametrize("name", ["asap", "imagescope", "ndpa"])
def test_entities_are_refused_before_they_unfold(tmp_path, name, doctype) -> None:
    contract = FORMATS[name]()
    path = contract.make_sample(tmp_path)
    declaration, _, body = path.read_text().rpartition("?>")
    body = body.replace("Tumor", "&i;", 1)
    put(path, f"{declaration}?>{doctype}{body}" if declaration else doctype + body)
    with pytest.raises(AnnotationError, match=r", line \d: it declares entities in a DOCTYPE"):
        read_annotations(path, contract.make_slide())


def test_a_doctype_alone_is_no_harm(tmp_path) -> None:
    text = asap(asap_annotation(SQUARE)).replace("?>", "?><!DOCTYPE ASAP_Annotations>", 1)
    assert len(read_annotations(put(tmp_path / "slide.xml", text))) == 1


@pytest.mark.parametrize("encoding", ["utf-7", "shift_jis", "no-such"])
def test_an_encoding_that_is_not_read_is_told(tmp_path, encoding) -> None:
    text = asap(asap_annotation(SQUARE))
    text = text.replace('"1.0"', f'"1.0" encoding="{encoding}"')
    with pytest.raises(AnnotationError) as caught:
        read_annotations(put(tmp_path / "slide.xml", text))
    assert str(tmp_path / "slide.xml") in str(caught.value)


def test_a_large_file_is_read_as_it_comes(tmp_path) -> None:
    points = [(x, y) for x in range(200) for y in (0, x % 7 + 1)]
    path = put(tmp_path / "slide.xml", asap(*[asap_annotation(points, kind="PointSet")] * 150))
    size = path.stat().st_size
    assert size > 2 << 20
    tracemalloc.start()
    try:
        drawn = read_annotations(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(drawn) == 150
    # A tree of elements takes ten times the file.
    assert peak < 3 * size
