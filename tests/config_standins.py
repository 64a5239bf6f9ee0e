"""A registry of stand-ins: enough of every kind to compose runs without any room installed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from types import ModuleType

from microtome.config import app, hydra_bridge, nodes, schema
from microtome.plugin import (
    EncoderSpec,
    EngineSpec,
    ReaderSpec,
    SegmenterSpec,
    TilerSpec,
    WriterSpec,
    hookimpl,
    option,
    runtime,
)
from microtome.plugin.registry import Registry
from microtome.run.settings import RunConfig

TARGET = "nowhere.at_all:Thing"


class Edge(Enum):
    drop = "drop"
    pad = "pad"


@dataclass
class TileOptions:
    name: str = runtime("", help="The tiling.")
    size: int | None = option(None, help="Side in pixels.")
    step: int | None = None
    magnification: float | None = None
    origin: list[int] = option([0, 0], help="First tile.")
    edge: Edge = Edge.drop


@dataclass
class NetOptions:
    weights: str = option("hub", help="hub, random or a file.")
    model: str = ""
    seed: int = 0


@dataclass
class RequiredOptions:
    url: str


@dataclass
class FolderOptions:
    folder: str | None = None


def module(name: str, **hooks) -> ModuleType:
    """Make a plugin module whose hooks give these specs."""
    made = ModuleType(name)
    for hook, specs in hooks.items():
        function = (lambda given: lambda: given)(specs)
        function.__name__ = f"microtome_{hook}"
        setattr(made, function.__name__, hookimpl(function))
    return made


def encoder(name: str, **fields) -> EncoderSpec:
    return EncoderSpec(name=name, target=TARGET, summary=f"{name} it is", **fields)


def fill(registry: Registry) -> Registry:
    registry.add(
        module(
            "standins",
            readers=[
                ReaderSpec(name="openslide", target=TARGET, summary="o", extensions=(".svs",))
            ],
            segmenters=[
                SegmenterSpec(name="classic", target=TARGET, summary="c"),
                SegmenterSpec(name="file", target=TARGET, summary="f", config=FolderOptions),
            ],
            tilers=[
                TilerSpec(name="grid", target=TARGET, summary="g", config=TileOptions),
                TilerSpec(name="bare", target=TARGET, summary="has no options"),
            ],
            encoders=[
                encoder("handcrafted"),
                encoder("resnet18", config=NetOptions),
                encoder("uni_v2", config=NetOptions),
                encoder("needy", config=RequiredOptions),
            ],
            writers=[
                WriterSpec(
                    name=name, target=TARGET, summary=name, consumes=c, suffix=s, layout="file"
                )
                for name, c, s in (("hdf5", "features", ".h5"), ("png", "pixels", ""))
            ],
            engines=[
                EngineSpec(name=name, target=TARGET, summary=name) for name in ("inline", "local")
            ],
        ),
        "rooms",
        "microtome",
    )
    registry.add(
        module("acme", encoders=[encoder("acme", names={"peer": "Apex"})]),
        "acme",
        "microtome-acme",
    )
    return registry


def use(registry: Registry, monkeypatch) -> Registry:
    from hydra.core.config_store import ConfigStore

    kept = {k: v for k, v in ConfigStore.instance().repo.items() if k.startswith(("hydra", "_"))}
    monkeypatch.setattr(ConfigStore.instance(), "repo", kept)
    for user in (app, hydra_bridge, nodes, schema):
        monkeypatch.setattr(user, "get_registry", lambda: registry)
    return registry


class Runs(list[RunConfig]):
    """What the runner was given; its answers can be set."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[int | BaseException] = []

    def __call__(self, config: RunConfig) -> int:
        self.append(config)
        answer = self.answers.pop(0) if self.answers else 0
        if isinstance(answer, BaseException):
            raise answer
        return answer
