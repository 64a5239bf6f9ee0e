"""Plugins out of single Python files: on the command line, in Python, in worker processes."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from textwrap import dedent

import h5py
import numpy as np
import pytest
from config_standins import encoder, module

import microtome
from microtome.__main__ import main
from microtome.config.argv import parse, plugin_files
from microtome.errors import ConfigError, PluginClashError, PluginError
from microtome.plugin.files import PluginFile, add_files, find_files
from microtome.plugin.registry import Registry, get_registry
from microtome.run.progress import SilentReporter
from microtome.testing import make_slide
from microtome.testing.contracts import EncoderContract

CODE = """
    from dataclasses import dataclass

    import numpy as np

    from microtome.plugin import EncoderCard, EncoderSpec, hookimpl, option
    from microtome.plugin.protocols import EncoderOutput


    @dataclass
    class Config:
        scale: float = option(1.0, help="Multiplies every value.")


    class Mean:
        card = EncoderCard(dim=3)

        def __init__(self, config):
            self.scale = config.scale

        def load(self, device, precision):
            pass

        def encode(self, batch):
            means = batch.pixels.mean((1, 2), dtype=np.float64) * self.scale
            return EncoderOutput(means.astype(np.float32))


    @hookimpl
    def microtome_encoders():
        yield EncoderSpec(
            name="mine", target=":Mean", summary="Mean colour", config=Config, card=Mean.card
        )
"""
NAMED = """
    from microtome.plugin import EncoderSpec, hookimpl

    @hookimpl
    def microtome_encoders():
        yield EncoderSpec(name={!r}, target=f"{{__name__}}:len", summary="x")
"""


def write(path: Path, code: str) -> Path:
    path.write_text(dedent(code), "utf-8")
    return path


@pytest.fixture(scope="module")
def slide(tmp_path_factory) -> Path:
    return make_slide(tmp_path_factory.mktemp("slide") / "one.svs", size=(700, 600)).path


@pytest.fixture
def mine(tmp_path, monkeypatch) -> Path:
    """Write the file into the folder that we are in."""
    monkeypatch.chdir(tmp_path)
    return write(tmp_path / "mine.py", CODE)


@pytest.fixture(scope="module")
def contract_file(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("contract") / "mine.py", CODE)


class TestContract(EncoderContract):
    """The kit that ships takes an encoder out of a file."""

    plugin = "mine"

    @pytest.fixture(autouse=True)
    def _in_a_file(self, contract_file):
        type(self).file = contract_file


def features(output: Path, name: str) -> np.ndarray:
    with h5py.File(output / "patches/one.h5") as file:
        return file[f"features/{name}"][:]


def test_one_command_takes_it_beside_what_is_installed(mine, slide, tmp_path):
    line = f"{slide} output=out engine=inline encoder_plugin=mine.py encoder=[Mine,handcrafted]"
    assert main([*line.split(), "encoder.Mine.scale=2", "tiler.size=128"]) == 0
    with h5py.File("out/patches/one.h5") as file:
        assert set(file["features"]) == {"mine", "handcrafted"}
        attributes = dict(file["features/mine"].attrs)
        assert "plugin_file" not in file["features/handcrafted"].attrs
    (found,) = find_files([mine])
    assert attributes["plugin_file"] == str(mine)
    assert attributes["plugin_sha256"] == found.sha256
    fields = json.loads(attributes["identity_fields"])["encoder"]
    assert fields == {
        "plugin": "mine", "output_version": 1, "plugin_sha256": found.sha256, "scale": 2,
        "transform": None, "precision": "fp32",
    }  # fmt: skip
    assert "mine" not in get_registry().names("encoder")
    (record,) = tmp_path.glob("out/runs/*/run.json")
    assert json.loads(record.read_text())["config"]["encoder_plugin"] == [str(mine)]


def test_workers_load_it_before_their_configuration(mine, slide, tmp_path):
    """Its class is the file's, so it cannot even be unpickled without it."""
    line = f"{slide} output=out engine=local encoder_plugin=mine.py encoder=mine tiler.size=128"
    assert main([*line.split(), "encoder.mine.scale=2"]) == 0
    result = microtome.run_slides(
        slide,
        tmp_path / "here",
        encoder_plugin="mine.py",
        encoder={"mine": {"scale": 2}},
        tiler={"grid": {"size": 128}},
        reporter=SilentReporter(),
    )
    assert result.exit_code == 0
    there = features(tmp_path / "out", "mine")
    np.testing.assert_array_equal(there, features(tmp_path / "here", "mine"))
    assert len(there) > 1


