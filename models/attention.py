"""Attention over sequences: multi-head, and multi-head latent; causal or not; with a cache.

A cache is explicit state, passed in and returned: what the attention keeps of the positions that it
has seen, in arrays of a fixed length that is filled from the front.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import grlu

# What one attention layer keeps of B sequences: arrays with the positions on axis 1.
Past = tuple[jax.Array, ...]


def linear(fan_in: int, units: int, std: float, rngs: nnx.Rngs, *, bias: bool = True) -> nnx.Linear:
    """A dense layer with weights drawn from N(0, std²) and zero biases."""
    init = nnx.initializers.normal(std)
    return nnx.Linear(fan_in, units, use_bias=bias, kernel_init=init, rngs=rngs)


def _seen(queries: int, keys: int, start: jax.Array) -> jax.Array:
    """Whether query t, at position `start + t`, may see position s; shape (1, 1, T, S)."""
    return (jnp.arange(keys)[None] <= start + jnp.arange(queries)[:, None])[None, None]


def _written(past: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(past, new.astype(past.dtype), start, axis=1)


class MultiHeadAttention(nnx.Module):
    """Scaled dot-product attention with several heads (Vaswani et al. 2017).

    Args:
        width: features of a position, a multiple of `heads`.
        heads: number of heads.
        causal: whether a position sees itself and what comes before alone, or everything.
        std: of the initial weights.
        std_out: of the initial weights of the projection onto the residual stream.
        rngs: source of the initial weights.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        causal: bool = True,
        std: float = 0.02,
        std_out: float = 0.02,
        rngs: nnx.Rngs,
    ):
        self.heads, self.head_width = heads, _head_width(width, heads)
        self.causal = causal
        self.project = linear(width, 3 * width, std, rngs)
        self.out = linear(width, width, std_out, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `x`, shape (B, T, width), to its like."""
        return self._joined(jax.nn.dot_product_attention(*self._split(x), is_causal=self.causal))

    def empty(self, batch: int, length: int) -> Past:
        """The keys and values of no position: two arrays of shape (B, length, heads, width)."""
        shape = (batch, length, self.heads, self.head_width)
        return jnp.zeros(shape), jnp.zeros(shape)

    def cached(self, x: jax.Array, past: Past, start: jax.Array) -> tuple[jax.Array, Past]:
        """`x`, shape (B, T, width), of the positions from `start` on, after those in `past`."""
        q, k, v = self._split(x)
        keys, values = _written(past[0], k, start), _written(past[1], v, start)
        seen = _seen(x.shape[1], keys.shape[1], start)
        y = jax.nn.dot_product_attention(q, keys, values, mask=seen)
        return self._joined(y), (keys, values)

    def _split(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        qkv = self.project(x).reshape(*x.shape[:2], 3, self.heads, self.head_width)
        return qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]

    def _joined(self, y: jax.Array) -> jax.Array:
        return self.out(y.reshape(*y.shape[:2], -1))


class LatentAttention(nnx.Module):
    """Attention whose keys and values are made of one small latent, which is all the cache holds.

    Queries pass a bottleneck of their own: width → query_latent, norm, → width; keys and values
    are width → latent, norm, → 2 width. With a cache, the map from the latent to the keys is taken
    over to the queries' side, and that to the values behind the attention: q·(W c) = (Wᵀ q)·c, so
    that the keys and values of past positions are never made again.

    Source: DeepSeek-AI (2024), "DeepSeek-V2", arXiv:2405.04434, section 2.1, without the rotary
    part: positions are those of the model's embedding.

    Args:
        width: features of a position, a multiple of `heads`.
        heads: number of heads.
        latent: features of the latent of keys and values; by default half the width.
        query_latent: features of the queries' bottleneck; by default half the width.
        causal: whether a position sees itself and what comes before alone, or everything.
        std_out: of the initial weights of the projection onto the residual stream; the others' is
            1 / √fan-in.
        rngs: source of the initial weights.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        latent: int | None = None,
        query_latent: int | None = None,
        causal: bool = True,
        std_out: float = 0.02,
        rngs: nnx.Rngs,
    ):
        self.heads, self.head_width = heads, _head_width(width, heads)
        self.causal = causal
        self.latent = max(1, width // 2) if latent is None else latent
        narrow = max(1, width // 2) if query_latent is None else query_latent
        if min(self.latent, narrow) < 1:
            raise grlu.UserError(
                f"latent and query_latent must be positive, got {latent} and {query_latent}"
            )

        # With GPT-2's .02, which the norms make up for, each step of Adam would turn the latents
        # several times as far as a layer without a norm.
        def of_unit_variance(fan_in: int, units: int, *, bias: bool = True) -> nnx.Linear:
            return linear(fan_in, units, 1 / math.sqrt(fan_in), rngs, bias=bias)

        self.query_down = of_unit_variance(width, narrow)
        self.query_norm = nnx.LayerNorm(narrow, epsilon=1e-5, rngs=rngs)
        self.query_up = of_unit_variance(narrow, width)
        self.down = of_unit_variance(width, self.latent)
        self.norm = nnx.LayerNorm(self.latent, epsilon=1e-5, rngs=rngs)
        # Without biases, which could not change sides.
        self.keys = of_unit_variance(self.latent, width, bias=False)
        self.values = of_unit_variance(self.latent, width, bias=False)
        self.out = linear(width, width, std_out, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `x`, shape (B, T, width), to its like."""
        code = self._code(x)
        k, v = self._by_head(self.keys(code)), self._by_head(self.values(code))
        y = jax.nn.dot_product_attention(self._queries(x), k, v, is_causal=self.causal)
        return self.out(y.reshape(x.shape))

    def empty(self, batch: int, length: int) -> Past:
        """The latents of no position: one array of shape (B, length, latent)."""
        return (jnp.zeros((batch, length, self.latent)),)

    def cached(self, x: jax.Array, past: Past, start: jax.Array) -> tuple[jax.Array, Past]:
        """`x`, shape (B, T, width), of the positions from `start` on, after those in `past`."""
        codes = _written(past[0], self._code(x), start)
        seen = _seen(x.shape[1], codes.shape[1], start)
        shape = (self.latent, self.heads, self.head_width)
        keys, values = (m.kernel[...].reshape(shape) for m in (self.keys, self.values))
        queries = jnp.einsum("bthd,lhd->bthl", self._queries(x), keys)
        one = codes[:, :, None]  # One head of keys, which are the values, too, serves all queries.
        scale = 1 / math.sqrt(self.head_width)
        mixed = jax.nn.dot_product_attention(queries, one, one, mask=seen, scale=scale)
        y = jnp.einsum("bthl,lhd->bthd", mixed, values)
        return self.out(y.reshape(x.shape)), (codes,)

    def _code(self, x: jax.Array) -> jax.Array:
        return self.norm(self.down(x))

    def _queries(self, x: jax.Array) -> jax.Array:
        return self._by_head(self.query_up(self.query_norm(self.query_down(x))))

    def _by_head(self, z: jax.Array) -> jax.Array:
        return z.reshape(*z.shape[:2], self.heads, self.head_width)


def _head_width(width: int, heads: int) -> int:
    if min(width, heads) < 1 or width % heads:
        raise grlu.UserError(
            f"width must be a multiple of heads, both positive; got {width} and {heads}"
        )
    return width // heads


Attention = MultiHeadAttention | LatentAttention
ATTENTIONS: dict[str, Any] = {"multi_head": MultiHeadAttention, "latent": LatentAttention}
