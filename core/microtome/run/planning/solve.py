"""Solves what slide and patient encoders need: which tilings, with which patch encoders.

A slide encoder names the tiles and features that it was made for (`TileNeed`). From these, and
from what the user said, follow the passes of a run: one `RunConfig` a tiling, each read once. What
the user said is never changed; a need that contradicts it is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import isclose
from typing import Any

from microtome.errors import ConfigError
from microtome.plugin.aliases import listed
from microtome.plugin.registry import Registry, configure
from microtome.plugin.specs import EncoderCard, TileNeed
from microtome.run.planning.models import MadeModel, embedder_of, find_giver, gives, make_model
from microtome.run.planning.target import has_target
from microtome.run.settings import (
    DEFAULT_ENCODER,
    Choice,
    EncoderChoice,
    PatientEncoderChoice,
    RunConfig,
    SlideEncoderChoice,
)

SAME_MPP = 0.01
"""Relative difference up to which two physical targets are one."""

NOMINAL_MPP = 0.05
"""Relative difference up to which a physical target is what a nominal one means."""


@dataclass(eq=False, kw_only=True)
class _Tiling:
    """A tiling on its way: what is None is open yet."""

    size: int | None = None
    magnification: float | None = None
    mpp: float | None = None
    needs: list[TileNeed] = field(default_factory=list)
    whose: list[MadeModel] = field(default_factory=list)

    def takes(self, need: TileNeed) -> bool:
        """Whether it is what a need asks for, or can still become that."""
        if need.patch_size is not None and self.size not in (None, need.patch_size):
            return False
        return self._meets(need) or (self.magnification is None and self.mpp is None)

    def _meets(self, need: TileNeed) -> bool:
        if need.mpp is None and need.magnification is None:
            return True
        if need.mpp is not None:
            physical = self.mpp is not None and isclose(self.mpp, need.mpp, rel_tol=SAME_MPP)
            nominal = self.magnification is not None and self.magnification == need.magnification
            return physical or nominal
        if self.mpp is not None and need.magnification is not None:
            return isclose(self.mpp, 10 / need.magnification, rel_tol=NOMINAL_MPP)
        return self.magnification == need.magnification

    def settle(self, need: TileNeed) -> None:
        """Take what a need says of what is open; a physical target before a nominal one."""
        self.size = need.patch_size if self.size is None else self.size
        if self.magnification is None and self.mpp is None:
            self.mpp = need.mpp
            self.magnification = need.magnification if need.mpp is None else None

    def suits(self, card: EncoderCard) -> bool:
        """Whether it is what an encoder's card recommends."""
        meant = TileNeed(patch_size=card.patch_size, magnification=card.magnification, mpp=card.mpp)
        return card.patch_size == self.size and self._meets(meant)

    def __str__(self) -> str:
        size = "tiles" if self.size is None else f"{self.size} px"
        if self.mpp is not None:
            return f"{size} at {self.mpp:g} µm/px"
        return size if self.magnification is None else f"{size} at {self.magnification:g}x"


def solve(config: RunConfig, registry: Registry) -> tuple[RunConfig, ...]:
    """Derive the passes of a run: as few tilings as what its encoders need allows.

    Args:
        config: What was asked for.
        registry: The plugins.

    Returns:
        One configuration a tiling, each with the patch encoders that want it, the slide encoders
        that read them and the patient encoders that read those; ``derived`` says what was added.
        Only ``config`` where it has no slide and no patient encoder.

    Raises:
        ConfigError: If a need contradicts what the user said; says who needs what, what was
            asked for, and what to do.
        PluginError: If a plugin is unknown or misses a library.
    """
    if not config.slide_encoders and not config.patient_encoders:
        return (config,)
    if config.task != "process":
        raise ConfigError(
            f"task={config.task} computes no features, which slide and patient encoders need. Use "
            "task=process, or leave them out."
        )
    return tuple(_Solver(config, registry).passes())


