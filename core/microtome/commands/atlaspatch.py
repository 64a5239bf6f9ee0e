"""Run a command line of AtlasPatch: its flags, translated into a run.

What the flags mean is said as a command of microtome, which is printed and run. Words of that
command, such as encoder.resnet50.weights=/path, may follow the flags and win over them.
"""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from microtome.commands._arguments import VerbParser
from microtome.errors import ConfigError, UnknownPluginError
from microtome.plugin.files import add_files, find_files
from microtome.plugin.registry import Registry, get_registry

PRECISIONS = MappingProxyType({"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"})
_ABOUT = "Words KEY=VALUE behind the flags go to microtome as they are: segmenter=classic"


def _whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Make a parser of whole numbers within limits."""

    def parse(text: str) -> int:
        wanted = f"{least} or more" if most is None else f"a whole number from {least} to {most}"
        if not text.isdecimal() or not least <= int(text) <= (most or int(text)):
            raise argparse.ArgumentTypeError(f"{text} is not {wanted}")
        return int(text)

    return parse


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share, 0 to 1")
    return value


def _precision(text: str) -> str:
    if text.lower() not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise argparse.ArgumentTypeError(f"{text} is not one of {known}")
    return PRECISIONS[text.lower()]


def _file(text: str) -> str:
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text!r}")
    return text


def _word(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("it is given an empty text")
    return text


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A flag of AtlasPatch's.

    Attributes:
        parse: Turns its word into a value; None for a switch.
        word: What it becomes, with ``{}`` for the value; empty where that takes more.
        help: One line.
        instead: Of a flag without effect, what takes its place.
        required: Whether it must be given.
        repeated: Whether it may be given several times.
        undoes: The switch that it takes back; the later of both counts.
    """

    parse: Callable[[str], Any] | None = None
    word: str = ""
    help: str = ""
    instead: str = ""
    required: bool = False
    repeated: bool = False
    undoes: str = ""


_INPUT: Mapping[str, Flag] = {
    "--output": Flag(parse=_word, word="output={}", help="the output folder", required=True),
    "--recursive": Flag(word="recursive=true", help="search folders to any depth"),
    "--mpp-csv": Flag(parse=_file, word="mpp_csv={}", help="a CSV with the columns wsi,mpp"),
    "--device": Flag(parse=_word, help="where tissue is segmented, and features are computed"),
    "--seg-batch-size": Flag(parse=_whole(1), help="slides segmented at once"),
    "--verbose": Flag(
        help="accepted",
        instead="every stage is logged in runs/*/events, and microtome status OUTPUT tells of it",
    ),
}
_TILES: Mapping[str, Flag] = {
    "--patch-size": Flag(
        parse=_whole(1), word="tiler.size={}", help="pixels at the target", required=True
    ),
    "--target-mag": Flag(
        parse=_whole(1, 120), word="tiler.magnification={}", help="20 for 20x", required=True
    ),
    "--step-size": Flag(parse=_whole(1), word="tiler.step={}", help="stride at the target"),
    "--tissue-thresh": Flag(
        parse=_share,
        word="tiler.min_region_fraction={}",
        help="least area of a piece of tissue, as a share of the mask",
    ),
    "--white-thresh": Flag(
        parse=_whole(1, 256),
        help="saturation below which a bright pixel is white; higher drops more",
    ),
    "--black-thresh": Flag(
        parse=_whole(1, 256), help="grey below which a pixel is black; higher drops more"
    ),
    "--fast-mode": Flag(help="do not look at pixels; the default", undoes="--no-fast-mode"),
    "--no-fast-mode": Flag(help="drop white and black tiles"),
    "--patch-workers": Flag(parse=_whole(1), word="threads={}", help="CPU threads of the run"),
    "--write-batch": Flag(
        parse=_whole(1), help="accepted", instead="files are written whole, in chunks of their own"
    ),
    "--max-open-slides": Flag(
        parse=_whole(1),
        help="accepted",
        instead="a worker has one slide open, and engine.workers=N says how many there are",
    ),
    "--save-images": Flag(help="tiles as PNG files too"),
    "--visualize-grids": Flag(help="overlay of the tiles"),
    "--visualize-mask": Flag(help="overlay of the mask"),
    "--visualize-contours": Flag(help="overlay of the contours"),
    "--skip-existing": Flag(help="keep what is finished; the default", undoes="--force"),
    "--force": Flag(word="force=true", help="do finished work again"),
}
_NAMED = Flag(parse=_word, help="names, with commas or spaces", required=True)
_FEATURES: Mapping[str, Flag] = {
    "--feature-device": Flag(parse=_word, help="where features are computed; as --device"),
    "--feature-batch-size": Flag(parse=_whole(1), word="batch_size={}", help="tiles at once"),
    "--feature-num-workers": Flag(parse=_whole(0), help="threads that read tiles"),
    "--feature-precision": Flag(
        parse=_precision, word="precision={}", help="float32, float16 or bfloat16"
    ),
    "--feature-plugin": Flag(
        parse=_file, word="encoder_plugin={}", help="a file with encoders", repeated=True
    ),
}
_SHORT = {"--output": "-o", "--verbose": "-v"}
# Size and magnification are what the models need, unless they are said.
_DERIVED = {**_TILES, **{n: replace(f, required=False) for n, f in _TILES.items() if f.required}}
_OF_MANIFEST = {n: f for n, f in _INPUT.items() if n not in ("--recursive", "--mpp-csv")}
_MODELS = {
    "process": ("encoder", "--feature-extractors"),
    "encode-slide": ("slide_encoder", "--slide-encoders"),
    "encode-patient": ("patient_encoder", "--patient-encoders"),
}

