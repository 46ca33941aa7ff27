"""Perturbation directions of units: zero mean, unit variance, uncorrelated.

For d perturbed units and N antithetic pairs, independent directions give an estimate whose squared
cosine with the true gradient is about N / (N + d + 1). Orthogonal directions give N / d for N <= d
and the exact gradient (up to the curvature of the reward) beyond.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from grlu.errors import UserError
from grlu.influence.rows import Rows
from grlu.noise.spread import spread

NOISES = ("rademacher", "gaussian", "orthogonal")


def signs(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Sample Rademacher signs ±1, float32: one random 32-bit word gives 32 signs."""
    size = math.prod(shape)
    words = jax.random.bits(key, (-(-size // 32), 1), jnp.uint32)
    bits = (words >> jnp.arange(32, dtype=jnp.uint32)[None]) & 1
    return 1 - 2 * bits.reshape(-1)[:size].reshape(shape).astype(jnp.float32)


@functools.lru_cache(16)
def hadamard(size: int) -> np.ndarray:
    """Return a Hadamard matrix, shape (size, size), entries ±1, with orthogonal columns.

    Sizes are 1, 2 and 2^i (q + 1) for i >= 0 and q + 1 = 2 or a prime q = 3 mod 4: Sylvester's
    doubling of Paley's first construction.

    Raises:
        UserError: if size is not one of these.
    """
    odd = _seed(size)
    if odd is None:
        raise UserError(
            "orthogonal noise needs a Hadamard matrix: samples must be 1, 2, 4, 8, 12, 16, 20, 24, "
            f"32, ... (a power of two is always right), got {size}"
        )
    matrix = _paley(odd) if odd > 1 else np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def covering(units: int) -> int:
    """Return the smallest size of a Hadamard matrix with a column for each of `units` units.

    >>> [covering(n) for n in (1, 3, 5, 9, 60, 210)]
    [1, 4, 8, 12, 60, 212]
    """
    return next(size for size in itertools.count(max(1, units)) if _seed(size) is not None)


def _seed(size: int) -> int | None:
    """Return the size of the matrix that doubles to `size`: 1 or Paley's; None if none does."""
    if size & (size - 1) == 0:
        return 1
    while size % 2 == 0:
        q = size - 1
        if q % 4 == 3 and all(q % n for n in range(2, math.isqrt(q) + 1)):
            return size
        size //= 2
    return None


def _paley(size: int) -> np.ndarray:
    """Return Paley's Hadamard matrix I + S, with the quadratic characters of differences in S."""
    q = size - 1
    character = np.full(q, -1.0, np.float32)
    character[np.arange(1, q) ** 2 % q] = 1
    character[0] = 0
    skew = np.ones((size, size), np.float32)
    skew[0, 0], skew[1:, 0] = 0, -1
    skew[1:, 1:] = character[(np.arange(q)[None] - np.arange(q)[:, None]) % q]
    return skew + np.eye(size, dtype=np.float32)


def _entries(size: int, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Return entries of the Hadamard matrix of a size, shape (rows, *columns.shape)."""
    rows = rows.reshape(-1, *[1] * columns.ndim)
    if size & (size - 1):
        return jnp.asarray(hadamard(size))[rows, columns[None]]
    # Sylvester's entry of row n and column c is negative if an odd number of bits is in both.
    odd = jax.lax.population_count(rows & columns[None]) & 1
    return 1 - 2 * odd.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Part:
    """Subset of the samples, generated separately to save memory.

    Attributes:
        number: index of the part, from 0; may be traced.
        size: number of samples in the part.
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
    """Sample one direction per sample for every unit of every site, sharded over samples.

    Args:
        key: PRNG key.
        noise: one of `NOISES`.
        samples: N.
        rows: shape of each site, and the examples whose rewards its units affect.
        active: for each site the mask (of its shape) of the units to perturb; others get 0.
        part: the samples to generate; None for all. Parts of orthogonal noise are parts of one
            matrix; other noise has a separate key for each part.

    Returns:
        An array (N, *shape) for each site, or (part.size, *shape), float32.
    """
    keys = [jax.random.fold_in(key, i) for i in range(len(rows))]
    count = samples
    if part is not None:
        count = part.size
        if noise != "orthogonal":
            keys = [jax.random.fold_in(k, part.number) for k in keys]
    if noise == "orthogonal":
        sampled = _orthogonal(keys, samples, rows, active, part)
    elif noise == "gaussian":
        sampled = [
            jax.random.normal(k, (count, *r.shape), jnp.float32)
            for k, r in zip(keys, rows, strict=True)
        ]
    else:
        sampled = [signs(k, (count, *r.shape)) for k, r in zip(keys, rows, strict=True)]
    sampled = spread(sampled)
    if active is None:
        return sampled
    return [d * a[None].astype(d.dtype) for d, a in zip(sampled, active, strict=True)]


def _orthogonal(
    keys: Sequence[jax.Array],
    samples: int,
    rows: Sequence[Rows],
    active: Sequence[jax.Array] | None,
    part: Part | None,
) -> list[jax.Array]:
    """Assign columns of a Hadamard matrix in turn to the units that affect an example's reward.

    Two units with different columns are exactly uncorrelated over the N samples. With more units
    than columns, units that share a column are uncorrelated only on average, by their random signs.
    Silent units get no column, so that fewer active units share one.
    """
    matrix = hadamard(samples)
    wanted = (
        jnp.arange(samples) if part is None else part.number * part.size + jnp.arange(part.size)
    )
    sampled, taken = [], 0
    used = None if active is None else jnp.zeros(rows[0].batch_size if rows else 1, jnp.int32)
    for i, (key, r) in enumerate(zip(keys, rows, strict=True)):
        if active is None:
            # All groups share the columns, known at trace time: only the signs vary.
            column = (taken + np.arange(r.units)) % samples
            taken += r.units
            chosen = jnp.asarray(
                matrix[:, column]
                if part is None
                else _entries(samples, wanted, jnp.asarray(column))
            )
            chosen = jnp.broadcast_to(chosen[:, None], (len(wanted), r.groups, r.units))
        else:
            taking = r.split(active[i].astype(jnp.int32))
            turn = jnp.cumsum(taking, axis=1)
            start = r.of_groups(used, jnp.max)
            chosen = _entries(samples, wanted, (start[:, None] + turn - 1) % samples)
            used = r.of_examples(start + jnp.sum(taking, axis=1))
        sampled.append(r.join(chosen) * signs(key, r.shape)[None])
    return sampled
