"""What is known of encoders, as a table, as a page and as data."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from enum import Enum
from importlib.util import find_spec
from typing import Any

from microtome.commands._lines import columns
from microtome.commands._names import domain_of, spec_of
from microtome.config.options import default_of, help_of, type_of
from microtome.plugin.aliases import listed
from microtome.plugin.registry import Registered
from microtome.plugin.specs import (
    BagEncoderSpec,
    EncoderCard,
    PatientEncoderSpec,
    TileNeed,
    Transform,
)
from microtome.run.planning.needs import describe_need

_WIDTH = 100
_LICENCE = 28
_NEED = 60
_YES_NO = {True: "yes", False: "no", None: "?"}
_COMMERCIAL = {
    True: "commercial use is allowed",
    False: "no commercial use",
    None: "whether it allows commercial use is not settled",
}
_GATED = {True: "gated", False: "open", None: "?"}
_ACCESS = {
    True: "gated: its owners decide who may have it",
    False: "open",
    None: "whether it is gated is not known",
}
_HEADINGS = (
    "name", "dim", "input", "tile", "params", "licence", "commercial", "access", "packages",
)  # fmt: skip
_BAG_HEADINGS = (
    "name", "dim", "takes", "params", "licence", "commercial", "access", "packages",
)  # fmt: skip


def listing(entries: Sequence[Registered]) -> str:
    """Write a table of encoders: sizes, tiles, licence, access, and whether packages are here."""
    rows = [_row(entry) for entry in entries]
    of_bags = [entry.spec for entry in entries if isinstance(entry.spec, BagEncoderSpec)]
    if of_bags:
        kind = of_bags[0].kind.replace("_", " ")
        table = columns(f"{kind} ({len(rows)})", [_BAG_HEADINGS, *rows])
        return f"{table}\n\nmicrotome encoders show NAME tells all of one.\n"
    table = columns(f"encoder ({len(rows)})", [_HEADINGS, *rows] if rows else [])
    return f"{table}\n\nTiles are px @ µm/px. microtome encoders show NAME tells all of one.\n"


def to_record(entry: Registered) -> dict[str, Any]:
    """Give everything of an encoder's spec and card as data for JSON."""
    spec = spec_of(entry)
    return {
        "name": spec.name,
        "distribution": entry.distribution,
        "summary": spec.summary,
        "domain": domain_of(spec),
        "names": dict(spec.names),
        "caution": spec.caution,
        "remote_code": spec.remote_code,
        "gives": list(getattr(spec, "gives", ())),
        "concurrent": getattr(spec, "concurrent", False),
        **({"needs": [_need(n) for n in spec.needs]} if hasattr(spec, "needs") else {}),
        "output_version": spec.output_version,
        "requires": list(spec.requires),
        "missing": list(entry.missing),
        "install": spec.install,
        "card": None if spec.card is None else asdict(spec.card),
        "options": {
            option.name: {
                "type": type_of(spec.config, option.name),
                "default": _value(default_of(option)),
                "help": help_of(spec.config)[option.name],
            }
            for option in fields(spec.config)
        },
    }


def show(entry: Registered) -> str:
    """Write the page of an encoder: its card, its options, and the steps to use it."""
    spec = spec_of(entry)
    lines = [f"{spec.name}: {spec.summary}", "", *_wrapped(_facts(entry))]
    options = [
        (f"{o.name}={_shown(default_of(o))}", f"{type_of(spec.config, o.name)}. {said}")
        for o, said in zip(fields(spec.config), help_of(spec.config).values(), strict=True)
    ]
    if options:
        lines += ["", f"Options, {spec.kind}.{spec.name}.KEY=VALUE", *_wrapped(options)]
    steps = [(f"{n}.", step) for n, step in enumerate(_steps(entry), 1)]
    return "\n".join([*lines, "", "To use it", *_wrapped(steps)]) + "\n"


