"""Token grids and the class token's attention, overheard while a model embeds.

A model is run once and as it is: its tokens and the queries and keys of its last block are heard
from the calls that it makes anyway, so its embedding stays the same to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention, softmax
from torch.overrides import TorchFunctionMode

from microtome.errors import EncoderError

TOKENS, ATTENTION = "tokens", "attention"
_SOFTMAX = (softmax, torch.softmax, Tensor.softmax)
_TOKEN_AXES = 3
_MAP_AXES = 4


@dataclass(frozen=True, eq=False, kw_only=True)
class Anatomy:
    """Where in a model dense features are.

    Attributes:
        owner: The module whose method's output holds the tokens.
        method: That method.
        read: Takes the tokens out of its output: (n, tokens, dim), or (n, height, width, dim).
        prefix: How many tokens stand before those of patches, the class token first.
        block: The last block of a model with a class token, all of whose tokens attend to each
            other in it; None for a model without.
    """

    owner: nn.Module
    method: str = "forward"
    read: Callable[[Any], Any] = lambda output: output
    prefix: int = 0
    block: nn.Module | None = None


def channels_last(features: Tensor) -> Tensor:
    """Give (n, height, width, dim) of a convolution's (n, dim, height, width)."""
    return features.permute(0, 2, 3, 1)


def timm_anatomy(model: nn.Module) -> Anatomy:
    """Find the tokens, or the last feature map, of a model of timm."""
    blocks: Any = getattr(model, "blocks", None)
    attends = blocks is not None and getattr(model, "cls_token", None) is not None
    return Anatomy(
        owner=model,
        method="forward_features",
        read=partial(_timm_map, getattr(model, "output_fmt", "NCHW")),
        prefix=int(getattr(model, "num_prefix_tokens", 0)),
        block=blocks[-1] if attends else None,
    )


def _timm_map(layout: str, output: Any) -> Any:
    is_map = isinstance(output, Tensor) and output.ndim == _MAP_AXES
    return channels_last(output) if is_map and layout != "NHWC" else output


def last_layer(model: nn.Module) -> nn.Module:
    """Give the last of a model's blocks: of its longest list of layers."""
    lists = [layer for layer in model.modules() if isinstance(layer, nn.ModuleList)]
    last: nn.Module = max(lists, key=len)[-1]
    return last


def find_dense(
    anatomy: Anatomy, run: Callable[[nn.Module, Tensor], object], model: nn.Module, images: Tensor
) -> tuple[str, ...]:
    """Say what can be heard of a model by running it once.

    Args:
        anatomy: Of the model.
        run: Runs it.
        model: On the meta device for one.
        images: What it is run on.

    Returns:
        ``"tokens"`` and ``"attention"``, as far as there are any.

    Raises:
        EncoderError: If the model does not run without weights.
    """
    heard = Overhearing(anatomy, (TOKENS, ATTENTION))
    try:
        run(model, images)
    except (NotImplementedError, RuntimeError) as error:
        raise EncoderError(
            f"What {type(model).__name__} gives besides its embedding cannot be found out, since "
            f"it does not run without weights: {' '.join(str(error).split())[:200]}"
        ) from error
    return tuple(heard.take())


