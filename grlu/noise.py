"""Directions in which units are perturbed: zero mean, unit variance, uncorrelated.

Theory, for d perturbed units and N antithetic pairs: independent directions give an estimate whose
squared cosine to the true gradient is about N / (N + d + 1); orthogonal ones give N / d for N <= d,
and the exact gradient (up to the curvature of the reward) beyond.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from grlu.errors import UserError
from grlu.spread import spread
from grlu.tracing.rows import Rows

NOISES = ("rademacher", "gaussian", "orthogonal")


def signs(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Rademacher signs ±1, float32: one random 32-bit word gives 32 of them."""
    size = math.prod(shape)
    words = jax.random.bits(key, (-(-size // 32), 1), jnp.uint32)
    bits = (words >> jnp.arange(32, dtype=jnp.uint32)[None]) & 1
    return 1 - 2 * bits.reshape(-1)[:size].reshape(shape).astype(jnp.float32)


def hadamard(size: int) -> np.ndarray:
    """Sylvester's Hadamard matrix, shape (size, size), entries ±1; size is a power of two."""
    if size & (size - 1):
        raise UserError(
            f"orthogonal noise needs samples to be a power of two (1, 2, 4, ...), got {size}"
        )
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def _entries(rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Return entries of Sylvester's Hadamard matrix, shape (rows, *columns.shape), by computation.

    The entry of row n and column c is negative if n and c have an odd number of bits in common.
    """
    odd = jax.lax.population_count(rows.reshape(-1, *[1] * columns.ndim) & columns[None]) & 1
    return 1 - 2 * odd.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Part:
    """Some of the samples, drawn apart from the others to save memory.

    Attributes:
        number: number of the part, from 0; may be traced.
        size: number of samples in it.
    """

    number: jax.Array
    size: int


def directions(
    key: jax.Array,
    noise: str,
    samples: int,
    rows: Sequence[Rows],
    active: Sequence[jax.Array] | None = None,
    part: Part | None = None,
) -> list[jax.Array]:
    """Draw one direction per sample for every unit of every site, sharded over samples.

    Args:
        key: PRNG key.
        noise: one of `NOISES`.
        samples: N.
        rows: shape of each site, and which examples' rewards its units move.
        active: for each site the mask (of its shape) of the units to perturb; others get 0.
        part: the samples to draw; None for all. The parts of orthogonal noise are parts of one
            matrix; those of other noise are drawn from keys of their own.

    Returns:
        For each site an array (N, *shape), or (part.size, *shape), float32.
    """
    keys = [jax.random.fold_in(key, i) for i in range(len(rows))]
    count = samples
    if part is not None:
        count = part.size
        if noise != "orthogonal":
            keys = [jax.random.fold_in(k, part.number) for k in keys]
    if noise == "orthogonal":
        drawn = _orthogonal(keys, samples, rows, active, part)
    elif noise == "gaussian":
        drawn = [
            jax.random.normal(k, (count, *r.shape), jnp.float32)
            for k, r in zip(keys, rows, strict=True)
        ]
    else:
        drawn = [signs(k, (count, *r.shape)) for k, r in zip(keys, rows, strict=True)]
    drawn = spread(drawn)
    if active is None:
        return drawn
    return [d * a[None].astype(d.dtype) for d, a in zip(drawn, active, strict=True)]


def _orthogonal(
    keys: Sequence[jax.Array],
    samples: int,
    rows: Sequence[Rows],
    active: Sequence[jax.Array] | None,
    part: Part | None,
) -> list[jax.Array]:
    """Deal columns of a Hadamard matrix in turn to the units that move an example's reward.

    Two units with different columns are exactly uncorrelated over the N samples. With more units
    than columns, those that share one are uncorrelated only on average, by their random signs.
    Silent units get no column, so that the active ones share fewer.
    """
    matrix = hadamard(samples)
    wanted = (
        jnp.arange(samples) if part is None else part.number * part.size + jnp.arange(part.size)
    )
    drawn, taken = [], 0
    used = None if active is None else jnp.zeros(rows[0].batch_size if rows else 1, jnp.int32)
    for i, (key, r) in enumerate(zip(keys, rows, strict=True)):
        if active is None:
            # All groups share the columns, which are known now: but for signs, a constant.
            column = (taken + np.arange(r.units)) % samples
            taken += r.units
            chosen = jnp.asarray(
                matrix[:, column] if part is None else _entries(wanted, jnp.asarray(column))
            )
            chosen = jnp.broadcast_to(chosen[:, None], (len(wanted), r.groups, r.units))
        else:
            taking = r.split(active[i].astype(jnp.int32))
            turn = jnp.cumsum(taking, axis=1)
            start = r.of_groups(used, jnp.max)
            chosen = _entries(wanted, (start[:, None] + turn - 1) % samples)
            used = r.of_examples(start + jnp.sum(taking, axis=1))
        drawn.append(r.join(chosen) * signs(key, r.shape)[None])
    return drawn