def _row(entry: Registered) -> tuple[str, ...]:
    spec = spec_of(entry)
    here = "missing" if entry.missing else "here"
    card = spec.card
    if isinstance(spec, BagEncoderSpec):
        return _bag_row(spec, here)
    if card is None:
        return (spec.name, *("any",) * 4, "by model", "?", "?", here)
    return (
        spec.name,
        str(card.dim),
        str(card.input_size or "any"),
        _tile(card) if card.patch_size else "any",
        _params(card.params),
        textwrap.shorten(card.licence or "?", _LICENCE, placeholder=" …"),
        _YES_NO[card.commercial],
        _GATED[card.gated],
        here,
    )


def _bag_row(spec: BagEncoderSpec, here: str) -> tuple[str, ...]:
    card = spec.card
    told = textwrap.shorten(takes(spec), _NEED, placeholder=" …")
    if card is None:
        return spec.name, "any", told, "?", "no published weights", "yes", "open", here
    return (
        spec.name,
        str(card.dim),
        told,
        _params(card.params),
        textwrap.shorten(card.licence or "?", _LICENCE, placeholder=" …"),
        _YES_NO[card.commercial],
        _GATED[card.gated],
        here,
    )


def at_a_glance(entry: Registered, card: EncoderCard | None) -> tuple[str, ...]:
    """Give what must be known before an encoder is used: columns, licence, access, packages."""
    packages = f"packages missing: {', '.join(entry.missing)}" if entry.missing else "packages here"
    if card is None:
        return "any columns", "", "", packages
    licence = textwrap.shorten(card.licence or "licence ?", _LICENCE, placeholder=" …")
    access = _GATED[card.gated].replace("?", "access ?") if card.hub_id else ""
    return f"{card.dim} columns", licence, access, packages


def takes(spec: BagEncoderSpec) -> str:
    """Say in words what a slide or patient encoder is given."""
    needs: tuple[TileNeed, ...] = getattr(spec, "needs", ())
    if isinstance(spec, PatientEncoderSpec) and spec.takes == "slides":
        return f"embeddings of slides by {spec.slide_encoder or 'any slide encoder'}"
    return listed([describe_need(need) for need in needs]) or "features by any encoder"


def _need(need: TileNeed) -> dict[str, Any]:
    said = {f.name: getattr(need, f.name) for f in fields(need)}
    return {**said, "options": dict(need.options)}


def _tile(card: EncoderCard) -> str:
    return f"{card.patch_size} @ {card.mpp:g}" if card.mpp else str(card.patch_size)


def _params(count: int | None) -> str:
    return "?" if count is None else f"{count / 1e6:.0f} M"


def _facts(entry: Registered) -> Iterator[tuple[str, str]]:
    spec, card = spec_of(entry), spec_of(entry).card
    if isinstance(spec, BagEncoderSpec):
        yield "takes", takes(spec)
        if card is None:
            yield "embedding", "of as many columns as what it pools, or what its weights say"
    elif card is None:
        yield "model", "its name, an option, decides everything else"
    if card is not None:
        pooling = f": {card.pooling}" if card.pooling else ""
        is_bag = isinstance(spec, BagEncoderSpec)
        latents = f"; {card.latents[0]} latents of {card.latents[1]}" if card.latents else ""
        heading = "embedding" if is_bag else "features"
        yield heading, f"{card.dim} columns{pooling}{latents}; {card.precision} on a GPU"
        if given := getattr(spec, "gives", ()):
            yield "on request", " and ".join(f"encoder.{spec.name}.{g}=true" for g in given)
        size = f", {card.params:,} parameters" if card.params else ""
        if is_bag:
            yield "size", size.removeprefix(", ")
        else:
            yield "input", _transform(card.transform)
            yield "tiles", _recommended(card)
            yield "learned from", f"{domain_of(spec) or 'not said'}{size}"
        yield "weights", _weights(card)
        yield "licence", f"{card.licence or 'not known'}; {_COMMERCIAL[card.commercial]}"
        yield "access", _ACCESS[card.gated]
        yield "paper", card.paper
    tools: dict[str, list[str]] = {}
    for tool, name in spec.names.items():
        tools.setdefault(name, []).append(tool)
    yield "elsewhere", "; ".join(f"{name} ({', '.join(who)})" for name, who in tools.items())
    yield "caution", spec.caution
    if spec.remote_code:
        yield "code", "loading it runs code of its hub entry, at a pinned commit only"
    yield "packages", _packages(entry)


