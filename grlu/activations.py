"""Activations marked for learning rules, and the top-k winner-take-all layer."""

import functools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from grlu.errors import UserError
from grlu.tracing.recognition import ACTIVATION


def activation(fn: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Mark a function of `(pre_activation, *constants)` as one activation.

    A rule that perturbs after the activation, or perturbs only the active units, must know where
    an activation begins and ends. Rules recognise elementwise calls such as `nnx.relu` and
    `jnp.tanh`; mark all others: activations of several operations (gelu) or that compare units
    (top-k). Marking does not change any value.

    >>> import grlu, jax.numpy as jnp
    >>> swish = grlu.activation(lambda z: z / (1 + jnp.exp(-z)))
    >>> print(swish(jnp.array([0.0, 1.0])))
    [0.        0.7310586]
    """

    def grlu_activation(*args: Any) -> jax.Array:
        return fn(*args)

    assert grlu_activation.__name__ == ACTIVATION
    return functools.wraps(fn, assigned=("__doc__",))(jax.jit(grlu_activation))


def kth_largest(x: jax.Array, k: int) -> jax.Array:
    """Return the exact k-th largest value along the last axis, shape (..., 1).

    Bisects the integer representation of the floats, which has the same order: on a CPU 16 times
    faster than `lax.top_k` for rows of 256.
    """
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    ordered = jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)
    if x.shape[-1] <= 8:
        # XLA would inline each short sum into the next one: 32 of them never finish compiling.
        found = jnp.sort(ordered)[..., x.shape[-1] - k :][..., :1]
    elif x.size == x.shape[-1]:
        found = _kth_of_row(ordered.reshape(-1), k).reshape(*x.shape[:-1], 1)
    else:
        found = _kth_of_rows(ordered, k)
    bits = jnp.where(found < 0, found ^ jnp.int32(0x7FFFFFFF), found)
    return jax.lax.bitcast_convert_type(bits, jnp.float32).astype(x.dtype)


def _kth_of_rows(x: jax.Array, k: int) -> jax.Array:
    """Return the k-th largest integers (..., 1), bit by bit from the highest, with 32 counts."""
    threshold = jnp.full((*x.shape[:-1], 1), jnp.iinfo(jnp.int32).min, jnp.int32)
    for bit in range(31, -1, -1):
        # XOR and not OR: the sign bit of the smallest integer is set, and clearing it ascends.
        raised = threshold ^ jnp.int32(-(2**31) if bit == 31 else 1 << bit)
        enough = jnp.sum(x >= raised, axis=-1, keepdims=True) >= k
        threshold = jnp.where(enough, raised, threshold)
    return threshold


def _kth_of_row(x: jax.Array, k: int) -> jax.Array:
    """Return the k-th largest integer of one row (n,), with about half as many counts.

    Halves the interval between the smallest and the largest value until it separates the k largest
    from the rest or, if there is a tie at the threshold, has shrunk to the tied value.
    """

    @jax.custom_batching.custom_vmap
    def kth(x: jax.Array) -> jax.Array:
        def searching(state: tuple[jax.Array, ...]) -> jax.Array:
            low, high, count = state
            return (count != k) & (low < high)

        def halve(state: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
            low, high, count = state
            # Round up so that the interval shrinks; a plain sum could overflow.
            middle = (low | high) - ((low ^ high) >> 1)
            above = jnp.sum(x >= middle, dtype=jnp.int32)
            enough = above >= k
            return (
                jnp.where(enough, middle, low),
                jnp.where(enough, high, middle - 1),
                jnp.where(enough, above, count),
            )

        start = (jnp.min(x), jnp.max(x), jnp.int32(x.size))
        low, _, _ = jax.lax.while_loop(searching, halve, start)
        return jnp.min(jnp.where(x >= low, x, jnp.iinfo(jnp.int32).max))

    # The rows of a batch would wait for the slowest one, so they go bit by bit.
    @kth.def_vmap
    def batched(size: int, is_batched: list[bool], x: jax.Array) -> tuple[jax.Array, bool]:
        return _kth_of_rows(x, k)[:, 0], True

    return kth(x)


class TopK(nnx.Module):
    """Winner-take-all layer: keeps the k largest units of the last axis and silences the others.

    With `mode="gumbel"` the winners are sampled in training: they are the k largest of
    z + Gumbel(0, 1), which samples k units without replacement with probabilities softmax(z) (Kool
    et al. 2019, arXiv:1903.06059). In evaluation (`model.eval()`), and with `mode="hard"`, they are
    the k largest of z. All units tied at the threshold win.

    The Gumbel noise comes from the module's PRNG stream, which a learning rule reseeds: both halves
    of an antithetic pair see the same noise.

    Args:
        fraction: fraction of units that win, in (0, 1]; k = max(1, floor(fraction * units)),
            computed from the fraction as a decimal number: 0.57 of 100 units is 57.
        mode: "gumbel" or "hard".
        rngs: source of the Gumbel noise.

    >>> import grlu, jax.numpy as jnp
    >>> print(grlu.TopK(0.5, mode="hard")(jnp.array([[3.0, 1.0, 2.0, 0.0]])))
    [[3. 0. 2. 0.]]
    """

    def __init__(
        self,
        fraction: float,
        mode: Literal["gumbel", "hard"] = "gumbel",
        *,
        rngs: nnx.Rngs | None = None,
    ):
        if not 0 < fraction <= 1:
            raise UserError(f"TopK's fraction of winners must lie in (0, 1], got {fraction}")
        if mode not in ("gumbel", "hard"):
            raise UserError(f"TopK's mode must be 'gumbel' or 'hard', got {mode!r}")
        self.fraction = fraction
        self.mode = mode
        self.deterministic = False
        self.rngs = (rngs or nnx.Rngs(0)).fork() if mode == "gumbel" else None

    def __call__(self, z: jax.Array) -> jax.Array:
        """Silence the losers of `z`, shape (..., units)."""
        k = winner_count(self.fraction, z.shape[-1])
        if self.rngs is None or self.deterministic:
            return _winners(z, jnp.zeros((), z.dtype), k)
        return _winners(z, jax.random.gumbel(self.rngs(), z.shape, z.dtype), k)


def winner_count(fraction: float, units: int) -> int:
    """Return the number k of units that win.

    >>> [winner_count(fraction, 100) for fraction in (0.57, 0.29, 0.001)], winner_count(1 / 3, 9)
    ([57, 29, 1], 3)
    """
    # In floating point, .57 * 100 is less than 57 and 15 / 22 * 22 is less than 15.
    return max(1, math.floor(round(Fraction(str(fraction)) * units, 9)))


def _winners(z: jax.Array, noise: jax.Array, k: int) -> jax.Array:
    @activation
    def select(z: jax.Array, noise: jax.Array) -> jax.Array:
        score = jax.lax.stop_gradient(z) + noise
        return z * (score >= kth_largest(score, k)).astype(z.dtype)

    return select(z, noise)
