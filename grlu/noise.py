"""Directions in which units are perturbed: zero mean, unit variance, uncorrelated.

Theory, for d perturbed units and N antithetic pairs: independent directions give an estimate whose
squared cosine to the true gradient is about N / (N + d + 1); orthogonal ones give N / d for N <= d,
and the exact gradient (up to the curvature of the reward) beyond.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grlu.errors import UserError
from grlu.spread import spread

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


def _entries(size: int, columns: jax.Array) -> jax.Array:
    """Columns of `hadamard(size)`, shape (size, *columns.shape), computed instead of fetched.

    The entry of row n and column c is negative if n and c have an odd number of bits in common.
    """
    row = jnp.arange(size).reshape(-1, *[1] * columns.ndim)
    odd = jax.lax.population_count(row & columns[None]) & 1
    return 1 - 2 * odd.astype(jnp.float32)


def directions(
    key: jax.Array,
    noise: str,
    samples: int,
    shapes: Sequence[tuple[int, ...]],
    axes: Sequence[int | None],
    active: Sequence[jax.Array] | None = None,
) -> list[jax.Array]:
    """Draws one direction per sample for every unit of every site, dealt to devices by samples.

    Args:
        key: PRNG key.
        noise: one of `NOISES`.
        samples: N.
        shapes: shape of each site.
        axes: each site's batch axis, None where all of it belongs to one example.
        active: for each site the mask (of its shape) of the units to perturb; others get 0.

    Returns:
        For each site an array (N, *shape), float32.
    """
    keys = [jax.random.fold_in(key, i) for i in range(len(shapes))]
    if noise == "orthogonal":
        drawn = _orthogonal(keys, samples, shapes, axes, active)
    elif noise == "gaussian":
        drawn = [
            jax.random.normal(k, (samples, *s), jnp.float32)
            for k, s in zip(keys, shapes, strict=True)
        ]
    else:
        drawn = [signs(k, (samples, *s)) for k, s in zip(keys, shapes, strict=True)]
    drawn = spread(drawn)
    if active is None:
        return drawn
    return [d * a[None].astype(d.dtype) for d, a in zip(drawn, active, strict=True)]


def _orthogonal(
    keys: Sequence[jax.Array],
    samples: int,
    shapes: Sequence[tuple[int, ...]],
    axes: Sequence[int | None],
    active: Sequence[jax.Array] | None,
) -> list[jax.Array]:
    """Columns of a Hadamard matrix, dealt to an example's units in turn, with random signs.

    Two units with different columns are exactly uncorrelated over the N samples. With more units
    than columns, those that share one are uncorrelated only on average, by their signs. Silent
    units get no column, so that the active ones share fewer.
    """
    matrix, drawn = hadamard(samples), []
    # Without silent units the columns are known now, and the directions but for signs constants.
    np_or_jnp: Any = np if active is None else jnp
    used = np_or_jnp.zeros((1,), np.int32)
    for i, (key, shape, axis) in enumerate(zip(keys, shapes, axes, strict=True)):
        mask = np.ones(shape, np.int32) if active is None else active[i].astype(np.int32)
        rows = np_or_jnp.moveaxis(mask, axis, 0) if axis is not None else mask[None]
        turn = np_or_jnp.cumsum(rows.reshape(rows.shape[0], -1), axis=1)
        used = np_or_jnp.broadcast_to(used, turn.shape[:1])
        column = (used[:, None] + turn - 1) % samples
        chosen = matrix[:, column] if active is None else _entries(samples, column)
        chosen = chosen.reshape(samples, *rows.shape)
        chosen = np_or_jnp.moveaxis(chosen, 1, axis + 1) if axis is not None else chosen[:, 0]
        drawn.append(jnp.asarray(chosen) * signs(key, shape)[None])
        used = used + turn[:, -1]
    return drawn
