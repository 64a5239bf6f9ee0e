"""The help page, made without Hydra, whose own takes seconds with a hundred encoders."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Mapping

from microtome import __version__
from microtome.config.schema import option_rows
from microtome.plugin.registry import Registry
from microtome.plugin.specs import RUN_KINDS, PluginSpec

_KEYS = (
    ("output=FOLDER", "where everything goes; required"),
    ("task=process", "process: features · coords: coordinates alone · tissue: the mask alone"),
    ("encoder=NAME", "one, several as encoder=[a,b] over one read of the pixels, none as []"),
    ("encoder_plugin=FILE", "a Python file with encoders of your own; it is run as code"),
    ("encoder.NAME.KEY=…", "an encoder's own options: weights, device, precision, batch_size"),
    ("tiler.size=256", "tile side in pixels at the target; tiler.step for overlap"),
    ("tiler.magnification=20", "the target; or physically, tiler.mpp=0.5"),
    ("writer=[hdf5,png]", "stores and images"),
    ("visualize=all", "overlays: grid, mask, contours"),
    ("mpp=0.25", "level-0 µm per pixel where files do not say or are wrong; or mpp_csv=FILE"),
    ("recursive=true", "search folders to any depth; formats=all adds plain images"),
    ("filter.enabled=true", "drop white and black tiles by their pixels"),
    ("inspector=[blur,pen]", "quality columns beside the tiles, with reasons; quality.drop=true"),
    ("annotations=FOLDER", "outlines that label tiles: task=index labels.classes.tumor=[Tumor]"),
    ("device=auto", "auto, cpu, cuda, cuda:1, mps; also precision=auto, batch_size=32, threads=8"),
    ("force=true", "do finished work again"),
    ("preset=NAME", "a composition that is installed or in --config-dir"),
)
_FLAGS = (
    ("-m, --multirun", "a sweep: every combination of the values with commas"),
    ("--cfg job", "show the composed configuration instead of running; --resolve fills it in"),
    ("--config-dir FOLDER", "compositions of your own"),
    ("-sc install=bash", 'TAB completion: eval "$(microtome -sc install=bash)"'),
    ("--info defaults", "what the configuration is composed of; also config, plugins, searchpath"),
    ("--hydra-help", "what Hydra adds to this"),
    ("-h, --help, --version", "behind task=NAME, --help shows that task's options"),
)
_EXAMPLES = (
    "microtome slide.svs output=out",
    "microtome slides/ output=out encoder=[resnet50,uni_v1] tiler.magnification=20 tiler.size=256",
    "microtome 'cohort/*.svs' output=out task=coords tiler.mpp=0.5 visualize=all",
    "microtome manifest.csv output=out writer=[zarr,png] mpp_csv=mpp.csv",
    "microtome -m slides/ output=out encoder=handcrafted,resnet50 tiler.magnification=10,20",
)


def page(registry: Registry, verbs: Mapping[str, str], *, width: int | None = None) -> str:
    """Write the help page: the kinds with their plugins, the common keys, verbs and examples.

    Args:
        registry: The plugins.
        verbs: Summaries of the verbs by name.
        width: In characters; the terminal's if None, at most 110.
    """
    width = width or min(shutil.get_terminal_size((100, 24)).columns, 110)
    kinds = [(kind, " ".join(_names(registry, kind))) for kind in RUN_KINDS]
    broken = registry.broken
    sections = [
        f"microtome {__version__}: whole-slide images to tissue, tiles and encoder features",
        "Usage: microtome SLIDE … output=FOLDER [KEY=VALUE …]\n       microtome VERB …",
        _wrap(
            "A slide is a file, a folder, a pattern or a CSV manifest, taken literally whatever "
            "its name holds; behind -- any word is one.",
            width,
        ),
        _section("Plugins (KIND=NAME)", kinds, width),
        *([f"{len(broken)} plugins are broken: see microtome plugins."] if broken else []),
        _section("Keys", _KEYS, width),
        _section("Verbs", verbs.items(), width),
        _section("Flags", _FLAGS, width),
        "Examples\n" + "\n".join(f"  {example}" for example in _EXAMPLES),
    ]
    return "\n\n".join(sections) + "\n"


def task_page(spec: PluginSpec, *, width: int | None = None) -> str:
    """Write the help page of a task: its options with their types and defaults.

    Args:
        spec: The task's.
        width: As of `page`.
    """
    width = width or min(shutil.get_terminal_size((100, 24)).columns, 110)
    rows = [
        (f"{name}={default}", f"{kind}. {told}")
        for name, kind, default, told in option_rows(spec.config)
    ]
    sections = [
        f"task={spec.name}: {spec.summary.rstrip('.')}",
        f"Usage: microtome [SLIDE …] task={spec.name} output=FOLDER [KEY=VALUE …]",
        _section("Options and their defaults", rows, width) if rows else "It has no options.",
        _wrap(
            f"In a configuration, and where the line chooses no task, they are {spec.name}.KEY. "
            "Options of every run: microtome --help.",
            width,
        ),
    ]
    return "\n\n".join(sections) + "\n"


def _names(registry: Registry, kind: str) -> list[str]:
    return (["auto"] if kind == "reader" else []) + registry.names(kind)


def _section(title: str, rows: Iterable[tuple[str, str]], width: int) -> str:
    rows = list(rows)
    column = max((len(name) for name, _ in rows), default=0) + 4
    lines = [_wrap(text, width, f"  {name}".ljust(column), " " * column) for name, text in rows]
    return "\n".join([title, *lines])


def _wrap(text: str, width: int, first: str = "", later: str = "") -> str:
    return (
        textwrap.fill(
            text,
            width,
            initial_indent=first,
            subsequent_indent=later,
            break_long_words=False,
            break_on_hyphens=False,
        )
        or first.rstrip()
    )
