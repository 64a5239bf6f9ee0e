"""Discovery, clashes, broken plugins and missing libraries, on packages that are not there."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from textwrap import dedent

import pytest

from microtome.errors import (
    MissingDependencyError,
    PluginClashError,
    PluginError,
    UnknownPluginError,
)
from microtome.plugin import EncoderCard, EncoderSpec, hookimpl, option
from microtome.plugin.aliases import listed
from microtome.plugin.options import configure
from microtome.plugin.registry import Registry, get_registry

ENCODER = """
from microtome.plugin import EncoderCard, EncoderSpec, hookimpl

@hookimpl
def microtome_encoders():
    yield EncoderSpec(name={name!r}, target={target!r}, summary="", card=EncoderCard(dim=3))
"""


def encoder(name: str, target: str = "nowhere:Nothing") -> str:
    return ENCODER.format(name=name, target=target)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Give a function that makes a package look installed: a module and a .dist-info folder."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(distribution: str, code: str, *, entry: str = "encoders") -> None:
        module = distribution.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(dedent(code))
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n"
        )
        (info / "entry_points.txt").write_text(f"[microtome]\n{entry} = {module}\n")
        monkeypatch.delitem(sys.modules, module, raising=False)

    yield install
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


def load() -> Registry:
    """Discover afresh, leaving the process's own registry alone."""
    return get_registry.__wrapped__()


def test_an_installed_package_is_found(install):
    install("microtome-acme", encoder("acme"))
    entry = load().find("encoder", "acme")
    assert entry.distribution == "microtome-acme"
    assert entry.spec.card.dim == 3


def test_a_package_is_found_once_however_often_it_is_on_the_path(install, tmp_path, monkeypatch):
    install("microtome-acme", encoder("acme"))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    registry = load()
    assert registry.broken == []
    assert "acme" in registry.names("encoder")


def test_names_are_found_whatever_their_case(install):
    install("microtome-acme", encoder("acme"))
    assert load().find("encoder", "ACME").spec.name == "acme"


def test_two_strangers_may_give_their_entry_points_one_name(install):
    install("acme-one", encoder("one"), entry="encoders")
    install("acme-two", encoder("two"), entry="encoders")
    registry = load()
    assert registry.broken == []
    assert {"one", "two"} <= set(registry.names("encoder"))


def test_a_clash_is_refused_and_names_both(install, monkeypatch):
    install("acme-one", encoder("acme"))
    install("acme-two", encoder("acme"))
    with pytest.raises(PluginClashError, match=r"acme-one and acme-two .* encoder 'acme'"):
        load()
    monkeypatch.setenv("MICROTOME_PLUGINS", "acme-two")
    assert load().find("encoder", "acme").distribution == "acme-two"


def test_a_clash_with_our_own_is_told_of_the_newcomer(install):
    install("aaa-first", encoder("handcrafted"))
    with pytest.raises(PluginClashError, match="Both microtome and aaa-first"):
        load()


def test_loading_can_be_restricted(install, monkeypatch):
    install("acme-one", encoder("one"))
    install("acme_two", encoder("two"))
    monkeypatch.setenv("MICROTOME_PLUGINS", "Acme.Two, something")
    names = load().names("encoder")
    assert "two" in names
    assert "one" not in names
    assert "handcrafted" in names


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import library_that_is_not_there", "ModuleNotFoundError"),
        ("1 / 0", "ZeroDivisionError"),
        ("def broken(:", "SyntaxError"),
        (encoder("acme").replace("encoders():", "encodres():"), "microtome_encodres"),
        (encoder("acme").replace("encoders():", "encoders(config):"), "config"),
        (encoder("acme").replace("yield EncoderSpec", "yield dict"), "no EncoderSpec"),
        (encoder("acme").replace("    yield", "    1 / 0\n    yield"), "ZeroDivisionError"),
        (encoder("Acme"), "lower case"),
        (encoder("acme", target="module.without.colon"), "package.module:Name"),
        (encoder("acme").replace("summary=", "sumary="), "sumary"),
        (encoder("acme").replace("summary=", "config=int, summary="), "no dataclass"),
    ],
)
def test_a_broken_package_is_one_row_and_the_rest_works(install, code, reason):
    install("acme-good", encoder("good"))
    install("acme-broken", code)
    registry = load()
    (broken,) = registry.broken
    assert (broken.name, broken.distribution) == ("encoders", "acme-broken")
    assert reason in broken.reason
    assert {"good", "handcrafted"} <= set(registry.names("encoder"))
    assert "acme" not in registry.names("encoder")


