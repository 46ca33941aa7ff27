"""GPT-2: a transformer over tokens, from which it predicts the next ones.

Source: Radford et al. (2019), "Language Models are Unsupervised Multitask Learners".
"""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

import grlu
from models.attention import ATTENTIONS, Attention, Past, linear
from models.layers import precise

_gelu = grlu.activation(nnx.gelu)  # Its tanh form, which is GPT-2's.


class Cache(NamedTuple):
    """What a model keeps of the tokens that it has seen, so as not to compute it again.

    Attributes:
        layers: one entry a layer; arrays with axes (sequence, position, ...).
        length: tokens seen, int32 scalar, the same for all sequences.
    """

    layers: tuple[Past, ...]
    length: jax.Array

    def repeated(self, times: int) -> "Cache":
        """Every sequence several times over, its copies next to each other."""
        layers = jax.tree.map(lambda a: jnp.repeat(a, times, axis=0), self.layers)
        return Cache(layers, self.length)


class Block(nnx.Module):
    """Attention, then a dense layer of 4 times the width; each normalised before, added after."""

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
        return self._after(x, self.attention(self.norm_1(x)))

    def cached(self, x: jax.Array, past: Past, start: jax.Array) -> tuple[jax.Array, Past]:
        attended, past = self.attention.cached(self.norm_1(x), past, start)
        return self._after(x, attended), past

    def _after(self, x: jax.Array, attended: jax.Array) -> jax.Array:
        x = x + self._dropped(attended)
        return x + self._dropped(self.down(_gelu(self.up(self.norm_2(x)))))

    def _dropped(self, x: jax.Array) -> jax.Array:
        return x if self.dropout is None else self.dropout(x)


class GPT(nnx.Module):
    """GPT-2 of any size: tokens to logits, the output tied to the embedding.

    Weights are drawn from N(0, .02²), those of the projections onto the residual stream, of which
    there are two a layer, from N(0, .02² / 2 layers), and the others of latent attention from
    N(0, 1 / fan-in); biases are zero.

    A model that is not causal sees the whole sequence, and has one row of the embedding more: the
    mask, token number `outputs`, which it reads but never predicts; and a stream of random numbers
    from which an objective may draw what to mask.

    Args:
        example_shape: shape of one example, `(tokens,)`.
        outputs: V, the size of the vocabulary.
        layers: number of blocks.
        heads: of the attention.
        width: features of a position, a multiple of `heads`.
        block: longest sequence; by default an example's length.
        attention: "multi_head", or "latent", whose cache is smaller.
        latent: with "latent", features of the latent that its cache holds; by default width / 2.
        query_latent: with "latent", features of the queries' bottleneck; by default width / 2.
        causal: whether a position sees itself and what comes before alone, or everything.
        dropout: share silenced at random in training, of the embedding and of what each half of a
            block adds, in [0, 1).
        value_head: whether there is also a dense layer that values each position.
        rngs: source of the initial weights and of the dropout's draws.

    Raises:
        UserError: on a value outside these ranges.
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
        self.dtype: Any = None  # in which the head computes; by default that of its weights

    def __call__(self, tokens: jax.Array, start: int = 0) -> jax.Array:
        """Logits, shape (B, T - start, V), of what follows each of `tokens`, shape (B, T), int.

        In a model that is not causal: of the token that stands at each place. Those before `start`
        are seen, and have no logits, which of a large vocabulary are most of the work.

        Raises:
            UserError: on more tokens than `block`, or what is no tokens.
        """
        return self._logits(self.encode(tokens)[:, start:])

    def encode(self, tokens: jax.Array) -> jax.Array:
        """Features of each position, shape (B, T, width), before the output layer."""
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
        """Logits and the value of the state after each token, (B, T - start, V) and (B, T - start).

        Raises:
            UserError: on more tokens than `block`, or a model without a value head.
        """
        if self.value is None:
            raise grlu.UserError("this gpt has no value head: set model.value_head=true")
        x = self.encode(tokens)[:, start:]
        return self._logits(x), self.value(x)[..., 0]

    def empty_cache(self, batch: int, length: int) -> Cache:
        """The cache of `batch` sequences of which nothing is seen yet, and `length` can be.

        Raises:
            UserError: on a length beyond `block`, or a model that is not causal.
        """
        if not self.causal:
            raise grlu.UserError(
                "a gpt with causal=false has no cache: each token changes what it sees everywhere"
            )
        self._require_room(length)
        pasts = tuple(layer.attention.empty(batch, length) for layer in self.layers)
        return Cache(pasts, jnp.zeros((), jnp.int32))

    def cached(self, tokens: jax.Array, cache: Cache, start: int = 0) -> tuple[jax.Array, Cache]:
        """Return the logits after each of the next `tokens`, shape (B, T), and the new cache.

        The tokens follow those in the cache: several calls give the logits of one call without
        it. Those before `start` of the new tokens are left out. Where `cache.length` is traced,
        tokens beyond the cache or the block
        cannot raise an error: their logits, and all later ones, are nan.

        Raises:
            UserError: on more tokens than the cache has positions, or the block.
        """
        room = self._room(tokens.shape[1], cache)
        positions = jax.lax.dynamic_slice_in_dim(
            self.positions[...], cache.length, tokens.shape[1], axis=0
        )
        if isinstance(cache.length, jax.core.Tracer):
            # Slices and updates are shifted back into their arrays, to wrong positions.
            fits = cache.length + tokens.shape[1] <= room
            positions = jnp.where(fits, positions, jnp.nan)
        x, pasts = self._embedded(tokens, positions), []
        for layer, past in zip(self.layers, cache.layers, strict=True):
            x, past = layer.cached(x, past, cache.length)
            pasts.append(past)
        logits = self._logits(self.norm(x)[:, start:])
        return logits, Cache(tuple(pasts), cache.length + tokens.shape[1])

    def _room(self, new: int, cache: Cache) -> int:
        """Return the number of positions of a cache, or raise if so many new tokens do not fit."""
        held = min(layer[0].shape[1] for layer in cache.layers)
        room = min(self.block, held)
        seen = 0 if isinstance(cache.length, jax.core.Tracer) else int(cache.length)
        if seen + new <= room:
            return room
        what = f"{new} tokens after the {seen} in the cache" if seen else f"{new} tokens"
        if held < self.block:
            raise grlu.UserError(
                f"{what} are more than the cache has positions, {held}: make it by "
                f"empty_cache(batch, length={seen + new}), of the model's block of {self.block}"
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
