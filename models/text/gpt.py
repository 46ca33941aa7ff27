"""GPT-2: a transformer that predicts the next token.

Source: Radford et al. (2019), "Language Models are Unsupervised Multitask Learners".
"""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

import grlu
from models.layers import precise
from models.text.attention import ATTENTIONS, Attention, Past, linear

_gelu = grlu.activation(nnx.gelu)  # The tanh approximation, as in GPT-2.


class Cache(NamedTuple):
    """Attention cache of a model.

    Attributes:
        layers: one entry per layer; arrays with axes (sequence, position, ...).
        length: number of cached tokens, int32 scalar, the same for all sequences.
    """

    layers: tuple[Past, ...]
    length: jax.Array

    def repeated(self, times: int) -> "Cache":
        """Repeat every sequence `times` times, with adjacent copies."""
        layers = jax.tree.map(lambda a: jnp.repeat(a, times, axis=0), self.layers)
        return Cache(layers, self.length)


class Block(nnx.Module):
    """Pre-norm transformer block: residual attention and a residual dense layer of 4x width."""

    def __init__(
        self, width: int, attention: Attention, *, std_out: float, dropout: float, rngs: nnx.Rngs
    ):
        self.norm_1 = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.attention = attention
        self.norm_2 = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.up = linear(width, 4 * width, 0.02, rngs)
        self.down = linear(4 * width, width, std_out, rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs) if dropout else None

    def __call__(self, x: jax.Array) -> jax.Array:
        return self._residual(x, self.attention(self.norm_1(x)))

    def cached(self, x: jax.Array, past: Past, start: jax.Array) -> tuple[jax.Array, Past]:
        attended, past = self.attention.cached(self.norm_1(x), past, start)
        return self._residual(x, attended), past

    def _residual(self, x: jax.Array, attended: jax.Array) -> jax.Array:
        x = x + self._drop(attended)
        return x + self._drop(self.down(_gelu(self.up(self.norm_2(x)))))

    def _drop(self, x: jax.Array) -> jax.Array:
        return x if self.dropout is None else self.dropout(x)


