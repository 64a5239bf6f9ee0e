"""Each flag of AtlasPatch becomes what it means, or is told of."""

from __future__ import annotations

import shlex

import pytest

from microtome.__main__ import main
from microtome.commands.atlaspatch import COMMANDS, translate
from microtome.errors import ConfigError, UnknownPluginError

PROCESS = "slide.svs -o out --patch-size 256 --target-mag 20"
WITH = f"{PROCESS} --feature-extractors resnet18"


@pytest.fixture(autouse=True)
def slide(tmp_path, monkeypatch):
    """A working directory with files of the names that the lines below use."""
    monkeypatch.chdir(tmp_path)
    for name in ("slide.svs", "mpp.csv", "-odd name.svs"):
        (tmp_path / name).touch()
    return tmp_path


def words(line, command="process"):
    return translate(command, shlex.split(line))[0]


def added(flags, command="process"):
    """Give what flags add to a line."""
    line = WITH if command == "process" else PROCESS
    before = words(line, command)
    return sorted(set(words(f"{line} {flags}", command)) - set(before))


def test_a_plain_line():
    assert words(WITH) == [
        "./slide.svs", "preset=atlaspatch", "encoder=[resnet18]", "output=out", "tiler.size=256",
        "tiler.magnification=20",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ("--step-size 128", ["tiler.step=128"]),
        ("--device cuda:1", ["device=cuda:1", "segmenter.device=cuda:1"]),
        ("--device CPU --feature-device cuda", ["device=cuda", "segmenter.device=cpu"]),
        ("--seg-batch-size 4", ["segmenter.batch_size=4"]),
        ("--device cpu segmenter=classic", ["device=cpu", "segmenter=classic"]),
        ("--seg-batch-size 4 segmenter=classic", ["segmenter=classic"]),
        (
            "--device cpu segmenter=sam2_atlaspatch",
            ["device=cpu", "segmenter.device=cpu", "segmenter=sam2_atlaspatch"],
        ),
        ("--patch-workers 8", ["threads=8"]),
        ("--feature-batch-size 64", ["batch_size=64"]),
        ("--feature-num-workers 3", ["reader_threads=3"]),
        ("--feature-num-workers 0", []),
        ("--feature-precision Float16", ["precision=fp16"]),
        ("--feature-precision float32", ["precision=fp32"]),
        ("--feature-precision bfloat16", ["precision=bf16"]),
        ("--fast-mode", []),
        ("--no-fast-mode", ["filter.enabled=true"]),
        ("--no-fast-mode --fast-mode", []),
        ("--fast-mode --no-fast-mode", ["filter.enabled=true"]),
        (
            "--no-fast-mode --white-thresh 20 --black-thresh 40",
            ["filter.black_gray_below=40", "filter.enabled=true",
             "filter.white_saturation_below=20"],
        ),
        ("--tissue-thresh 0.01", ["tiler.min_region_fraction=0.01"]),
        ("--tissue-thresh 0", []),
        ("--save-images", ["writer=[hdf5,png]"]),
        ("--visualize-grids --visualize-contours", ["visualize=[grid,contours]"]),
        ("--visualize-mask", ["visualize=[mask]"]),
        ("--recursive", ["recursive=true"]),
        ("--mpp-csv mpp.csv", ["mpp_csv=mpp.csv"]),
        ("--force", ["force=true"]),
        ("--skip-existing", []),
        ("--force --skip-existing", []),
        ("--verbose --write-batch 10 --max-open-slides 5", []),
        ("encoder.resnet18.weights=random engine=inline",
         ["encoder.resnet18.weights=random", "engine=inline"]),
    ],
)  # fmt: skip
def test_a_flag_becomes_words(flags, wanted):
    assert added(flags) == wanted