def _transform(transform: Transform | None) -> str:
    if transform is None:
        return "raw pixels"
    parts = []
    if transform.resize:
        side = "a square of" if transform.resize_mode == "exact" else "a shortest side of"
        parts.append(f"resized to {side} {transform.resize} px, {transform.interpolation}")
    if transform.crop:
        parts.append(f"cropped to {transform.crop} px")
    return ", ".join([*parts, f"mean {transform.mean}, std {transform.std}"])


def _recommended(card: EncoderCard) -> str:
    if card.patch_size is None:
        return "any"
    nominal = f" at {card.magnification:g}x" if card.magnification else ""
    physical = f", {card.mpp:g} µm/px" if card.mpp else ""
    scales = listed([f"{mpp:g}" for mpp in card.also_mpp])
    others = f"; also {scales} µm/px" if scales else ""
    return f"{card.patch_size} px{nominal}{physical}{others}"


def _weights(card: EncoderCard) -> str:
    if card.hub_id is None:
        return "at no hub" if card.params else "none"
    return f"{card.hub_id}, {card.revision or 'its newest revision'}"


def _packages(entry: Registered) -> str:
    if entry.missing:
        return f"{listed(entry.missing)} missing"
    return f"{listed(entry.spec.requires)}: here" if entry.spec.requires else "none needed"


def _steps(entry: Registered) -> Iterator[str]:
    """Say what is to be done, in order, until the encoder runs."""
    spec, card = spec_of(entry), spec_of(entry).card
    if entry.missing:
        yield spec.install or f"pip install {' '.join(entry.missing)}"
    if card and card.hub_id and card.gated is None:
        yield f"Open the page of {card.hub_id}: if it asks for terms, accept them and make a token."
    if card and card.gated:
        endpoint = _endpoint()
        gate = card.gate or card.hub_id
        page = f"{endpoint}/{gate}" if endpoint else f"the page of {gate} on the hub"
        tokens = f" at {endpoint}/settings/tokens" if endpoint else ""
        yield f"Open {page}, log in, accept the terms and wait until access is granted."
        yield (
            f"Make a token that may read gated repositories{tokens}, and give it to this machine: "
            f"export HF_TOKEN=TOKEN, or hf auth login"
        )
    options = {option.name for option in fields(spec.config)}
    commit = spec.remote_code and card is not None and not card.revision
    if card and "weights" in options:
        by_hand = "" if card.hub_id else ", if it does not say that they are to be had by hand only"
        name = f"{spec.name}@COMMIT" if commit else spec.name
        name += " --level patient" if spec.kind == "patient_encoder" else ""
        yield (
            f"microtome encoders fetch {name}  (or let the first run download the weights{by_hand})"
        )
    slides = "manifest.csv" if spec.kind == "patient_encoder" else "slide.svs"
    node = f"{spec.kind}.{spec.name}"
    line = f"microtome {slides} output=out {spec.kind}={spec.name}"
    if isinstance(spec, PatientEncoderSpec) and takes(spec).endswith("any slide encoder"):
        line += " slide_encoder=NAME"
    if isinstance(spec, BagEncoderSpec) and card is None and "weights" in options:
        line += f" {node}.weights=PATH"
    for name, what in (("model", "NAME"), ("code_folder", "FOLDER")):
        line += f" {node}.{name}={what}" if name in options else ""
    yield line + (f" {node}.revision=COMMIT" if commit else "")


def _endpoint() -> str:
    """Give the hub's address, as its library has it; empty without that library."""
    if find_spec("huggingface_hub") is None:
        return ""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _wrapped(rows: Any) -> Iterator[str]:
    shown = [(head, text) for head, text in rows if text]
    indent = max((len(head) for head, _ in shown), default=0) + 4
    for head, text in shown:
        first = f"  {head}".ljust(indent)
        yield textwrap.fill(
            text,
            _WIDTH,
            initial_indent=first,
            subsequent_indent=" " * indent,
            break_long_words=False,
            break_on_hyphens=False,
        )


def _value(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def _shown(value: Any) -> str:
    value = _value(value)
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)