def test_a_worker_refuses_a_file_that_was_changed_meanwhile(mine):
    pickled = pickle.dumps(find_files([mine]))
    mine.write_text(mine.read_text() + "# changed\n")
    with pytest.raises(PluginError, match=r"mine\.py was changed while the run started"):
        pickle.loads(pickled)
    mine.unlink()
    with pytest.raises(ConfigError, match="is no file"):
        pickle.loads(pickled)


def test_a_sweep_takes_it(mine, slide):
    line = f"-m {slide} output=out engine=inline encoder_plugin=mine.py encoder=mine,handcrafted"
    assert main([*line.split(), "tiler.size=128", "encoder.mine.scale=3"]) == 0
    with h5py.File("out/patches/one.h5") as file:
        assert set(file["features"]) == {"mine", "handcrafted"}


def test_a_preset_may_name_it(mine, slide):
    preset = Path("conf/preset/own.yaml")
    preset.parent.mkdir(parents=True)
    preset.write_text(
        "# @package _global_\nencoder_plugin: [mine.py]\nencoder: {mine: {plugin: mine}}\n"
    )
    line = f"{slide} output=out engine=inline --config-dir conf +preset=own encoder=[]"
    assert main([*line.split(), "tiler.size=128"]) == 0
    assert features(Path("out"), "mine").shape[1] == 3


def test_an_edited_file_makes_its_features_stale_and_a_moved_one_does_not(
    mine, slide, tmp_path, capsys
):
    base = [str(slide), "output=out", "engine=inline", "encoder=mine", "tiler.size=128"]
    assert main([*base, "encoder_plugin=mine.py"]) == 0
    moved = mine.rename(tmp_path / "moved.py")
    assert main([*base, f"encoder_plugin={moved}"]) == 0
    assert "1 reused" in capsys.readouterr().out
    moved.write_text(moved.read_text() + "# edited\n")
    assert main([*base, "encoder_plugin=moved.py"]) == 3
    said = capsys.readouterr().err
    assert "encoder.plugin_sha256 changed" in said
    assert "force=true" in said
    assert main([*base, "encoder_plugin=moved.py", "force=true"]) == 0


def test_other_hooks_of_a_file_work_too(mine, slide, capsys):
    write(
        Path("more.py"),
        """
        from microtome.plugin import SegmenterSpec, hookimpl

        @hookimpl
        def microtome_segmenters():
            yield SegmenterSpec(name="all", target=":All", summary="All of it")

        @hookimpl
        def microtome_slide_finished(status):
            print("heard of", status["slide_id"])

        class All:
            def __init__(self, config):
                pass

            def segment(self, views):
                import numpy as np
                from microtome.slide.types import TissueMask
                return [
                    TissueMask(
                        array=np.ones(view.image.shape[:2], bool), downsample=view.downsample
                    )
                    for view in views
                ]
        """,
    )
    line = f"{slide} output=out engine=inline encoder_plugin=[mine.py,more.py] segmenter=all"
    assert main([*line.split(), "encoder=mine", "tiler.size=128"]) == 0
    assert "heard of one" in capsys.readouterr().out
    (sha256,) = (file.sha256 for file in find_files(["more.py"]))
    with h5py.File("out/patches/one.h5") as file:
        fields = json.loads(file.attrs["identity_fields"])
    assert fields["tissue"]["segmenter"]["plugin_sha256"] == sha256


