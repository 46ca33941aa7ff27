"""Noise on parameters: of full rank on any of them, of low rank on the kernels of dense layers.

A low-rank direction of a kernel, A Bᵀ / √r with A (fan_in, r) and B (units, r) standard normal, has
entries of zero mean and unit variance that are uncorrelated, so that it can stand for a full one.
It is never materialised: the layer's pre-activation moves by (x A) Bᵀ / √r, and the product of x
and the kernel stays the same for a whole population.

Source: Sarkar et al. (2025), "Evolution Strategies at the Hyperscale" (EGGROLL), arXiv:2511.16652.
"""

import collections
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp

from grlu.errors import UserError
from grlu.jaxprs import reads
from grlu.network import Network, Objective, require_floats, trace
from grlu.sites import Site


class Factors(NamedTuple):
    """A direction A Bᵀ / √r of a kernel: a is (fan_in, r), b is (units, r)."""

    a: jax.Array
    b: jax.Array


# Per parameter leaf: its direction, or None where the reward does not depend on it.
Direction = list[jax.Array | Factors | None]


class ParameterNoise:
    """Directions in the space of an objective's parameters, and the rewards along them.

    No derivative is taken anywhere.

    Args:
        objective: `(params, rest, batch) -> (rewards, aux)`.
        params: the parameters.
        rest: the model's other state.
        batch: a batch of the size that `rewards` will be asked for.
        rank: r of the kernels that are used in dense layers alone, whole; all other parameters,
            and with None these too, get full-rank noise.

    Raises:
        UserError: if the reward depends on no parameter or one is not a float; with a rank, also if
            a parameter meets the data inside a loop.
    """

    def __init__(self, objective: Objective, params: Any, rest: Any, batch: Any, rank: int | None):
        self._leaves, self._tree = jax.tree.flatten(params)
        self._run: Callable[..., tuple[jax.Array, Any]] = objective
        self._network: Network | None = None
        self._rank = rank
        self.low: frozenset[int] = frozenset()
        if rank is None:
            require_floats(params)
            closed = jax.make_jaxpr(objective)(params, rest, batch)
        else:
            self._network = trace(objective, params, rest, batch)
            closed, self.low = self._network.closed, dense_kernels(self._network)
        self._felt = _felt(closed.jaxpr, len(self._leaves))
        if self._leaves and not any(self._felt):
            raise UserError(
                "the reward depends on no trainable parameter of the model given to the estimate: "
                "it is the same whatever the model does, or not computed from the `model` and "
                "`batch` that the reward function receives"
            )

    def draw(self, key: jax.Array) -> Direction:
        """One direction, a function of the key alone."""
        drawn: Direction = []
        for i, (leaf, felt) in enumerate(zip(self._leaves, self._felt, strict=True)):
            own, shape = jax.random.fold_in(key, i), jnp.shape(leaf)
            if not felt:
                # Noise on what the reward does not depend on would only move it at random.
                drawn.append(None)
            elif i in self.low and self._rank is not None:
                sizes = zip(jax.random.split(own), shape, strict=True)
                a, b = (jax.random.normal(k, (n, self._rank), jnp.float32) for k, n in sizes)
                drawn.append(Factors(a, b))
            else:
                drawn.append(jax.random.normal(own, shape, jnp.float32))
        return drawn

    def rewards(
        self, direction: Direction, step: jax.Array | float, rest: Any, batch: Any
    ) -> jax.Array:
        """The rewards, shape (B,), of the parameters moved by `step` along a direction."""
        leaves = [
            leaf if e is None or isinstance(e, Factors) else leaf + (step * e).astype(leaf.dtype)
            for leaf, e in zip(self._leaves, direction, strict=True)
        ]
        params = jax.tree.unflatten(self._tree, leaves)
        if self._network is None:
            return self._run(params, rest, batch)[0]

        def visit(site: Site, z: jax.Array, fn: Callable) -> jax.Array:
            factors = None if site.dense is None else direction[site.dense.kernel]
            if site.dense is not None and isinstance(factors, Factors):
                moved = step * _product(site.dense.x, factors)
                z = z + moved.reshape(z.shape).astype(z.dtype)
            return fn(z)

        return self._network.run(params, rest, batch, visit)[0]

    def weighted(self, directions: Direction, weights: jax.Array) -> list[jax.Array]:
        """The sum of n directions, stacked, each times its weight: leaves like the parameters."""
        return [
            _weighted(e, weights, leaf) for e, leaf in zip(directions, self._leaves, strict=True)
        ]

    def zeros(self) -> list[jax.Array]:
        """A sum of no directions."""
        return [jnp.zeros_like(leaf) for leaf in self._leaves]

    def restore(self, leaves: Sequence[jax.Array]) -> Any:
        """Leaves as a tree like the parameters."""
        return jax.tree.unflatten(self._tree, leaves)


def dense_kernels(network: Network) -> frozenset[int]:
    """The leaves that are the kernel of dense layers and meet nothing else, anywhere."""
    jaxpr = network.closed.jaxpr
    met = collections.Counter(i for info in network.sites for i in info.site.params)
    dense = collections.Counter(
        info.site.dense.kernel for info in network.sites if info.site.dense is not None
    )
    return frozenset(
        i for i, n in dense.items() if met[i] == n and reads(jaxpr, jaxpr.invars[i]) == n
    )


def _product(x: jax.Array, factors: Factors) -> jax.Array:
    """x (A Bᵀ) / √r, shape (B, ..., units)."""
    inner = x @ (factors.a / math.sqrt(factors.a.shape[-1])).astype(x.dtype)
    return inner @ factors.b.T.astype(x.dtype)


def _weighted(e: jax.Array | Factors | None, weights: jax.Array, leaf: Any) -> jax.Array:
    if e is None:
        return jnp.zeros_like(leaf)
    if isinstance(e, Factors):
        a = e.a * (weights / math.sqrt(e.a.shape[-1]))[:, None, None]
        total = jnp.einsum("nir,nur->iu", a, e.b)
    else:
        total = jnp.tensordot(weights, e, 1)
    return total.astype(leaf.dtype)


def _felt(jaxpr: jex.Jaxpr, count: int) -> list[bool]:
    """Which of the first inputs the first output may depend on; calls are taken as a whole."""
    needed = {v for v in jaxpr.outvars[:1] if not isinstance(v, jex.Literal)}
    for eqn in reversed(jaxpr.eqns):
        if any(v in needed for v in eqn.outvars):
            needed |= {v for v in eqn.invars if not isinstance(v, jex.Literal)}
    return [v in needed for v in jaxpr.invars[:count]]
