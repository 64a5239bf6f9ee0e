"""What a slide encoder promises."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest

from microtome.plugin.options import configure
from microtome.plugin.registry import Registered, Registry
from microtome.plugin.specs import EncoderCard, EncoderSpec, SlideEncoderSpec, TileNeed
from microtome.slide.bags import TileBag
from microtome.testing.bags import make_bag
from microtome.testing.contracts.base import PluginContract


class BagEncoderContract(PluginContract):
    """What slide and patient encoders have in common; see `SlideEncoderContract`.

    Attributes:
        device: Where it runs.
        precision: What it runs in.
    """

    device: ClassVar[str] = "cpu"
    precision: ClassVar[str] = "fp32"

    @pytest.fixture
    def encoder(self, registry: Registry, entry: Registered, config: Any) -> Any:
        """The encoder, loaded."""
        return self.keep("encoder", lambda: self.make(registry, entry, config))

    def make(self, registry: Registry, entry: Registered, config: Any) -> Any:
        """Make one and load it."""
        encoder = registry.create(self.kind, entry.spec.name, config)
        encoder.load(self.device, self.precision)
        return encoder

    def needs_of(self, encoder: Any, entry: Registered) -> tuple[TileNeed, ...]:
        """Give what it needs: its object's word before its spec's."""
        own = getattr(encoder, "needs", None)
        return tuple(getattr(entry.spec, "needs", ()) if own is None else own)

    def test_its_card_is_known_before_loading(
        self, registry: Registry, entry: Registered, config: Any
    ) -> None:
        """A run writes provenance by it; an encoder whose columns depend on its input has none."""
        made = registry.create(self.kind, entry.spec.name, config)
        card = getattr(made, "card", None) or getattr(entry.spec, "card", None)
        if card is None:
            pytest.skip("what it is given decides")
        assert isinstance(card, EncoderCard)
        assert card.dim > 0
        assert card.precision in ("fp32", "fp16", "bf16")
        assert card.latents is None or min(card.latents) > 0

    def test_what_its_spec_needs_can_be_made(self, registry: Registry) -> None:
        """A run adds the patch encoder by name and options; known without any library."""
        spec = registry.find(self.kind, self.plugin).spec
        check_needs(getattr(spec, "needs", ()), registry)

    def test_what_it_needs_can_be_made(
        self, registry: Registry, entry: Registered, config: Any
    ) -> None:
        """Likewise where its options decide."""
        made = registry.create(self.kind, entry.spec.name, config)
        check_needs(self.needs_of(made, entry), registry)

    def test_its_weights_have_a_name(
        self, registry: Registry, entry: Registered, config: Any
    ) -> None:
        """The same each time: they are part of an embedding's identity."""
        made = registry.create(self.kind, entry.spec.name, config)
        if not hasattr(made, "weights"):
            pytest.skip("it is what its name, version and configuration say")
        weights = made.weights()
        assert isinstance(weights, Mapping)
        assert all(isinstance(k, str) and isinstance(v, str) for k, v in weights.items())
        assert weights == made.weights()

    def test_what_it_loaded_is_put_on_record(self, encoder: Any) -> None:
        """As text: it is written beside the embedding."""
        loaded = getattr(encoder, "loaded_weights", None)
        if loaded is None:
            pytest.skip("it does not say")
        assert isinstance(loaded, Mapping)
        assert all(isinstance(k, str) and isinstance(v, str) for k, v in loaded.items())

    def test_it_estimates_its_memory(
        self, registry: Registry, entry: Registered, config: Any
    ) -> None:
        """Before it is loaded; more tiles take no less."""
        made = registry.create(self.kind, entry.spec.name, config)
        if not hasattr(made, "memory"):
            pytest.skip("it is taken to need what its input takes, a few times over")
        few, many = made.memory(100, (10, 20)), made.memory(10_000, (100, 200))
        assert 0 <= few <= many