def test_the_listing_shows_it(mine, capsys):
    assert main(["plugins", "encoder", "--encoder-plugin", "mine.py"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if " mine " in line]
    assert str(mine) in line
    assert "Mean colour" in line


@pytest.mark.parametrize(
    ("words", "paths"),
    [
        (["encoder_plugin=a.py"], ["a.py"]),
        (["encoder_plugin=[a.py,b c.py]", "encoder_plugin=d.py"], ["a.py", "b c.py", "d.py"]),
        (["encoder_plugin=x,y.py"], ["x,y.py"]),
        (["encoder_plugin=['q.py', \"r.py\"]"], ["q.py", "r.py"]),
        (["encoder_plugin=~/a.py"], ["~/a.py"]),
        (["encoder_plugin=null"], []),
        (["encoder_plugin="], []),
        (["encoder=x"], None),
        (["--", "encoder_plugin=a.py"], None),
    ],
)
def test_the_words_of_a_line(words, paths, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()  # which a list in brackets would match, were it a pattern
    if paths is None:
        assert plugin_files(words) is None
        return
    absolute = [str(Path(path).expanduser().absolute()) for path in paths]
    assert plugin_files(words) == absolute
    quoted = ",".join(f"'{path}'" for path in absolute)
    assert parse(words, {}).overrides == (f"encoder_plugin=[{quoted}]",)


def test_a_name_of_a_file_that_hydra_could_not_read(mine, slide):
    odd = mine.rename(mine.parent / "my (1),x=2 ${é}.py")
    line = [str(slide), "output=out", "engine=inline", "encoder=mine", "task=process"]
    assert main([*line, f"encoder_plugin={odd.name}", "tiler.size=128"]) == 0


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def broken(:", r"cannot be loaded: SyntaxError: .*line 1"),
        ("\0", "cannot be loaded: "),
        ("\n1 / 0", r"cannot be loaded \(line 2\): ZeroDivisionError"),
        ("import library_that_is_not_there", r"\(line 1\): ModuleNotFoundError"),
        ("raise SystemExit('bye')", r"\(line 1\): SystemExit: bye"),
        ("x = 1", "has no plugin in it: it needs a hook such as microtome_encoders"),
        (CODE.replace("encoders():", "encodres():"), "cannot be registered: .*microtome_encodres"),
        (CODE.replace("yield EncoderSpec", "yield dict"), "cannot be registered: .*no EncoderSpec"),
        (CODE.replace('name="mine"', 'name="My-Net"'), "'My-Net' is not lower case letters"),
    ],
)
def test_a_file_that_is_no_good_is_told_before_any_slide(code, words, mine, capsys):
    write(mine, code)
    with pytest.raises(PluginError, match=words) as caught:
        add_files(get_registry(), find_files([mine]))
    assert str(mine) in str(caught.value)
    assert main(["nowhere.svs", "output=out", "encoder_plugin=mine.py", "encoder=mine"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(mine) in error
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("nowhere.py", "nowhere.py is no file: name a Python file."),
        ("a.py,b.py", "Several are written [a.py,b.py]."),
        (".", "is no file"),
    ],
)
def test_a_file_that_is_not_there(value, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["nowhere.svs", "output=out", f"encoder_plugin={value}"]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not Path("out").exists()


def test_a_clash_with_what_is_installed(mine, capsys):
    write(mine, NAMED.format("handcrafted"))
    assert main(["nowhere.svs", "output=out", "encoder_plugin=mine.py"]) == 1
    error = capsys.readouterr().err
    assert f"Both microtome and {mine} register the encoder 'handcrafted'" in error
    assert "another name in the file" in error


def test_a_clash_between_two_files(tmp_path):
    files = find_files(write(tmp_path / name, NAMED.format("acme")) for name in ("a.py", "b.py"))
    with pytest.raises(PluginClashError, match=r"a\.py and .*b\.py register the encoder 'acme'"):
        add_files(Registry(), files)


def test_a_file_that_is_named_twice_counts_once(mine, tmp_path):
    (tmp_path / "link.py").symlink_to(mine)
    files = find_files([mine, "mine.py", tmp_path / "link.py"])
    assert [file.path for file in files] == [mine]


def test_files_leave_the_registry_alone_and_are_run_once(mine):
    registry = Registry()
    registry.add(module("acme", encoders=[encoder("acme")]), "acme", "microtome-acme")
    assert add_files(registry, ()) is registry
    mine.write_text(mine.read_text() + "\nimport builtins\nbuiltins.loads += 1\n")
    import builtins

    builtins.loads = 0
    try:
        extended = add_files(registry, find_files([mine]))
        again = add_files(registry.copy(), find_files([mine]))
        assert builtins.loads == 1
    finally:
        del builtins.loads
    assert extended.names("encoder") == again.names("encoder") == ["acme", "mine"]
    assert registry.names("encoder") == ["acme"]
    assert extended.find("encoder", "acme").spec.file_sha256 == ""
    assert extended.load("encoder", "mine") is again.load("encoder", "mine")


def test_its_module_has_one_name_for_one_content_at_one_place():
    file = PluginFile(Path("/somewhere/my net.py"), "ab" * 32)
    assert file.module.startswith("microtome_file_my_net_")
    assert file.module.isidentifier()
    others = {PluginFile(Path("/elsewhere/my net.py"), "ab" * 32), PluginFile(file.path, "c" * 64)}
    assert file.module not in {other.module for other in others}