def test_every_flag_is_tried_here():
    """So that none is added without a line above."""
    tried = set()
    for mark in test_a_flag_becomes_words.pytestmark:
        tried |= {word for flags, _ in mark.args[1] for word in flags.split()}
    known = {name for flags in COMMANDS.values() for name in flags}
    elsewhere = {"--output", "--patch-size", "--target-mag", "--feature-extractors"}
    elsewhere |= {"--slide-encoders", "--patient-encoders"}
    assert known - tried - elsewhere == {"--feature-plugin"}


def test_where_the_other_commands_end():
    assert "task=coords" in words(PROCESS, "segment-and-get-coords")
    images = words(f"{PROCESS} --save-images", "segment-and-get-coords")
    assert {"encoder=[]", "writer=[hdf5,png]"} <= {*images}
    assert "task=coords" not in images
    tissue = words("slide.svs --output out", "detect-tissue")
    assert tissue[2:] == ["task=tissue", "visualize=[mask]", "output=out"]


def test_slides_and_patients_take_what_their_encoders_need():
    line = "slide.svs -o out --slide-encoders 'TITAN, mean' --feature-precision float16"
    assert words(line, "encode-slide") == [
        "./slide.svs", "preset=atlaspatch", "slide_encoder=[titan,mean]", "output=out",
        "precision=fp16",
    ]  # fmt: skip
    manifest = "mpp.csv -o out --patch-size 224 --target-mag 20 --patient-encoders moozy"
    assert words(manifest, "encode-patient") == [
        "./mpp.csv", "preset=atlaspatch", "patient_encoder=[moozy]", "output=out",
        "tiler.size=224", "tiler.magnification=20",
    ]  # fmt: skip
    with pytest.raises(UnknownPluginError, match=r"--slide-encoders: there is no titanic.*titan"):
        words("slide.svs -o out --slide-encoders titanic", "encode-slide")
    with pytest.raises(ConfigError, match="no flag --recursive"):
        words(f"{manifest} --recursive", "encode-patient")


@pytest.mark.parametrize(
    "text", ["ResNet18,resnet18", "'resnet18  RESNET18'", "'resnet18, resnet18'"]
)
def test_names_in_any_case_count_once(text):
    assert "encoder=[resnet18]" in words(f"{PROCESS} --feature-extractors {text}")


def test_names_have_underscores_here():
    # The name that AtlasPatch's own list has.
    line = f"{PROCESS} --feature-extractors Chief-CTransPath"
    assert "encoder=[chief_ctranspath]" in words(line)


def test_several_names_keep_their_order():
    line = f"{PROCESS} --feature-extractors 'resnet50 handcrafted,resnet18'"
    assert "encoder=[resnet50,handcrafted,resnet18]" in words(line)


def test_a_slide_that_begins_with_a_dash_is_one():
    assert words("-o out -- '-odd name.svs'", "detect-tissue")[0] == "./-odd name.svs"


def test_a_folder_named_like_a_verb_or_an_option_is_a_folder(tmp_path, capsys):
    from microtome.testing import make_slide

    for name in ("demo", "a=b"):
        (tmp_path / name).mkdir()
        make_slide(tmp_path / name / "one.svs", size=(768, 768), tissue=0.6)
        line = f"process {name} -o out-{name[0]} --patch-size 128 --target-mag 20"
        line += " --feature-extractors handcrafted segmenter=none engine=inline"
        assert main(["atlaspatch", *line.split()]) == 0, capsys.readouterr()
        assert (tmp_path / f"out-{name[0]}" / "patches" / "one.h5").exists()


def test_a_whole_path_stays_as_it_is(slide):
    assert words(f"{slide}/slide.svs -o out", "detect-tissue")[0] == f"{slide}/slide.svs"


