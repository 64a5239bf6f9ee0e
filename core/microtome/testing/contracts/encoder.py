"""What an encoder promises."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from microtome.plugin.registry import Registered, Registry
from microtome.plugin.specs import EncoderCard, EncoderSpec
from microtome.testing.contracts.base import PluginContract
from microtome.testing.synthetic import make_plain_image

TILES = 6
_ROUNDING = 1e-3


class EncoderContract(PluginContract):
    """Subclass it for an encoder; one with weights says ``options = {"weights": "random"}``.

    Attributes:
        device: Where it runs.
        precision: What it runs in.
        tile_size: Side of the tiles it is given; its card's input size if None, else 256.
        least_cosine: How near the features of a tile must be, whatever batch it is in.
    """

    kind: ClassVar[str] = "encoder"
    device: ClassVar[str] = "cpu"
    precision: ClassVar[str] = "fp32"
    tile_size: ClassVar[int | None] = None
    least_cosine: ClassVar[float] = 0.9999

    @pytest.fixture
    def encoder(self, registry: Registry, entry: Registered, config: Any) -> Any:
        """The encoder, loaded."""

        def make() -> Any:
            encoder = registry.create("encoder", entry.spec.name, config)
            encoder.load(self.device, self.precision)
            return encoder

        return self.keep("encoder", make)

    @pytest.fixture
    def tiles(self, encoder: Any, tmp_path_factory: pytest.TempPathFactory) -> NDArray[np.uint8]:
        """(n, size, size, 3): tissue, one white tile and one black."""
        size = self.tile_size or encoder.card.input_size or 256

        def make() -> NDArray[np.uint8]:
            path: Path = tmp_path_factory.mktemp("tiles") / "tissue.png"
            image = make_plain_image(path, size=(size * 3, size * 2), tissue=0.6).image
            rows = image.reshape(2, size, 3, size, 3).swapaxes(1, 2)
            tiles = np.ascontiguousarray(rows.reshape(TILES, size, size, 3))
            tiles[0], tiles[1] = 255, 0
            return tiles

        return self.keep("tiles", make)

    @pytest.fixture
    def embedding(self, encoder: Any, tiles: NDArray[np.uint8]) -> NDArray[Any]:
        """The features of all tiles in one batch."""
        return self.keep("embedding", lambda: _embed(encoder, tiles))

    def test_its_card_is_complete_before_loading(
        self, registry: Registry, entry: Registered, config: Any
    ) -> None:
        """A run plans tiles and writes provenance by it."""
        card = registry.create("encoder", entry.spec.name, config).card
        assert isinstance(card, EncoderCard)
        assert card.dim > 0
        assert card.precision in ("fp32", "fp16", "bf16")
        assert isinstance(entry.spec, EncoderSpec)
        if entry.spec.card is not None:
            assert registry.create("encoder", entry.spec.name).card == entry.spec.card

    def test_its_embedding_is_what_the_card_says(
        self, encoder: Any, embedding: NDArray[Any]
    ) -> None:
        """(n, dim), floating point, finite even for a white and a black tile."""
        assert embedding.shape == (TILES, encoder.card.dim)
        assert np.issubdtype(embedding.dtype, np.floating)
        assert np.isfinite(embedding).all()

    def test_different_tiles_have_different_embeddings(self, embedding: NDArray[Any]) -> None:
        """Constant features are the commonest silent fault."""
        assert len(np.unique(embedding, axis=0)) == TILES

    def test_it_gives_on_request_what_its_spec_says(
        self,
        registry: Registry,
        entry: Registered,
        config: Any,
        tiles: NDArray[np.uint8],
        embedding: NDArray[Any],
    ) -> None:
        """Token grids and the class token's attention, a row a tile, and the same embedding."""
        assert isinstance(entry.spec, EncoderSpec)
        asked = registry.create("encoder", entry.spec.name, config)
        gives = getattr(asked, "gives", entry.spec.gives)
        assert set(gives) <= set(entry.spec.gives) <= {"tokens", "attention"}
        if not gives:
            pytest.skip("it gives embeddings alone")
        asked.ask(*gives)
        asked.load(self.device, self.precision)
        output = asked.encode(_batch(tiles))
        assert np.array_equal(output.embedding, embedding)
        tokens, attention = output.tokens, output.attention
        if "tokens" in gives:
            assert tokens.ndim == 4
            assert len(tokens) == TILES
            assert np.isfinite(tokens).all()
        if "attention" in gives:
            assert attention.ndim == 4
            assert len(attention) == TILES
            assert (attention >= 0).all()
            assert (attention.sum((2, 3)) <= 1 + _ROUNDING).all()
            assert tokens is None or attention.shape[2:] == tokens.shape[1:3]

    def test_it_gives_the_same_again(
        self, encoder: Any, tiles: NDArray[np.uint8], embedding: NDArray[Any]
    ) -> None:
        """Bit for bit, for one device and one batch."""
        assert np.array_equal(_embed(encoder, tiles), embedding)

    def test_a_fresh_one_gives_the_same(
        self,
        registry: Registry,
        entry: Registered,
        config: Any,
        tiles: NDArray[np.uint8],
        embedding: NDArray[Any],
    ) -> None:
        """Random weights too come from a seed that is on record."""
        fresh = registry.create("encoder", entry.spec.name, config)
        fresh.load(self.device, self.precision)
        assert np.array_equal(_embed(fresh, tiles), embedding)

    @pytest.mark.parametrize("size", [1, 4])
    def test_a_row_does_not_depend_on_its_batch(
        self, encoder: Any, tiles: NDArray[np.uint8], embedding: NDArray[Any], size: int
    ) -> None:
        """Whatever the size of the batch and the place in it."""
        order = np.random.default_rng(0).permutation(TILES)
        parts = [tiles[order[i : i + size]] for i in range(0, TILES, size)]
        shuffled = np.concatenate([_embed(encoder, part) for part in parts])
        assert _cosine(shuffled, embedding[order]).min() >= self.least_cosine

    def test_several_threads_get_the_same(
        self, encoder: Any, entry: Registered, tiles: NDArray[np.uint8], embedding: NDArray[Any]
    ) -> None:
        """Bit for bit, from an encoder whose spec says ``concurrent``."""
        assert isinstance(entry.spec, EncoderSpec)
        if not entry.spec.concurrent:
            pytest.skip("it is called by one thread at a time")
        parts = [slice(row, row + 2) for row in range(TILES - 1)] * 4
        with ThreadPoolExecutor(4) as pool:
            rows = pool.map(lambda part: (part, _embed(encoder, tiles[part])), parts)
            assert all(np.array_equal(found, embedding[part]) for part, found in rows)

    def test_tiles_are_left_as_they_are(self, encoder: Any, tiles: NDArray[np.uint8]) -> None:
        """Other encoders see them next."""
        before = tiles.copy()
        encoder.encode(_batch(tiles))
        assert np.array_equal(tiles, before)

    def test_it_leaves_the_global_random_state_alone(
        self, registry: Registry, entry: Registered, config: Any, tiles: NDArray[np.uint8]
    ) -> None:
        """Whoever else draws numbers in the process goes on undisturbed."""
        before: Any = np.random.get_state(legacy=True)
        encoder = registry.create("encoder", entry.spec.name, config)
        encoder.load(self.device, self.precision)
        _embed(encoder, tiles[:1])
        after: Any = np.random.get_state(legacy=True)
        assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))

    def test_its_weights_have_a_name(
        self, registry: Registry, entry: Registered, config: Any
    ) -> None:
        """The same each time: they are part of the features' identity."""
        if getattr(entry.spec, "remote_code", False):
            pytest.skip("its code is on the hub")
        encoder = registry.create("encoder", entry.spec.name, config)
        if not hasattr(encoder, "weights"):
            pytest.skip("it is what its name, version and configuration say")
        weights = encoder.weights()
        assert isinstance(weights, Mapping)
        assert all(isinstance(k, str) and isinstance(v, str) for k, v in weights.items())
        assert weights == encoder.weights()

    def test_what_it_loaded_is_put_on_record(self, encoder: Any) -> None:
        """As text: it is written beside the features."""
        if not hasattr(encoder, "loaded_weights"):
            pytest.skip("it does not say")
        loaded = encoder.loaded_weights
        assert isinstance(loaded, Mapping)
        assert loaded
        assert all(isinstance(k, str) and isinstance(v, str) for k, v in loaded.items())


def _batch(tiles: NDArray[np.uint8]) -> Any:
    from microtome.slide.batch import TileBatch

    coords = np.zeros((len(tiles), 5), np.int32)
    coords[:, 0] = np.arange(len(tiles)) * tiles.shape[2]
    coords[:, 2:4] = tiles.shape[2], tiles.shape[1]
    return TileBatch(tiles, coords)


def _embed(encoder: Any, tiles: NDArray[np.uint8]) -> NDArray[Any]:
    return np.array(encoder.encode(_batch(tiles)).embedding)


def _cosine(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Give each row's cosine; that of two zero rows is 1."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = (a * b).sum(axis=1) / np.where(norms == 0, 1, norms)
    return np.asarray(np.where(norms == 0, (a == b).all(axis=1), cosine), np.float64)