class Overhearing:
    """Listens to a model from here on.

    Args:
        anatomy: Of the model.
        names: What to hear: ``"tokens"``, ``"attention"``.
    """

    def __init__(self, anatomy: Anatomy, names: Collection[str]) -> None:
        self._anatomy, self._names = anatomy, names
        self._tokens: Any = None
        self._attention: Tensor | None = None
        _wrap(anatomy.owner, anatomy.method, self._hear_tokens)
        if ATTENTION in names and anatomy.block is not None:
            self._attend(anatomy.block)

    def take(self) -> Mapping[str, Tensor]:
        """Give what was heard since the last time, as far as it is what it should be.

        Returns:
            By name: (n, height, width, dim) tokens, (n, heads, height, width) attention, float32.
        """
        tokens, attention = self._tokens, self._attention
        self._tokens = self._attention = None
        grid = self._grid(tokens)
        if grid is None:
            return {}
        found = {TOKENS: grid}
        height, width = grid.shape[1:3]
        if attention is not None and attention.shape[-1] == self._anatomy.prefix + height * width:
            cells = attention[..., self._anatomy.prefix :]
            found[ATTENTION] = cells.reshape(*cells.shape[:2], height, width)
        return {name: values.float() for name, values in found.items() if name in self._names}

    def _grid(self, tokens: Any) -> Tensor | None:
        """Lay tokens out row by row, without the class token and registers."""
        if not isinstance(tokens, Tensor):
            return None
        if tokens.ndim == _MAP_AXES:
            return tokens
        if tokens.ndim != _TOKEN_AXES:
            return None
        patches = tokens[:, self._anatomy.prefix :]
        side = math.isqrt(patches.shape[1])
        square = side > 0 and side * side == patches.shape[1]
        return patches.reshape(len(patches), side, side, -1) if square else None

    def _hear_tokens(self, output: Any) -> None:
        self._tokens = self._anatomy.read(output)

    def _hear_attention(self, weights: Tensor) -> None:
        self._attention = weights

    def _attend(self, block: nn.Module) -> None:
        """Listen to the attention inside a block.

        torch's own layer is listened to by its input: it runs on a faster path, with other last
        bits, as long as nobody looks into it.
        """
        for layer in block.modules():
            if isinstance(layer, nn.MultiheadAttention):
                hear = partial(_project, hear=self._hear_attention)
                layer.register_forward_pre_hook(hear, with_kwargs=True)
                return
        inner: Callable[..., Any] = block.forward

        @wraps(inner)
        def listening(*args: Any, **options: Any) -> Any:
            with _Listening(self._hear_attention):
                return inner(*args, **options)

        setattr(block, "forward", listening)  # noqa: B010 - of this module, not of its class


def _wrap(module: nn.Module, method: str, hear: Callable[[Any], None]) -> None:
    inner: Callable[..., Any] = getattr(module, method)

    @wraps(inner)
    def listening(*args: Any, **options: Any) -> Any:
        output = inner(*args, **options)
        hear(output)
        return output

    setattr(module, method, listening)


class _Listening(TorchFunctionMode):
    """Hears how the first token attends to all, from whichever call makes a softmax of it.

    So what a model does to queries and keys before (norms, rotary positions, scales) counts.
    """

    def __init__(self, hear: Callable[[Tensor], None]) -> None:
        super().__init__()
        self._hear = hear

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        output = func(*args, **options)
        if func is scaled_dot_product_attention:
            self._hear(_fused(*args, **options))
        elif func in _SOFTMAX and output.ndim == _MAP_AXES:
            self._hear(output[:, :, 0].clone())
        return output


def _fused(  # noqa: PLR0913 - torch's
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Give the first token's weights, which torch's fused attention keeps to itself.

    Its arguments are torch's. In float32, whatever those are in.

    Returns:
        (n, heads, tokens).
    """
    if enable_gqa:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    with _exactly(query):
        scores = (query[:, :, :1].float() * scale) @ key.float().transpose(-2, -1)
        if attn_mask is not None:
            row = attn_mask[..., :1, :]
            masked = scores.masked_fill(~row, -math.inf) if row.dtype == torch.bool else None
            scores = scores + row.float() if masked is None else masked
        return scores.softmax(-1).squeeze(2)


def _project(
    layer: nn.MultiheadAttention,
    args: tuple[Tensor, ...],
    options: Mapping[str, Any],
    *,
    hear: Callable[[Tensor], None],
) -> None:
    """Give the first token's weights in torch's own layer, from what the layer is given."""
    query: Tensor = args[0] if args else options["query"]
    tokens = query if layer.batch_first else query.transpose(0, 1)
    dim, bias = layer.embed_dim, layer.in_proj_bias
    with _exactly(tokens):
        tokens, weight = tokens.float(), layer.in_proj_weight.float()
        parts = (slice(0, dim), slice(dim, 2 * dim))
        biases = [None if bias is None else bias[part].float() for part in parts]
        first = linear(tokens[:, :1], weight[parts[0]], biases[0])
        keys = linear(tokens, weight[parts[1]], biases[1])
    queries, keys = (
        part.reshape(*part.shape[:2], layer.num_heads, -1).transpose(1, 2) for part in (first, keys)
    )
    hear(_fused(queries, keys, keys))


def _exactly(tensor: Tensor) -> Any:
    """Turn autocast off; on the meta device there is none."""
    kind = "cpu" if tensor.is_meta else tensor.device.type
    return torch.autocast(kind, enabled=False)
