"""Solves what slide and patient encoders need: which tilings, with which patch encoders.

A slide encoder names the tiles and features that it was made for (`TileNeed`). From these, and
from what the user said, follow the passes of a run: one `RunConfig` a tiling, each read once. What
the user said is never changed; a need that contradicts it is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from microtome.errors import ConfigError, naming_encoder
from microtome.plugin.aliases import listed
from microtome.plugin.options import configure
from microtome.plugin.registry import Registry
from microtome.plugin.specs import TileNeed
from microtome.run.planning.matching import (
    MadeModel,
    embedder_of,
    find_giver,
    find_slide_encoder,
    gives,
    make_model,
)
from microtome.run.planning.needs import (
    Tiling,
    describe_need,
    is_of_tiles,
    merge_needs,
    openness,
)
from microtome.run.planning.target import has_target
from microtome.run.settings import (
    DEFAULT_ENCODER,
    Choice,
    EncoderChoice,
    PatientEncoderChoice,
    RunConfig,
    SlideEncoderChoice,
)


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
        self._patients = [make_model(c, registry, or_spec=True) for c in config.patient_encoders]
        self._slides = [make_model(c, registry, or_spec=True) for c in self._slide_choices()]
        self._derived: list[str] = []

    def _slide_choices(self) -> list[SlideEncoderChoice]:
        """Give the slide encoders asked for, and those that patient encoders name.

        Raises:
            ConfigError: If one has no slide encoder, or another has the key of the one it needs.
        """
        choices = list(self._config.slide_encoders)
        for made in (made for made in self._patients if not made.takes_tiles):
            name = made.slide_encoder
            if not name and not choices:
                raise ConfigError(
                    f"{made} pools embeddings of slides, and this run makes none. Say which slide "
                    "encoder makes them: slide_encoder=mean, for instance."
                )
            if not name or find_slide_encoder(made, choices, self._registry):
                continue
            if name in {choice.name for choice in choices}:
                raise ConfigError(
                    f"{made} takes embeddings by {name} as it was made, and slide_encoder.{name} "
                    "is another or has other options. Give it a key of its own: "
                    "+slide_encoder@slide_encoder.KEY=NAME."
                )
            device, precision = made.choice.device, made.choice.precision
            choices.append(
                SlideEncoderChoice(plugin=name, key=name, device=device, precision=precision)
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
                "folder of its own below the output (tiler.name=auto). What lies in no such "
                "folder from an earlier run is computed again."
            )
        homes = self._homes(tilings, encoders)
        for tiling, chosen in zip(tilings, encoders, strict=True):
            slides = [made for made in self._slides if tiling in homes[made]]
            choices = [m.choice for m in slides if isinstance(m.choice, SlideEncoderChoice)]
            yield replace(
                self._config,
                tiling="auto" if several else self._config.tiling,
                tiler=self._tiler(tiling),
                encoders=tuple(chosen),
                slide_encoders=tuple(choices),
                patient_encoders=tuple(self._patients_of(tiling, choices, homes)),
                derived=(*self._config.derived, *self._derived),
            )

    def _told(self, tilings: Sequence[Tiling]) -> str:
        told = [f"{t} ({', '.join(_names(t))})" for t in tilings]
        return f"{len(tilings)} tilings, {listed(told)}"

    def _homes(
        self, tilings: Sequence[Tiling], encoders: Sequence[Sequence[EncoderChoice]]
    ) -> dict[MadeModel, list[Tiling]]:
        """Say whose needs each tiling meets; a pooling goes wherever it can take some features."""
        homes: dict[MadeModel, list[Tiling]] = {}
        for made in self._needy():
            needs = self._needs(made)
            dims = {need.dim for need in needs} - {None}
            if any(is_of_tiles(need) for need in needs):
                homes[made] = [tiling for tiling in tilings if made in tiling.whose]
            elif len(tilings) == 1 or not dims:
                homes[made] = list(tilings)
            else:
                pairs = zip(tilings, encoders, strict=True)
                found = [t for t, own in pairs if any(self._dim(c) in (None, *dims) for c in own)]
                homes[made] = found or [tilings[0]]  # whose plan says which columns there are
        return homes

    def _dim(self, choice: EncoderChoice) -> int | None:
        """Give the columns of an encoder's features, as far as they are known by now."""
        entry = self._registry.find("encoder", choice.plugin)
        source = entry.spec
        if not entry.missing:
            options = configure(entry.spec) if choice.config is None else choice.config
            with naming_encoder(choice.name, entry.spec.name):
                source = self._registry.create("encoder", entry.spec.name, options)
        card = getattr(source, "card", None)
        return None if card is None else int(card.dim)

    def _tilings(self) -> list[Tiling]:
        """Gather needs into tilings: those that leave least open first, so that others join."""
        own = self._asked()
        wants = [(m, needs) for m in self._needy() if (needs := self._needs(m))]
        wants.sort(key=lambda want: openness(want[1]))
        tilings: list[Tiling] = []
        for made, needs in wants:
            self._check(made, needs, own)
            if not any(is_of_tiles(need) for need in needs):
                continue
            merged = merge_needs(made, needs)
            found = next((t for t in tilings if t.takes(merged)), None)
            if found is None and own.given and tilings:
                raise _near_miss(
                    made,
                    merged,
                    f"tiler={own.given}, of whose tiles {listed(_names(tilings[0]))} needs others",
                    "Run them apart, each with tiler.name=… or an output of its own",
                )
            if found is None:
                found = replace(own, needs=[], whose=[])
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
        slides = self._config.slide_encoders
        embedder = embedder_of(made, slides, self._registry, or_spec=True)
        return () if embedder is None else embedder.needs

    def _asked(self) -> Tiling:
        """Give what the user said of tiles, which no need changes."""
        if not has_target(self._options):
            return Tiling(given=self._config.tiler.plugin)
        options = self._options
        return Tiling(
            size=options.size,
            magnification=options.magnification,
            mpp=options.mpp,
            level=getattr(options, "level", None),
        )

    def _check(self, made: MadeModel, needs: Sequence[TileNeed], own: Tiling) -> None:
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

    def _check_step(self, made: MadeModel, need: TileNeed, own: Tiling) -> None:
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

    def _encoders(self, tiling: Tiling) -> list[EncoderChoice]:
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
        self, tilings: Sequence[Tiling], encoders: Sequence[list[EncoderChoice]]
    ) -> None:
        """Put the user's other encoders where their cards suit, else on the first tiling."""
        placed = [choice for chosen in encoders for choice in chosen]
        for choice in self._config.encoders:
            if choice in placed:
                continue
            card = getattr(self._registry.find("encoder", choice.plugin).spec, "card", None)
            suited = [i for i, t in enumerate(tilings) if card is not None and t.suits(card)]
            encoders[suited[0] if suited else 0].append(choice)
        for chosen in (chosen for chosen in encoders if not chosen):  # poolings alone
            chosen += self._config.encoders or [self._default()]

    def _default(self) -> EncoderChoice:
        self._derived.append(f"Pooled is {DEFAULT_ENCODER}, since no encoder was chosen.")
        return EncoderChoice(
            plugin=DEFAULT_ENCODER, key=DEFAULT_ENCODER, batch_size=self._config.batch_size
        )

    def _tiler(self, tiling: Tiling) -> Choice:
        """Fill what is derived into the tiler's options; the cards fill what is still open."""
        choice, options = self._config.tiler, self._options
        if not has_target(options):
            return choice
        filled = replace(
            options, size=tiling.size, magnification=tiling.magnification, mpp=tiling.mpp
        )
        return replace(choice, config=filled)

    def _patients_of(
        self,
        tiling: Tiling,
        slides: Sequence[SlideEncoderChoice],
        homes: Mapping[MadeModel, Sequence[Tiling]],
    ) -> Iterator[PatientEncoderChoice]:
        """Give the patient encoders whose input a tiling's pass makes."""
        for made in self._patients:
            if made.takes_tiles:
                here = tiling in homes[made]
            elif made.slide_encoder:
                here = find_slide_encoder(made, slides, self._registry) is not None
            else:
                here = bool(slides)
            if here and isinstance(made.choice, PatientEncoderChoice):
                yield made.choice


def _names(tiling: Tiling) -> list[str]:
    return [made.choice.name for made in tiling.whose]


def _near_miss(made: MadeModel, need: TileNeed, asked: str, way_out: str) -> ConfigError:
    return ConfigError(
        f"{made} needs {describe_need(need)}, but asked for is {asked}. {way_out}, or leave out "
        f"{made.choice.name}."
    )
