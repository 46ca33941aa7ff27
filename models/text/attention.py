"""Attention over sequences: multi-head and multi-head latent, causal or not, with a cache.

A cache is explicit state, passed in and returned: arrays of a fixed length, filled from the front,
that hold the keys and values (or latents) of past positions.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

import grlu

# Cache of one attention layer for B sequences: arrays with positions on axis 1.
Past = tuple[jax.Array, ...]


def linear(fan_in: int, units: int, std: float, rngs: nnx.Rngs, *, bias: bool = True) -> nnx.Linear:
    """Return a dense layer with weights sampled from N(0, std²) and zero biases."""
    init = nnx.initializers.normal(std)
    return nnx.Linear(fan_in, units, use_bias=bias, kernel_init=init, rngs=rngs)


def _causal_mask(queries: int, keys: int, start: jax.Array) -> jax.Array:
    """Return the mask (1, 1, T, S): query t at `start + t` attends to positions s ≤ start + t."""
    return (jnp.arange(keys)[None] <= start + jnp.arange(queries)[:, None])[None, None]


def _append(past: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
    """Write the entries of new positions to a cache, from position `start` on."""
    return jax.lax.dynamic_update_slice_in_dim(past, new.astype(past.dtype), start, axis=1)


class MultiHeadAttention(nnx.Module):
    """Scaled dot-product attention with several heads (Vaswani et al. 2017).

    Args:
        width: features of a position, a multiple of `heads`.
        heads: number of heads.
        causal: let a position attend only to itself and preceding positions.
        std: standard deviation of the initial weights.
        std_out: standard deviation of the initial weights of the output projection.
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
        """Map `x`, shape (B, T, width), to outputs of the same shape."""
        return self._project_heads(
            jax.nn.dot_product_attention(*self._split(x), is_causal=self.causal)
        )

    def empty(self, batch: int, length: int) -> Past:
        """Return an empty cache: keys and values, each (B, length, heads, width / heads)."""
        shape = (batch, length, self.heads, self.head_width)
        return jnp.zeros(shape), jnp.zeros(shape)

    def cached(self, x: jax.Array, past: Past, start: jax.Array) -> tuple[jax.Array, Past]:
        """Map `x`, shape (B, T, width), at positions from `start` on; return outputs and cache."""
        q, k, v = self._split(x)
        keys, values = _append(past[0], k, start), _append(past[1], v, start)
        mask = _causal_mask(x.shape[1], keys.shape[1], start)
        y = jax.nn.dot_product_attention(q, keys, values, mask=mask)
        return self._project_heads(y), (keys, values)

    def _split(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        qkv = self.project(x).reshape(*x.shape[:2], 3, self.heads, self.head_width)
        return qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]

    def _project_heads(self, y: jax.Array) -> jax.Array:
        return self.out(y.reshape(*y.shape[:2], -1))


class LatentAttention(nnx.Module):
    """Attention with keys and values computed from one small latent, so that its cache is small.

    Queries have a separate bottleneck: width → query_latent, norm, → width; keys and values are
    width → latent, norm, → 2 width. With a cache, the map from the latent to the keys is applied to
    the queries, and the map to the values after the attention: q·(W c) = (Wᵀ q)·c, so that the keys
    and values of past positions are never recomputed.

    Source: DeepSeek-AI (2024), "DeepSeek-V2", arXiv:2405.04434, section 2.1, without the rotary
    part: positions come from the model's embedding.

    Args:
        width: features of a position, a multiple of `heads`.
        heads: number of heads.
        latent: features of the latent of keys and values; by default half the width.
        query_latent: features of the queries' bottleneck; by default half the width.
        causal: let a position attend only to itself and preceding positions.
        std_out: standard deviation of the initial weights of the output projection; that of the
            others is 1 / √fan-in.
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

        # With GPT-2's .02, which the norms compensate, each step of Adam would rotate the latents
        # several times as far as those of a layer without a norm.
        def unit_variance_linear(fan_in: int, units: int, *, bias: bool = True) -> nnx.Linear:
            return linear(fan_in, units, 1 / math.sqrt(fan_in), rngs, bias=bias)

        self.query_down = unit_variance_linear(width, narrow)
        self.query_norm = nnx.LayerNorm(narrow, epsilon=1e-5, rngs=rngs)
        self.query_up = unit_variance_linear(narrow, width)
        self.down = unit_variance_linear(width, self.latent)
        self.norm = nnx.LayerNorm(self.latent, epsilon=1e-5, rngs=rngs)
        # No biases: they could not be moved to the queries.
        self.keys = unit_variance_linear(self.latent, width, bias=False)
        self.values = unit_variance_linear(self.latent, width, bias=False)
        self.out = linear(width, width, std_out, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `x`, shape (B, T, width), to outputs of the same shape."""
        code = self._code(x)
        k, v = self._by_head(self.keys(code)), self._by_head(self.values(code))
        y = jax.nn.dot_product_attention(self._queries(x), k, v, is_causal=self.causal)
        return self.out(y.reshape(x.shape))

    def empty(self, batch: int, length: int) -> Past:
        """Return an empty cache: one array of latents, shape (B, length, latent)."""
        return (jnp.zeros((batch, length, self.latent)),)

    def cached(self, x: jax.Array, past: Past, start: jax.Array) -> tuple[jax.Array, Past]:
        """Map `x`, shape (B, T, width), at positions from `start` on; return outputs and cache."""
        codes = _append(past[0], self._code(x), start)
        mask = _causal_mask(x.shape[1], codes.shape[1], start)
        shape = (self.latent, self.heads, self.head_width)
        keys, values = (m.kernel[...].reshape(shape) for m in (self.keys, self.values))
        queries = jnp.einsum("bthd,lhd->bthl", self._queries(x), keys)
        one = codes[:, :, None]  # All query heads share one head of keys, which are also values.
        scale = 1 / math.sqrt(self.head_width)
        mixed = jax.nn.dot_product_attention(queries, one, one, mask=mask, scale=scale)
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
ATTENTIONS: dict[str, Callable[..., Attention]] = {
    "multi_head": MultiHeadAttention,
    "latent": LatentAttention,
}
