"""Which reader opens a slide, and what is said when none does."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import pytest

from microtome.errors import (
    MissingDependencyError,
    ResolutionError,
    SlideOpenError,
    UnknownPluginError,
)
from microtome.plugin import ReaderSpec, hookimpl
from microtome.plugin.registry import Registry
from microtome.slide.opening import open_slide
from microtome.slide.types import Level, SlideInfo, SlideRef


@dataclass
class FakeConfig:
    """Options of the fakes."""

    zoom: int = 1


class FakeReader:
    """Opens what begins with its own name."""

    name = "fake"
    levels = ((100, 80, 1.0), (50, 40, 2.0))
    properties: ClassVar = {"openslide.mpp-x": "0.25", "openslide.objective-power": "40"}

    def __init__(self, path, config):
        if not self.probe(path):
            raise SlideOpenError(f"it does not begin with {self.name}")
        self.config, self.closed = config, False
        self.info = SlideInfo(
            path=path,
            reader=self.name,
            levels=tuple(Level(width=w, height=h, downsample=ds) for w, h, ds in self.levels),
            properties=self.properties,
        )
        opened.append(self)

    @classmethod
    def probe(cls, path):
        return path.read_text().startswith(cls.name)

    def close(self):
        self.closed = True


class Alpha(FakeReader):
    name = "alpha"


class Beta(FakeReader):
    name = "beta"

    @staticmethod
    def vouch(path):
        text = path.read_text()
        return "it says so" if "sworn" in text else ""


class Flat(FakeReader):
    name = "flat"
    levels = ((100, 0, 1.0),)


class Inverted(FakeReader):
    name = "inverted"
    levels = ((100, 100, 1.0), (50, 50, 2.0), (80, 80, 1.25))


opened: list[FakeReader] = []


def spec(name, extensions, priority, **options):
    target = f"{__name__}:{name.title()}"
    summary = f"The {name} reader"
    options = {"config": FakeConfig} | options
    return ReaderSpec(
        name=name,
        target=target,
        summary=summary,
        extensions=extensions,
        priority=priority,
        **options,
    )


@pytest.fixture
def registry(monkeypatch):
    # Targets are imported by string: make this module findable under its name.
    module = SimpleNamespace(
        Alpha=Alpha, Beta=Beta, Flat=Flat, Inverted=Inverted, __spec__=None, __name__=__name__
    )
    monkeypatch.setitem(sys.modules, __name__, module)
    opened.clear()

    class Plugins:
        @staticmethod
        @hookimpl
        def microtome_readers():
            yield spec("beta", (".one", ".two"), 5, vouches=True)
            yield spec("alpha", (".one",), 9)
            yield spec("flat", (".flat",), 0)
            yield spec("inverted", (".inverted",), 0)
            yield spec(
                "absent",
                (".one", ".three"),
                99,
                requires=("no_such_library",),
                install="pip install x",
            )

    made = Registry()
    made.add(Plugins, "fakes", "fakes")
    assert made.broken == []
    return made


@pytest.fixture
def slide(tmp_path):
    def make(name, text, **fields):
        (tmp_path / name).write_text(text)
        return SlideRef(path=tmp_path / name, slide_id="a", **fields)

    return make


def test_the_highest_priority_of_the_suffix_comes_first(slide, registry):
    with open_slide(slide("a.one", "alpha"), registry=registry) as one:
        assert one.info.reader == "alpha"
        assert one.why == "alpha, first of 2 readers for .one"


def test_the_next_is_tried_and_the_record_says_why(slide, registry):
    with open_slide(slide("a.ONE", "beta"), registry=registry) as one:
        assert one.info.reader == "beta"
        assert one.why == "beta, second of 2 readers for .one (alpha: it does not begin with alpha)"


def test_a_reader_that_vouches_comes_first(slide, registry, monkeypatch):
    monkeypatch.setattr(Alpha, "probe", staticmethod(lambda path: True))
    with open_slide(slide("a.one", "beta, unsure"), registry=registry) as one:
        assert one.info.reader == "alpha"
    opened.clear()
    with open_slide(slide("a.one", "beta, sworn"), registry=registry) as one:
        assert one.info.reader == "beta"
        assert one.why == "beta, which vouches for it: it says so"
    assert len(opened) == 1


def test_a_reader_that_vouches_and_fails_is_told_and_passed_over(slide, registry):
    with open_slide(slide("a.one", "alpha, sworn"), registry=registry) as one:
        assert one.why == "alpha, second of 2 readers for .one (beta: it does not begin with beta)"


def test_a_reader_that_does_not_say_so_is_not_asked(slide, registry, monkeypatch):
    monkeypatch.setattr(Alpha, "vouch", staticmethod(lambda path: "it says so"), raising=False)
    with open_slide(slide("a.one", "beta, sworn"), registry=registry) as one:
        assert one.info.reader == "beta"


def test_when_all_fail_each_is_listed_with_its_reason(slide, registry):
    ref = slide("a.one", "nothing")
    with pytest.raises(SlideOpenError) as error:
        open_slide(ref, registry=registry)
    assert str(error.value) == (
        f"{ref.path} cannot be opened. alpha: it does not begin with alpha; beta: it does not "
        "begin with beta; absent: not installed (pip install x)."
    )


def test_readers_of_other_suffixes_are_not_tried(slide, registry):
    with pytest.raises(SlideOpenError, match="beta: it does not begin with beta"):
        open_slide(slide("a.two", "alpha"), registry=registry)


def test_a_suffix_whose_reader_is_not_installed_says_what_to_install(slide, registry):
    with pytest.raises(SlideOpenError, match="absent: not installed \\(pip install x\\)"):
        open_slide(slide("a.three", "alpha"), registry=registry)


def test_a_file_of_unknown_suffix_goes_to_the_reader_that_knows_its_bytes(slide, registry):
    with open_slide(slide("a.unheard", "beta"), registry=registry) as one:
        assert one.why == "beta, the only reader for what its first bytes say"


@pytest.mark.parametrize("name", ["a.unheard", "nameless"])
def test_a_file_that_nobody_knows_lists_the_known_suffixes(slide, registry, name):
    with pytest.raises(SlideOpenError, match=r"no reader knows .* Available: \.flat, \.inverted"):
        open_slide(slide(name, "nothing"), registry=registry)


def test_an_explicit_reader_is_used_whatever_the_suffix(slide, registry):
    config = FakeConfig(zoom=3)
    ref = slide("a.two", "alpha")
    with open_slide(ref, reader="alpha", config=config, registry=registry) as one:
        assert one.why == "alpha, as asked"
        assert one.reader.config is config


def test_an_explicit_reader_that_fails_is_not_replaced(slide, registry):
    ref = slide("a.one", "beta")
    with pytest.raises(SlideOpenError) as error:
        open_slide(ref, reader="alpha", registry=registry)
    assert str(error.value) == (
        f"{ref.path} cannot be opened by reader=alpha: it does not begin with alpha. Other "
        "readers for .one: beta."
    )


def test_an_explicit_reader_that_is_not_there(slide, registry):
    with pytest.raises(UnknownPluginError, match="Did you mean 'alpha'"):
        open_slide(slide("a.one", "x"), reader="alpa", registry=registry)
    with pytest.raises(MissingDependencyError, match="pip install x"):
        open_slide(slide("a.one", "x"), reader="absent", registry=registry)


def test_what_is_no_file_is_told(tmp_path, registry):
    for path, reason in ((tmp_path / "none.one", "does not exist"), (tmp_path, "is a folder")):
        with pytest.raises(SlideOpenError, match=reason):
            open_slide(SlideRef(path=path, slide_id="a"), registry=registry)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("flat", "level 0 has a size of 100 × 0"), ("inverted", "downsampled by 1, 2, 1.25")],
)
def test_a_pyramid_that_is_none_is_refused_and_closed(slide, registry, name, reason):
    with pytest.raises(SlideOpenError, match=f"{name}: its .*{reason}"):
        open_slide(slide(f"a.{name}", name), registry=registry)
    assert [reader.closed for reader in opened] == [True]


def test_the_resolution_is_resolved(slide, registry):
    with open_slide(slide("a.one", "alpha"), registry=registry) as one:
        assert one.info.resolution.mpp == 0.25
        assert one.info.resolution.magnification == 40


def test_an_override_changes_it(slide, registry):
    ref = slide("a.one", "alpha", mpp=0.5, mpp_source="mpp_csv")
    with open_slide(ref, registry=registry) as one:
        assert one.info.resolution.mpp_source == "mpp_csv"
        assert one.info.resolution.magnification == 20


def test_a_slide_is_closed_when_its_resolution_makes_no_sense(slide, registry, monkeypatch):
    monkeypatch.setattr(Alpha, "properties", {"openslide.mpp-x": "99"})
    with pytest.raises(ResolutionError):
        open_slide(slide("a.one", "alpha"), registry=registry)
    assert [reader.closed for reader in opened] == [True]


def test_leaving_the_block_closes_the_reader(slide, registry):
    with open_slide(slide("a.one", "alpha"), registry=registry) as one:
        assert not one.reader.closed
    assert one.reader.closed