class GPT(nnx.Module):
    """GPT-2 of any size, from tokens to logits, with the output tied to the embedding.

    Weights are sampled from N(0, .02²), those of the two output projections of each layer from
    N(0, .02² / (2 layers)), and all others of latent attention from N(0, 1 / fan-in); biases are
    zero.

    A model that is not causal attends to the full sequence. Its embedding has one more row for the
    mask, token number `outputs`, which it reads but never predicts, and it has a PRNG stream from
    which an objective may sample masks.

    Args:
        example_shape: shape of one example, `(tokens,)`.
        outputs: V, size of the vocabulary.
        layers: number of blocks.
        heads: number of attention heads.
        width: features of a position, a multiple of `heads`.
        block: maximum sequence length; by default an example's length.
        attention: "multi_head", or "latent", which has a smaller cache.
        latent: with "latent", features of the cached latent; by default width / 2.
        query_latent: with "latent", features of the queries' bottleneck; by default width / 2.
        causal: let a position attend only to itself and preceding positions.
        dropout: dropout rate of the embedding and of each residual branch, in [0, 1).
        value_head: add a dense layer that estimates the value of each position.
        rngs: source of the initial weights and of dropout.

    Raises:
        UserError: if a value is out of range.
    """

    def __init__(
        self,
        example_shape: tuple[int, ...],
        outputs: int,
        *,
        layers: int = 6,
        heads: int = 6,
        width: int = 384,
        block: int | None = None,
        attention: Literal["multi_head", "latent"] = "multi_head",
        latent: int | None = None,
        query_latent: int | None = None,
        causal: bool = True,
        dropout: float = 0.0,
        value_head: bool = False,
        rngs: nnx.Rngs,
    ):
        if len(example_shape) != 1:
            raise grlu.UserError(
                f"gpt takes sequences of tokens, the data's examples have shape "
                f"{tuple(example_shape)}; use a data set of text, such as dataset.name=sonnets"
            )
        block = example_shape[0] if block is None else block
        if min(layers, block, outputs) < 1:
            raise grlu.UserError(
                f"gpt needs positive layers, block and vocabulary, got {layers}, {block}, {outputs}"
            )
        if not 0 <= dropout < 1:
            raise grlu.UserError(f"dropout must lie in [0, 1), got {dropout}")
        if attention not in ATTENTIONS:
            raise grlu.UserError(
                f"attention must be one of {', '.join(ATTENTIONS)}; got {attention!r}"
            )
        own = {"latent": latent, "query_latent": query_latent} if attention == "latent" else {}
        self.vocabulary, self.block, self.causal = outputs, block, causal
        init = nnx.initializers.normal(0.02)
        rows = outputs if causal else outputs + 1
        self.rngs = None if causal else rngs.fork()
        self.tokens = nnx.Embed(rows, width, embedding_init=init, rngs=rngs)
        self.positions = nnx.Param(init(rngs.params(), (block, width)))
        self.dropout = nnx.Dropout(dropout, rngs=rngs) if dropout else None
        std_out = 0.02 / math.sqrt(2 * layers)

        def attend() -> Attention:
            return ATTENTIONS[attention](
                width, heads, causal=causal, std_out=std_out, rngs=rngs, **own
            )

        self.layers = nnx.List(
            Block(width, attend(), std_out=std_out, dropout=dropout, rngs=rngs)
            for _ in range(layers)
        )
        self.norm = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.value = linear(width, 1, 0.02, rngs) if value_head else None
        self.dtype: Any = None  # dtype of the output layer; None for that of its weights

    def __call__(self, tokens: jax.Array, start: int = 0) -> jax.Array:
        """Return next-token logits (B, T - start, V) after each of `tokens`, int of shape (B, T).

        If the model is not causal, return logits of the token at each position. Positions before
        `start` serve as context only: with a large vocabulary, logits are most of the work.

        Raises:
            UserError: on more tokens than `block`, or input that is not tokens.
        """
        return self._logits(self.encode(tokens)[:, start:])

    def encode(self, tokens: jax.Array) -> jax.Array:
        """Return the features of each position, shape (B, T, width), before the output layer."""
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise grlu.UserError(
                f"gpt takes tokens, integers of shape (batch, tokens), not {tokens.dtype} of shape "
                f"{tokens.shape}; use a data set of text, such as dataset.name=sonnets"
            )
        self._require_room(tokens.shape[1])
        x = self._embedded(tokens, self.positions[: tokens.shape[1]])
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)

    def with_values(self, tokens: jax.Array, start: int = 0) -> tuple[jax.Array, jax.Array]:
        """Return logits (B, T - start, V), and values (B, T - start) of the state after each token.

        Raises:
            UserError: on more tokens than `block`, or a model without a value head.
        """
        if self.value is None:
            raise grlu.UserError("this gpt has no value head: set model.value_head=true")
        x = self.encode(tokens)[:, start:]
        return self._logits(x), self.value(x)[..., 0]

    def empty_cache(self, batch: int, length: int) -> Cache:
        """Return an empty cache of `batch` sequences of at most `length` tokens.

        Raises:
            UserError: on a length beyond `block`, or a model that is not causal.
        """
        if not self.causal:
            raise grlu.UserError(
                "a gpt with causal=false has no cache: each token changes all other positions"
            )
        self._require_room(length)
        pasts = tuple(layer.attention.empty(batch, length) for layer in self.layers)
        return Cache(pasts, jnp.zeros((), jnp.int32))

    def cached(self, tokens: jax.Array, cache: Cache, start: int = 0) -> tuple[jax.Array, Cache]:
        """Return the logits after each of the next `tokens`, shape (B, T), and the new cache.

        The tokens follow those in the cache: several calls give the logits of one call without a
        cache. Logits of the first `start` new tokens are left out. If `cache.length` is traced,
        tokens beyond the cache or the block cannot raise an error: their logits, and all later
        ones, are nan.

        Raises:
            UserError: on more tokens than positions in the cache or in the block.
        """
        room = self._room(tokens.shape[1], cache)
        positions = jax.lax.dynamic_slice_in_dim(
            self.positions[...], cache.length, tokens.shape[1], axis=0
        )
        if isinstance(cache.length, jax.core.Tracer):
            # JAX clamps out-of-bounds slices and updates to wrong positions.
            fits = cache.length + tokens.shape[1] <= room
            positions = jnp.where(fits, positions, jnp.nan)
        x, pasts = self._embedded(tokens, positions), []
        for layer, past in zip(self.layers, cache.layers, strict=True):
            x, past = layer.cached(x, past, cache.length)
            pasts.append(past)
        logits = self._logits(self.norm(x)[:, start:])
        return logits, Cache(tuple(pasts), cache.length + tokens.shape[1])

    def _room(self, new: int, cache: Cache) -> int:
        """Return the number of positions of a cache; raise UserError if `new` tokens do not fit."""
        held = min(layer[0].shape[1] for layer in cache.layers)
        room = min(self.block, held)
        seen = 0 if isinstance(cache.length, jax.core.Tracer) else int(cache.length)
        if seen + new <= room:
            return room
        what = f"{new} tokens after the {seen} in the cache" if seen else f"{new} tokens"
        if held < self.block:
            raise grlu.UserError(
                f"{what} are more than the {held} positions of the cache: create it with "
                f"empty_cache(batch, length={seen + new}), up to the model's block of {self.block}"
            )
        raise grlu.UserError(
            f"{what} are more than the {self.block} of the model's block: "
            "shorten the sequences, or raise model.block"
        )

    def _embedded(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        x = self.tokens(tokens) + positions[None]
        return x if self.dropout is None else self.dropout(x)

    def _logits(self, x: jax.Array) -> jax.Array:
        rows = self.tokens.embedding[: self.vocabulary]
        x, rows = nnx.nn.dtypes.promote_dtype((x, rows), dtype=self.dtype)
        return precise(x @ rows.T)

    def _require_room(self, length: int) -> None:
        if length > self.block:
            raise grlu.UserError(
                f"{length} tokens are more than the {self.block} of the model's block: "
                "shorten the sequences, or raise model.block"
            )