class _Solver:
    """Solves one run."""

    def __init__(self, config: RunConfig, registry: Registry) -> None:
        self._config, self._registry = config, registry
        choice = config.tiler
        spec = registry.find("tiler", choice.plugin).spec
        self._options = configure(spec) if choice.config is None else choice.config
        self._patients = [make_model(c, registry) for c in config.patient_encoders]
        self._slides = [make_model(c, registry) for c in self._slide_choices()]
        self._derived: list[str] = []

    def _slide_choices(self) -> list[SlideEncoderChoice]:
        """Give the slide encoders asked for, and those that patient encoders name."""
        choices = list(self._config.slide_encoders)
        for made in self._patients:
            known = {name for c in choices for name in (c.name, c.plugin)}
            if made.takes_tiles or made.slide_encoder in known:
                continue
            if made.slide_encoder:
                choices.append(
                    SlideEncoderChoice(
                        plugin=made.slide_encoder,
                        key=made.slide_encoder,
                        device=made.choice.device,
                        precision=made.choice.precision,
                    )
                )
            elif not choices:
                raise ConfigError(
                    f"{made} pools embeddings of slides, and this run makes none. Say which slide "
                    "encoder makes them: slide_encoder=mean, for instance."
                )
        return choices

    def passes(self) -> Iterator[RunConfig]:
        """Give the configuration of each tiling."""
        tilings = self._tilings()
        encoders = [self._encoders(tiling) for tiling in tilings]
        self._share_out(tilings, encoders)
        several = len(tilings) > 1
        if several and self._config.tiling not in ("", "auto"):
            raise ConfigError(
                f"tiler.name={self._config.tiling} names one tiling, but {self._told(tilings)} "
                "are needed. Leave it out: each is then named by its geometry."
            )
        if several:
            self._derived.append(
                f"Needed are {self._told(tilings)}: one pass over the slides for each, in a "
                "folder of its own below the output (tiler.name=auto)."
            )
        for tiling, chosen in zip(tilings, encoders, strict=True):
            slides = [m for m in self._slides if m.is_free or m in tiling.whose]
            choices = [m.choice for m in slides if isinstance(m.choice, SlideEncoderChoice)]
            yield replace(
                self._config,
                tiling="auto" if several else self._config.tiling,
                tiler=self._tiler(tiling),
                encoders=tuple(chosen),
                slide_encoders=tuple(choices),
                patient_encoders=tuple(self._patients_of(tiling, slides)),
                derived=(*self._config.derived, *self._derived),
            )

    def _told(self, tilings: Sequence[_Tiling]) -> str:
        told = [f"{t} ({', '.join(m.choice.name for m in t.whose)})" for t in tilings]
        return f"{len(tilings)} tilings, {listed(told)}"

    def _tilings(self) -> list[_Tiling]:
        """Gather needs into tilings: those that leave least open first, so that others join."""
        own = self._asked()
        wants = [(m, needs) for m in self._needy() if (needs := self._needs(m))]
        wants.sort(key=lambda want: _openness(want[1]))
        tilings: list[_Tiling] = []
        for made, needs in wants:
            self._check(made, needs, own)
            merged = _merged(made, needs)
            found = next((t for t in tilings if t.takes(merged)), None)
            if found is None:
                found = _Tiling(size=own.size, magnification=own.magnification, mpp=own.mpp)
                tilings.append(found)
            found.settle(merged)
            found.needs += needs
            found.whose.append(made)
        return tilings or [own]

    def _needy(self) -> list[MadeModel]:
        return [*self._slides, *(made for made in self._patients if made.takes_tiles)]

    def _needs(self, made: MadeModel) -> tuple[TileNeed, ...]:
        """Give what an encoder needs; of a patient encoder also what its slide encoder does."""
        if made.needs or made in self._slides:
            return made.needs
        embedder = embedder_of(made, self._registry)
        return () if embedder is None else embedder.needs

    def _asked(self) -> _Tiling:
        """Give what the user said of tiles, which no need changes."""
        if not has_target(self._options):
            return _Tiling()
        options = self._options
        return _Tiling(size=options.size, magnification=options.magnification, mpp=options.mpp)

    def _check(self, made: MadeModel, needs: Sequence[TileNeed], own: _Tiling) -> None:
        """Refuse what does not fit what the user said.

        Raises:
            ConfigError: If it does not.
        """
        for need in needs:
            dtype = self._config.feature_dtype
            if need.dtype and need.dtype != dtype:
                raise _near_miss(made, need, f"feature_dtype={dtype}", "Leave feature_dtype out")
            if not own.takes(need):
                said = [
                    f"tiler.{name}={value:g}"
                    for name in ("size", "magnification", "mpp")
                    if (value := getattr(own, name)) is not None
                ]
                raise _near_miss(made, need, " ".join(said), f"Leave out {' and '.join(said)}")
            self._check_step(made, need, own)
            self._check_key(made, need)

    def _check_step(self, made: MadeModel, need: TileNeed, own: _Tiling) -> None:
        step = getattr(self._options, "step", None)
        size = own.size or need.patch_size
        if step is not None and not need.overlap and step != size:
            how = "overlap" if size and step < size else "leave gaps"
            raise _near_miss(
                made, need, f"tiler.step={step}, by which tiles {how}", "Leave tiler.step out"
            )

    def _check_key(self, made: MadeModel, need: TileNeed) -> None:
        """Refuse a feature set of the needed name that is another encoder's, or another kind."""
        for choice in self._config.encoders if need.encoder else ():
            if choice.name == need.key and not gives(choice, need, self._registry):
                is_other = choice.plugin != need.encoder
                what = f"{choice.plugin}" if is_other else "that encoder with other options"
                raise _near_miss(
                    made,
                    need,
                    f"encoder.{choice.name} is {what}",
                    f"Give it a key of its own (+encoder@encoder.KEY={choice.plugin})",
                )

    def _encoders(self, tiling: _Tiling) -> list[EncoderChoice]:
        """Give the patch encoders that a tiling's needs ask for, adding those that are missing."""
        chosen: list[EncoderChoice] = []
        for need in (need for need in tiling.needs if need.encoder):
            if find_giver(chosen, need, self._registry) is not None:
                continue
            giver = find_giver(self._config.encoders, need, self._registry)
            if giver is None:
                giver = self._added(need)
                whose = listed([m.choice.name for m in tiling.whose if need in self._needs(m)])
                self._derived.append(f"Added the encoder {giver.name}, {tiling}, for {whose}.")
            chosen.append(giver)
        return chosen

    def _added(self, need: TileNeed) -> EncoderChoice:
        spec = self._registry.find("encoder", need.encoder).spec
        return EncoderChoice(
            plugin=spec.name,
            key=need.key,
            config=configure(spec, **need.options),
            device=self._config.device,
            precision=self._config.precision,
            batch_size=self._config.batch_size,
        )

    def _share_out(
        self, tilings: Sequence[_Tiling], encoders: Sequence[list[EncoderChoice]]
    ) -> None:
        """Put the user's other encoders where their cards suit, else on the first tiling."""
        placed = [choice for chosen in encoders for choice in chosen]
        for choice in self._config.encoders:
            if choice in placed:
                continue
            card = getattr(self._registry.find("encoder", choice.plugin).spec, "card", None)
            suited = [i for i, t in enumerate(tilings) if card is not None and t.suits(card)]
            encoders[suited[0] if suited else 0].append(choice)
        if not encoders[0]:  # a pooling alone: it takes what any run computes
            encoders[0].append(
                EncoderChoice(
                    plugin=DEFAULT_ENCODER, key=DEFAULT_ENCODER, batch_size=self._config.batch_size
                )
            )
            self._derived.append(f"Pooled is {DEFAULT_ENCODER}, since no encoder was chosen.")

    def _tiler(self, tiling: _Tiling) -> Choice:
        """Fill what is derived into the tiler's options; the cards fill what is still open."""
        choice, options = self._config.tiler, self._options
        if not has_target(options):
            return choice
        filled = replace(
            options, size=tiling.size, magnification=tiling.magnification, mpp=tiling.mpp
        )
        return replace(choice, config=filled)

    def _patients_of(
        self, tiling: _Tiling, slides: Sequence[MadeModel]
    ) -> Iterator[PatientEncoderChoice]:
        """Give the patient encoders whose input a tiling's pass makes."""
        names = {name for made in slides for name in (made.choice.name, made.choice.plugin)}
        for made in self._patients:
            if made.takes_tiles:
                here = made in tiling.whose or not self._needs(made)
            else:
                here = made.slide_encoder in names if made.slide_encoder else bool(slides)
            if here and isinstance(made.choice, PatientEncoderChoice):
                yield made.choice