def test_a_frozen_configuration_is_broken(install):
    code = """
    from dataclasses import dataclass
    from microtome.plugin import EncoderSpec, hookimpl

    @dataclass(frozen=True)
    class Config:
        a: int = 1

    @hookimpl
    def microtome_encoders():
        yield EncoderSpec(name="acme", target="a:B", summary="", config=Config)
    """
    install("acme-broken", code)
    (broken,) = load().broken
    assert "frozen" in broken.reason


def test_listing_imports_no_code(install, tmp_path):
    (tmp_path / "acme_model.py").write_text("raise SystemExit('imported')")
    install("microtome-acme", encoder("acme", target="acme_model:Encoder"))
    assert "acme" in load().names("encoder")
    assert "acme_model" not in sys.modules


def add(registry: Registry, **values: object) -> None:
    class Plugin:
        @hookimpl
        def microtome_encoders(self):
            yield EncoderSpec(**{"target": "nowhere:Nothing", "summary": "", **values})

    registry.add(Plugin(), "encoders", "test")
    assert registry.broken == []


def test_a_missing_library_is_one_sentence_that_ends_in_the_command():
    registry = Registry()
    install = "pip install 'acme[gpu]'"
    add(registry, name="acme", requires=("json", "not_there"), install=install)
    assert registry.find("encoder", "acme").missing == ("not_there",)
    with pytest.raises(MissingDependencyError) as caught:
        registry.load("encoder", "acme")
    assert str(caught.value).startswith("The encoder 'acme' needs not_there, which is not")
    assert str(caught.value).endswith(install)


def test_without_a_command_one_is_made_up_of_the_names():
    registry = Registry()
    add(registry, name="acme", requires=("not_there", "nor_this.part"))
    with pytest.raises(MissingDependencyError, match=r"pip install not_there nor_this"):
        registry.load("encoder", "acme")


@pytest.mark.parametrize("target", ["not_there:Encoder", "json:NotThere"])
def test_code_that_cannot_be_imported_is_an_error_with_its_place(target):
    registry = Registry()
    add(registry, name="acme", target=target)
    with pytest.raises(PluginError, match=f"'acme' of test cannot be loaded from '{target}'"):
        registry.load("encoder", "acme")


def test_an_unknown_name_is_answered_with_a_near_one_and_all_there_are():
    registry = Registry()
    add(registry, name="resnet18")
    with pytest.raises(UnknownPluginError, match=r"Did you mean 'resnet18'\? Available: resnet18"):
        registry.find("encoder", "resnet8")
    with pytest.raises(UnknownPluginError, match="Available: none"):
        registry.find("writer", "hdf5")


@dataclass
class Config:
    scale: float = option(1.0, help="A factor.")
    names: list[str] = option([], help="Some names.")


class Made:
    def __init__(self, config, **fixed):
        self.config, self.fixed = config, fixed


def test_a_plugin_is_made_of_its_configuration_and_what_the_catalogue_fixes():
    registry = Registry()
    target = f"{__name__}:Made"
    add(registry, name="acme", target=target, config=Config, fixed={"depth": 50})
    made = registry.create("encoder", "acme")
    assert made.config == Config()
    assert made.fixed == {"depth": 50}
    given = Config(scale=2.0)
    assert registry.create("encoder", "acme", given).config is given


def test_options_are_checked_by_name():
    spec = EncoderSpec(name="acme", target="a:B", summary="", config=Config)
    assert configure(spec, scale=3.0).scale == 3.0
    with pytest.raises(
        PluginError, match=r"'scal'.*Did you mean 'scale'\? Available: scale, names"
    ):
        configure(spec, scal=3.0)


def test_a_list_in_a_configuration_is_not_shared():
    Config().names.append("a")
    assert Config().names == []


def test_specs_are_frozen_and_take_keywords_only():
    with pytest.raises(TypeError):
        EncoderSpec("acme", "a:B", "summary")
    with pytest.raises(AttributeError):
        EncoderCard(dim=3).dim = 4


def test_a_restriction_to_what_is_not_there_is_told(monkeypatch):
    monkeypatch.setenv("MICROTOME_PLUGINS", "nope")
    get_registry.cache_clear()
    broken = {row.name: row.reason for row in get_registry().broken}
    get_registry.cache_clear()
    assert broken == {"nope": "MICROTOME_PLUGINS names it, and it has none"}


@pytest.mark.parametrize(
    ("names", "text"), [(["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")]
)
def test_names_in_a_sentence(names, text):
    assert listed(names) == text
