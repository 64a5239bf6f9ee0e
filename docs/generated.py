"""Writes the parts of the documentation that come from code.

When the site is built, what stands between ``<!-- generated: NAME -->`` and
``<!-- /generated -->`` in a page becomes what the function of that name gives. For readers of a
checkout ``python docs/generated.py`` writes those of `COMMITTED` into the pages; a test holds them
current.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from microtome import commands
from microtome.api.execution import ExecutionOptions
from microtome.api.fields import Mapped, describe
from microtome.api.preprocessing import (
    FilterConfig,
    PreprocessingConfig,
    PreviewConfig,
    SegmentationConfig,
)
from microtome.commands import _cards
from microtome.config import help
from microtome.config.schema import options_table
from microtome.plugin.registry import Registered, Registry, get_registry
from microtome.plugin.specs import SPECS, BagEncoderSpec, EncoderSpec

ROOT = Path(__file__).resolve().parents[1]
MARK = re.compile(
    r"^<!-- generated: (\w+) -->$(?:(?!<!-- generated).)*?^<!-- /generated -->$", re.M | re.S
)
COMMITTED = (
    *("help", "options", "plugins", "cards", "bags", "checked", "handcrafted"),
    "python_fields",
)
WALKTHROUGH = re.compile(r"<!-- walkthrough -->\n(.*)<!-- /walkthrough -->", re.DOTALL)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in a page's generated parts: MkDocs calls this for every page."""
    return MARK.sub(lambda match: GENERATORS[match[1]](), markdown)


def written(markdown: str) -> str:
    """Give a page as it is committed: its generated parts current, between their marks."""

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        text = f"{GENERATORS[name]().strip()}\n\n" if name in COMMITTED else ""
        return f"<!-- generated: {name} -->\n\n{text}<!-- /generated -->"

    return MARK.sub(fill, markdown)


def help_page() -> str:
    """Give what ``microtome --help`` prints."""
    return f"```text\n{help.page(own(), commands.find_verbs(), width=100).strip()}\n```"


def options() -> str:
    """Give the tables of all options."""
    return options_table(own())


def plugins() -> str:
    """List microtome's own plugins by kind."""
    parts = []
    for kind in SPECS:
        rows = map(_plugin, own().entries(kind))
        parts += [f"## {kind.capitalize()}s", table(("name", "", "needs"), rows)]
    return "\n\n".join(parts)


def cards() -> str:
    """List what encoders' cards say."""
    headings = ("encoder", "D", "tile", "pooling", "licence", "gated", "weights")
    specs = (entry.spec for entry in own().entries("encoder"))
    return table(headings, (_card(s) for s in specs if isinstance(s, EncoderSpec) and s.card))


def bags() -> str:
    """List what slide and patient encoders give and take."""
    headings = ("encoder", "D", "takes", "licence", "gated", "weights")
    parts = []
    for kind in ("slide_encoder", "patient_encoder"):
        specs = (entry.spec for entry in own().entries(kind))
        rows = [_bag(spec) for spec in specs if isinstance(spec, BagEncoderSpec)]
        parts += [f"## {kind.replace('_', ' ').capitalize()}s", table(headings, rows)]
    return "\n\n".join(parts)


def checked() -> str:
    """List what the tests check of each row of the catalogue."""
    headings = ("encoder", "loader", "architecture", "published layout", "published weights")
    return table(headings, ((f"`{name}`", *rest) for name, *rest in checked_rows()))


def checked_rows() -> list[tuple[str, ...]]:
    """Give name, loader and checks of each row: a test holds them against the tests themselves."""
    specs = [entry.spec for entry in own().entries("encoder")]
    return [_checked(s) for s in specs if isinstance(s, EncoderSpec) and "recipe" in s.fixed]


def handcrafted() -> str:
    """List the columns of the handcrafted features."""
    module = importlib.import_module("microtome_encoders.patch.columns")
    return str(module.columns_table())


def python_fields() -> str:
    """List what each field of the settings of the Python API sets of a run."""
    headings = ("field", "default", "sets", "")
    parts = []
    for owner in (
        PreprocessingConfig,
        SegmentationConfig,
        FilterConfig,
        PreviewConfig,
        ExecutionOptions,
    ):
        parts += [f"### {owner.__name__}", table(headings, map(_field, describe(owner)))]
    return "\n\n".join(parts)


def changelog() -> str:
    """Give the changelog."""
    return (ROOT / "CHANGELOG.md").read_text("utf-8")


def contributing() -> str:
    """Give the page for contributors, its links as this site has them."""
    return (ROOT / "CONTRIBUTING.md").read_text("utf-8").replace("](docs/", "](")