COMMANDS: Mapping[str, Mapping[str, Flag]] = MappingProxyType(
    {
        "detect-tissue": _INPUT,
        "segment-and-get-coords": {**_INPUT, **_TILES},
        "process": {**_INPUT, **_TILES, **_FEATURES, "--feature-extractors": _NAMED},
        "encode-slide": {**_INPUT, **_DERIVED, **_FEATURES, "--slide-encoders": _NAMED},
        "encode-patient": {
            **_OF_MANIFEST,
            **_DERIVED,
            **_FEATURES,
            "--patient-encoders": _NAMED,
        },
    }
)
"""The flags of each command."""


def main(argv: list[str]) -> int:
    """Translate, print and run.

    Returns:
        The run's exit code.
    """
    parser = VerbParser("microtome atlaspatch", description=__doc__)
    parser.add_argument("command", choices=[*COMMANDS, "info"], help="each has --help")
    command: str = parser.parse_args(argv if argv[:1] == ["info"] else argv[:1]).command
    if command == "info":
        return _info(get_registry())
    words, notes = translate(command, argv[1:])
    sys.stdout.write(f"microtome {shlex.join(words)}\n")
    sys.stdout.flush()
    for note in notes:
        sys.stderr.write(f"microtome: {note}\n")
    # Not at the top: the command itself imports its verbs.
    from microtome.__main__ import main as microtome

    return microtome(words)