def check_needs(needs: Iterable[TileNeed], registry: Registry) -> None:
    """See that patch encoders of these names, options and columns are there."""
    for need in needs:
        assert isinstance(need, TileNeed)
        assert need.dtype in ("", "float32", "float16")
        if need.encoder:
            spec = registry.find("encoder", need.encoder).spec
            assert isinstance(spec, EncoderSpec)
            configure(spec, **need.options)
            if not need.options and spec.card is not None and need.dim is not None:
                assert spec.card.dim == need.dim


class SlideEncoderContract(BagEncoderContract):
    """Subclass it for a slide encoder; one with weights says ``options = {"weights": …}``.

    Attributes:
        dim: Columns of the features that it is given, where it does not say.
    """

    kind: ClassVar[str] = "slide_encoder"
    dim: ClassVar[int] = 8

    @pytest.fixture
    def bag(self, encoder: Any, entry: Registered) -> TileBag:
        """The tiles of a slide."""
        return self.bag_of(encoder, entry)

    def bag_of(self, encoder: Any, entry: Registered, **more: Any) -> TileBag:
        """Make the tiles of a slide of the kind that it needs."""
        return make_bag(self.needs_of(encoder, entry), dim=self.dim, **more)

    def test_its_coordinates_have_a_unit(self, entry: Registered) -> None:
        """``level0`` pixels, ``grid`` places, or none at all."""
        assert isinstance(entry.spec, SlideEncoderSpec)
        assert entry.spec.coords in ("", "level0", "grid")

    def test_without_a_unit_it_looks_at_no_coordinates(
        self, encoder: Any, entry: Registered, bag: TileBag
    ) -> None:
        """Tiles twice as far apart have the same embedding."""
        if getattr(entry.spec, "coords", ""):
            pytest.skip("It is given coordinates.")
        apart = replace(bag, coords=bag.coords * 2)
        same = encoder.encode(bag).embedding
        np.testing.assert_allclose(encoder.encode(apart).embedding, same, rtol=1e-5)

    def test_its_embedding_is_what_the_card_says(
        self, encoder: Any, entry: Registered, bag: TileBag
    ) -> None:
        """(dim,), floating point and finite; latents and attention of their shapes."""
        output = encoder.encode(bag)
        card = getattr(encoder, "card", None) or getattr(entry.spec, "card", None)
        embedding = np.asarray(output.embedding)
        assert embedding.ndim == 1
        assert card is None or embedding.shape == (card.dim,)
        assert np.issubdtype(embedding.dtype, np.floating)
        assert np.isfinite(embedding).all()
        if card is not None and card.latents is not None:
            assert np.shape(output.latents) == card.latents
        if output.attention is not None:
            assert np.shape(output.attention) == (len(bag),)
            assert np.isfinite(output.attention).all()

    def test_it_gives_the_same_again(
        self, registry: Registry, entry: Registered, config: Any, encoder: Any, bag: TileBag
    ) -> None:
        """Bit for bit, also from a fresh one."""
        first = np.array(encoder.encode(bag).embedding)
        assert np.array_equal(encoder.encode(bag).embedding, first)
        fresh = self.make(registry, entry, config)
        assert np.array_equal(fresh.encode(bag).embedding, first)

    def test_it_leaves_its_input_as_it_is(self, encoder: Any, entry: Registered) -> None:
        """Others are given the same arrays."""
        given, same = self.bag_of(encoder, entry), self.bag_of(encoder, entry)
        encoder.encode(given)
        assert np.array_equal(given.coords, same.coords)
        for name, features in same.features.items():
            assert np.array_equal(given.features[name], features)

    def test_other_slides_have_other_embeddings(
        self, encoder: Any, entry: Registered, bag: TileBag
    ) -> None:
        """Constant embeddings are the commonest silent fault."""
        other = encoder.encode(self.bag_of(encoder, entry, seed=1))
        assert not np.array_equal(encoder.encode(bag).embedding, other.embedding)

    def test_one_tile_makes_a_slide(self, encoder: Any, entry: Registered) -> None:
        """Of a biopsy there may be no more."""
        one = self.bag_of(encoder, entry, grid=(1, 1))
        assert len(one) == 1
        assert np.isfinite(encoder.encode(one).embedding).all()