def _openness(needs: Sequence[TileNeed]) -> tuple[bool, bool, bool]:
    """Order needs by what they leave open: physical ones with a size come first."""
    return (
        all(need.patch_size is None for need in needs),
        all(need.mpp is None for need in needs),
        all(need.magnification is None for need in needs),
    )


def _merged(made: MadeModel, needs: Sequence[TileNeed]) -> TileNeed:
    """Give the one tiling that all needs of an encoder ask for: its features share their rows."""
    merged: dict[str, Any] = {}
    for name in ("patch_size", "magnification", "mpp"):
        values = {getattr(need, name) for need in needs} - {None}
        if len(values) > 1:
            raise ConfigError(
                f"{made} needs features of tiles with {name} {listed(sorted(map(str, values)))}, "
                "and one slide encoder can only take features of the same tiles."
            )
        merged[name] = values.pop() if values else None
    return TileNeed(**merged, overlap=all(need.overlap for need in needs))


def describe_need(need: TileNeed) -> str:
    """Put a need into words: ``conch_v15 on tiles of 512 px at 20x without overlap``."""
    options = ", ".join(f"{name}={value}" for name, value in need.options.items())
    what = f"{need.encoder or 'any features'}{f' ({options})' if options else ''}"
    if need.dtype:
        what += f" in {need.dtype}"
    size = "tiles" if need.patch_size is None else f"tiles of {need.patch_size} px"
    at = ""
    if need.mpp is not None:
        at = f" at {need.mpp:g} µm/px"
    elif need.magnification is not None:
        at = f" at {need.magnification:g}x"
    return f"{what} on {size}{at}{'' if need.overlap else ' without overlap'}"


def _near_miss(made: MadeModel, need: TileNeed, asked: str, way_out: str) -> ConfigError:
    return ConfigError(
        f"{made} needs {describe_need(need)}, but asked for is {asked}. {way_out}, or leave out "
        f"{made.choice.name}."
    )