def walkthrough() -> str:
    """Give the plugin of ten minutes, without its heading."""
    match = WALKTHROUGH.search((ROOT / "CONTRIBUTING.md").read_text("utf-8"))
    if match is None:
        raise ValueError("CONTRIBUTING.md has no walk-through between its marks")
    return match[1].strip().partition("\n")[2]


def notebook() -> str:
    """Give the executed notebook without its title: text, code, and what that gave.

    ``jupyter execute --inplace docs/notebook.ipynb`` executes it again.
    """
    cells = json.loads((ROOT / "docs/notebook.ipynb").read_text("utf-8"))["cells"]
    text = "\n\n".join(part for cell in cells for part in _cell(cell))
    return text.partition("\n")[2].strip()


@cache
def own() -> Registry:
    """Give what this distribution registers, whatever else is installed."""
    registry = Registry()
    for name, module in get_registry().manager.list_name_plugin():
        distribution, _, point = name.partition(":")
        if distribution == "microtome":
            registry.add(module, point, distribution)
    return registry


def table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Write a Markdown table."""
    headings = list(headings)
    lines = [headings, ["---"] * len(headings), *rows]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _cell(cell: Mapping[str, Any]) -> Iterator[str]:
    """Write a cell of a notebook as Markdown."""
    source = "".join(cell["source"])
    if cell["cell_type"] != "code":
        yield source
        return
    yield f"```python\n{source}\n```"
    for output in cell["outputs"]:
        data = output.get("data", {"text/plain": output.get("text", "")})
        if "image/png" in data:
            image = "".join(data["image/png"].split())
            yield f"![what the cell draws](data:image/png;base64,{image})"
        else:
            yield f"```text\n{''.join(data['text/plain']).rstrip()}\n```"


def _plugin(entry: Registered) -> tuple[str, ...]:
    spec = entry.spec
    needs = f"`{spec.install}`" if spec.install and spec.requires else ""
    return f"`{spec.name}`", spec.summary, needs


def _field(each: Mapped) -> tuple[str, ...]:
    sets = ", ".join(f"`{key}`" for key in each.onto) or ("refused" if each.refused else "nothing")
    return f"`{each.name}`", f"`{each.default}`", sets, each.says


def _card(spec: EncoderSpec) -> tuple[str, ...]:
    card = spec.card
    if card is None:
        raise ValueError(f"{spec.name} has no card")
    tile = "any" if card.patch_size is None else f"{card.patch_size} px"
    if card.magnification is not None:
        tile += f" at {card.magnification:g}x"
    return (
        f"`{spec.name}`",
        str(card.dim),
        tile,
        card.pooling,
        card.licence,
        {True: "yes", False: "", None: "?"}[card.gated],
        f"`{card.hub_id}`" if card.hub_id else "",
    )


def _bag(spec: BagEncoderSpec) -> tuple[str, ...]:
    card = spec.card
    if card is None:
        return f"`{spec.name}`", "any", _cards.takes(spec), "", "", ""
    latents = f", latents {card.latents[0]} × {card.latents[1]}" if card.latents else ""
    return (
        f"`{spec.name}`",
        f"{card.dim}{latents}",
        _cards.takes(spec),
        card.licence,
        {True: "yes", False: "", None: "?"}[card.gated],
        f"`{card.hub_id}`" if card.hub_id else "",
    )


def _checked(spec: EncoderSpec) -> tuple[str, ...]:
    card, loader = spec.card, spec.target.rpartition(":")[2].removesuffix("Encoder").lower()
    foreign = "code of its hub entry" if spec.remote_code else "its own package"
    elsewhere = spec.remote_code or "musk" in spec.requires
    layout = "names and shapes, at full size" if loader == "torchvision" else "loaded, tiny"
    if card is None:
        why = "unknown"
    elif spec.fixed["recipe"].by_hand:
        why = "no program can download them"
    else:
        why = {True: "gated", False: "no network", None: "no network; a gate is not ruled out"}[
            card.gated
        ]
    return (
        spec.name,
        loader,
        f"not here: {foreign}" if elsewhere else "built, counted",
        "a stand-in" if elsewhere else layout,
        f"not run: {why}",
    )


GENERATORS: dict[str, Callable[[], str]] = {
    "help": help_page,
    "options": options,
    "plugins": plugins,
    "cards": cards,
    "bags": bags,
    "checked": checked,
    "handcrafted": handcrafted,
    "python_fields": python_fields,
    "changelog": changelog,
    "contributing": contributing,
    "walkthrough": walkthrough,
    "notebook": notebook,
}


if __name__ == "__main__":
    for page in sorted((ROOT / "docs").rglob("*.md")):
        page.write_text(written(page.read_text("utf-8")), "utf-8")