def test_flags_without_effect_are_told():
    _, notes = translate(
        "process", shlex.split(f"{WITH} -v --write-batch 9 --max-open-slides 9 --white-thresh 9")
    )
    assert "segmenter=classic" in notes[0]
    assert [note.partition(" has no effect")[0] for note in notes[1:]] == [
        "--verbose", "--write-batch", "--max-open-slides", "--white-thresh",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "error", "said"),
    [
        (f"{PROCESS} --feature-extractors nope", UnknownPluginError, "no nope. Available: .*res"),
        (f"{PROCESS} --feature-extractors ,", ConfigError, "names no encoder"),
        (f"{PROCESS} --feature-extractors ''", ConfigError, "given an empty text"),
        (f"{PROCESS} --feature-extractors ResNet5O", UnknownPluginError, "Did you mean 'resnet50'"),
        (f"{WITH} --mpp-csv ''", ConfigError, "there is no file ''"),
        (f"{WITH} --device ''", ConfigError, "given an empty text"),
        (f"{WITH} --patchsize 256", ConfigError, "no flag --patchsize, but --patch-size"),
        (PROCESS, ConfigError, "required: --feature-extractors"),
        ("slide.svs --patch-size 1 --target-mag 1", ConfigError, "required: --output"),
        (f"{WITH} --target-mag 121", ConfigError, "--target-mag: 121 is not a whole number from"),
        (f"{WITH} --patch-size 0", ConfigError, "--patch-size: 0 is not 1 or more"),
        (f"{WITH} --step-size x", ConfigError, "--step-size: x is not 1 or more"),
        (f"{WITH} --tissue-thresh 2", ConfigError, "--tissue-thresh: 2 is no share"),
        (f"{WITH} --tissue-thresh a", ConfigError, "a is no share"),
        (f"{WITH} --feature-precision int8", ConfigError, "int8 is not one of float32, float16"),
        (f"{WITH} --mpp-csv gone.csv", ConfigError, "--mpp-csv: there is no file 'gone.csv'"),
        (f"{WITH} --feature-plugin gone.py", ConfigError, "there is no file 'gone.py'"),
        (f"{WITH} --patch 3", ConfigError, "no flag --patch, but --patch-size; micro"),
        (WITH.replace("slide.svs", ""), ConfigError, "it needs a WSI_PATH"),
        (f"{WITH} stray", ConfigError, "one WSI_PATH; what is 'stray'"),
        (WITH.replace("slide.svs", "gone.svs"), ConfigError, "no file or folder gone.svs"),
    ],
)  # fmt: skip
def test_a_bad_line_is_one_sentence(line, error, said, capsys):
    with pytest.raises(error, match=said):
        words(line)
    assert main(["atlaspatch", "process", *shlex.split(line)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "required: command"),
        ("nonsense", "invalid choice: 'nonsense'"),
        ("encode-slides slide.svs", "invalid choice: 'encode-slides'"),
    ],
)
def test_a_command_that_there_is_not(line, said, capsys):
    assert main(["atlaspatch", *line.split()]) == 2
    assert said in capsys.readouterr().err


def test_help_and_info(capsys):
    assert main(["atlaspatch", "--help"]) == 0
    assert "detect-tissue" in capsys.readouterr().out
    assert main(["atlaspatch", "process", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS["process"])
    assert main(["atlaspatch", "info"]) == 0
    shown = capsys.readouterr().out
    assert ".svs" in shown
    assert "resnet50" in shown


def test_the_command_that_it_comes_to_is_printed_and_run(tmp_path, capsys):
    from microtome.testing import make_slide

    make_slide(tmp_path / "a b.svs", size=(768, 768), tissue=0.6)
    line = "-o 'the output' --patch-size 128 --target-mag 20 --feature-extractors handcrafted"
    more = ["segmenter=none", "engine=inline"]
    assert main(["atlaspatch", "process", "a b.svs", *shlex.split(line), *more]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    program, *rest = shlex.split(first)
    assert program == "microtome"
    assert rest[:2] == ["./a b.svs", "preset=atlaspatch"]
    assert main(rest) == 0
    assert "reused" in capsys.readouterr().out