def translate(command: str, argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Turn a command line of AtlasPatch into one of microtome.

    Args:
        command: One of `COMMANDS`.
        argv: The words behind it.

    Returns:
        The words, and what the user should be told of flags without effect.

    Raises:
        ConfigError: If a flag is unknown, or a value makes no sense.
        UnknownPluginError: If an encoder is unknown.
    """
    flags = COMMANDS[command]
    parser = _parser(command, flags)
    own = list(argv[: argv.index("--")] if "--" in argv else argv)
    for word in own:
        name = word.partition("=")[0]
        if name.startswith("--") and name not in {*flags, "--help"}:
            near = difflib.get_close_matches(name, flags, 1)
            parser.error(f"there is no flag {name}" + (f", but {near[0]}" if near else ""))
    given = vars(parser.parse_intermixed_args(own))
    slide, *extra = [*given.pop("words"), *argv[len(own) + 1 :]] or [""]
    if not slide:
        parser.error("it needs a WSI_PATH")
    if stray := [word for word in extra if "=" not in word]:
        raise ConfigError(f"atlaspatch {command} takes one WSI_PATH; what is {stray[0]!r}?")
    if not Path(slide).exists():
        raise ConfigError(f"atlaspatch {command}: there is no file or folder {slide}.")
    values = {f"--{name.replace('_', '-')}": value for name, value in given.items() if value}
    registry = add_files(get_registry(), find_files(values.get("--feature-plugin", ())))
    # With a folder before it, a slide's name is neither a verb nor an option.
    words = [slide if Path(slide).is_absolute() else f"./{slide}", "preset=atlaspatch"]
    words += _task(command, values, registry)
    words += _plain_words(flags, values)
    words += [*_devices(values, extra, registry), *_filter(values), *extra]
    return words, list(_notes(flags, values, extra))


def _parser(command: str, flags: Mapping[str, Flag]) -> VerbParser:
    prog = f"microtome atlaspatch {command}"
    usage = f"{prog} WSI_PATH --output OUTPUT [FLAG ...] [KEY=VALUE ...]"
    parser = VerbParser(prog, usage=usage, description=_ABOUT, allow_abbrev=False)
    about = "a slide or a folder; then words for microtome"
    parser.add_argument("words", nargs="*", metavar="WSI_PATH", help=about)
    for name, flag in flags.items():
        names = [name, *([_SHORT[name]] if name in _SHORT else [])]
        if flag.undoes:
            dest = flag.undoes.lstrip("-").replace("-", "_")
            parser.add_argument(
                *names, action="store_false", default=False, dest=dest, help=flag.help
            )
        elif flag.parse is None:
            parser.add_argument(*names, action="store_true", default=False, help=flag.help)
        else:
            parser.add_argument(
                *names,
                type=flag.parse,
                required=flag.required,
                action="append" if flag.repeated else "store",
                help=flag.help,
            )
    return parser


def _task(command: str, values: Mapping[str, Any], registry: Registry) -> Iterator[str]:
    """Say where the run ends and what it leaves."""
    overlays = [kind for kind in ("grid", "mask", "contours") if _drawn(kind, values)]
    if command == "detect-tissue":
        yield "task=tissue"
        overlays = ["mask"]
    elif command in _MODELS:
        kind, flag = _MODELS[command]
        yield f"{kind}=[{','.join(_named(kind, flag, values[flag], registry))}]"
    elif "--save-images" in values:
        yield "encoder=[]"
    else:
        yield "task=coords"
    if "--save-images" in values:
        yield "writer=[hdf5,png]"
    if overlays:
        yield f"visualize=[{','.join(overlays)}]"


def _drawn(kind: str, values: Mapping[str, Any]) -> bool:
    return f"--visualize-{kind}" in values or f"--visualize-{kind}s" in values


def _named(kind: str, flag: str, text: str, registry: Registry) -> list[str]:
    """Read names of encoders: any case, commas or spaces, each once.

    Raises:
        ConfigError: If there is none.
        UnknownPluginError: If one is unknown.
    """
    # A name here has no other signs than letters, digits and underscores: chief_ctranspath.
    spelt = text.lower().replace(",", " ").split()
    names = list(dict.fromkeys(re.sub(r"[^a-z0-9]", "_", name) for name in spelt))
    if not names:
        raise ConfigError(f"{flag} names no {kind.replace('_', ' ')}.")
    known = registry.names(kind)
    if unknown := [name for name in names if name not in known]:
        near = difflib.get_close_matches(unknown[0], known, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UnknownPluginError(
            f"{flag}: there is no {', '.join(unknown)}.{hint} Available: {', '.join(known)}."
        )
    return names


def _plain_words(flags: Mapping[str, Flag], values: Mapping[str, Any]) -> Iterator[str]:
    """Translate the flags that are one word each."""
    for name, flag in flags.items():
        if flag.word and name in values:
            given = values[name]
            for value in given if isinstance(given, list) else [given]:
                yield flag.word.format(f"{value:g}" if isinstance(value, float) else value)


def _devices(values: Mapping[str, Any], extra: Sequence[str], registry: Registry) -> Iterator[str]:
    """Say where segmenter and encoders run, as far as the segmenter chosen can be told."""
    chosen = [word.partition("=")[2] for word in extra if word.startswith("segmenter=")]
    named = [name.lower() for name in chosen if name.lower() in registry.names("segmenter")]
    name = named[-1] if named else "sam2"  # the preset's is a configuration of it
    has = {f.name for f in fields(registry.find("segmenter", name).spec.config)}
    if "--device" in values and "device" in has:
        yield f"segmenter.device={values['--device'].lower()}"
    if "--seg-batch-size" in values and "batch_size" in has:
        yield f"segmenter.batch_size={values['--seg-batch-size']}"
    if device := values.get("--feature-device", values.get("--device")):
        yield f"device={device.lower()}"
    if "--feature-num-workers" in values:
        yield f"reader_threads={values['--feature-num-workers']}"


def _filter(values: Mapping[str, Any]) -> Iterator[str]:
    """Translate the content filter, whose thresholds alone do nothing."""
    if "--no-fast-mode" in values:
        yield "filter.enabled=true"
        if "--white-thresh" in values:
            yield f"filter.white_saturation_below={values['--white-thresh']}"
        if "--black-thresh" in values:
            yield f"filter.black_gray_below={values['--black-thresh']}"


def _notes(
    flags: Mapping[str, Flag], values: Mapping[str, Any], extra: Sequence[str]
) -> Iterator[str]:
    if not any(word.startswith("segmenter") for word in extra):
        yield "tissue is found with AtlasPatch's weights (CC-BY-NC); segmenter=classic needs none."
    for name, flag in flags.items():
        if flag.instead and name in values:
            yield f"{name} has no effect: {flag.instead}."
    if "--no-fast-mode" not in values:
        for name in ("--white-thresh", "--black-thresh"):
            if name in values:
                yield f"{name} has no effect without --no-fast-mode."


def _info(registry: Registry) -> int:
    """Print the formats, encoders and what a run leaves behind."""
    readers = (entry.spec for entry in registry.entries("reader"))
    formats = sorted({suffix for spec in readers for suffix in getattr(spec, "extensions", ())})
    sys.stdout.write(
        f"Formats: {' '.join(formats)}\n"
        f"Encoders: {' '.join(registry.names('encoder'))}\n"
        f"Slide encoders: {' '.join(registry.names('slide_encoder'))}\n"
        f"Patient encoders: {' '.join(registry.names('patient_encoder'))}\n"
        "Outputs: patches/<stem>.h5 with coords, features/<encoder>, slide_features/<encoder>;\n"
        "patient_embeddings/<patient>.h5; images/<stem>/ with --save-images; visualization/;\n"
        "tissue/ with the masks; status/ and runs/ with records.\n"
        "More: microtome encoders, microtome plugins.\n"
    )
    return 0
