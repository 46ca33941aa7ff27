"""Noise on parameters: of full rank on any of them, of low rank on the kernels of dense layers.

A low-rank direction of a kernel, A Bᵀ / √r with A (fan_in, r) and B (units, r) standard normal, has
entries of zero mean and unit variance that are uncorrelated, so that it can stand for a full one.
It is never materialised: the layer's pre-activation moves by (x A) Bᵀ / √r, and the product of x
and the kernel stays the same for a whole population.

Source: Sarkar et al. (2025), "Evolution Strategies at the Hyperscale" (EGGROLL), arXiv:2511.16652.
"""

import collections
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from grlu.errors import UserError
from grlu.tracing.jaxprs import scanned
from grlu.tracing.network import Network, Objective, require_floats, trace
from grlu.tracing.program import Arrival, Bind, Branch, Loop, Program
from grlu.tracing.unused import used
from grlu.tracing.widening import in_float32


class Factors(NamedTuple):
    """A direction A Bᵀ / √r of a kernel: a is (fan_in, r), b is (units, r).

    For the stacked kernels of layers in a loop both have a leading axis of steps.
    """

    a: jax.Array
    b: jax.Array


# Per parameter leaf: its direction, or None where the reward does not depend on it.
Direction = list[Any]

# Operations that give a parameter another type or another shape.
_RENAMED = {"convert_element_type", "reshape", "broadcast_in_dim"}


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
        UserError: if the reward depends on no parameter or one is not a float.
    """

    def __init__(self, objective: Objective, params: Any, rest: Any, batch: Any, rank: int | None):
        self._leaves, self._tree = jax.tree.flatten(params)
        self._network: Network | None = None
        self._rank = rank
        self.low: frozenset[int] = frozenset()
        require_floats(params)
        self._run = in_float32(objective, params, rest, batch)
        if rank is not None:
            self._network = trace(objective, params, rest, batch).widened()
            self.low = dense_kernels(self._network)
        self._felt = used(objective, params, rest, batch)
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
                sizes = zip(jax.random.split(own), shape[-2:], strict=True)
                a, b = (
                    jax.random.normal(k, (*shape[:-2], n, self._rank), jnp.float32)
                    for k, n in sizes
                )
                drawn.append(Factors(a, b))
            else:
                drawn.append(jax.random.normal(own, shape, jnp.float32))
        return drawn

    def rewards(
        self, direction: Direction, step: jax.Array | float, rest: Any, batch: Any
    ) -> jax.Array:
        """The rewards, shape (B,), of the parameters moved by `step` along a direction."""
        leaves = [
            leaf if e is None or isinstance(e, Factors) else leaf + step * e
            for leaf, e in zip(self._leaves, direction, strict=True)
        ]
        params = jax.tree.unflatten(self._tree, leaves)
        if self._network is None:
            return self._run(params, rest, batch)[0]
        given = {
            info.site.index: direction[info.site.dense.kernel.leaf]
            for info in self._network.sites
            if info.site.dense
            and info.site.dense.kernel.steps
            and info.site.dense.kernel.leaf in self.low
        }

        def visit(at: Arrival) -> tuple[jax.Array, None]:
            dense, z = at.site.dense, at.z
            factors = None
            if dense is not None:
                factors = at.given if dense.kernel.steps else direction[dense.kernel.leaf]
            # There are none where the kernel is not low-rank, or the reward does not depend on it.
            if isinstance(factors, Factors):
                moved = step * _product(at.x, factors)
                z = z + moved.reshape(z.shape).astype(z.dtype)
            return at.fn(z), None

        return self._network.run(params, rest, batch, visit, given=given)[0]

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
    """Return the leaves that are kernels of dense layers and are read nowhere else."""
    met = collections.Counter(i for info in network.sites for i in info.site.params)
    dense = collections.Counter[int]()
    for info in network.sites:
        layer = info.site.dense
        # A kernel of some loops but not of all is neither shared by the steps nor theirs.
        if layer is not None and layer.kernel.steps in (0, len(info.site.loops)):
            dense[layer.kernel.leaf] += 1
    program = network.program
    return frozenset(
        i for i, n in dense.items() if met[i] == n and _reads(program, program.ins[i]) == n
    )


def _reads(program: Program, variable: int) -> int:
    """How many operations read a variable, in loops too, if casts and new axes are none of them."""
    count = sum(atom == variable for atom in program.outs if isinstance(atom, int))
    for op in program.ops:
        for i, atom in enumerate(op.ins):
            if not isinstance(atom, int) or atom != variable:
                continue
            if isinstance(op, Bind) and op.eqn.primitive.name in _RENAMED:
                count += _reads(program, op.outs[0])
            elif isinstance(op, Loop) and not _is_carried(op, i):
                count += _reads(op.body, op.body.ins[i])
            elif isinstance(op, Branch) and i:
                count += sum(_reads(b, b.ins[i - 1]) for b in op.branches)
            else:
                count += 1
    return count


def _is_carried(op: Loop, position: int) -> bool:
    consts, carried = scanned(op.eqn)
    return consts <= position < consts + carried


def _product(x: Any, factors: Factors) -> jax.Array:
    """x (A Bᵀ) / √r, shape (B, ..., units)."""
    inner = x @ (factors.a / math.sqrt(factors.a.shape[-1])).astype(x.dtype)
    return inner @ factors.b.T.astype(x.dtype)


def _weighted(e: jax.Array | Factors | None, weights: jax.Array, leaf: Any) -> jax.Array:
    if e is None:
        return jnp.zeros_like(leaf)
    if isinstance(e, Factors):
        weights = weights.reshape(-1, *[1] * (e.a.ndim - 1))
        a = e.a * (weights / math.sqrt(e.a.shape[-1]))
        total = jnp.einsum("n...ir,n...ur->...iu", a, e.b)
    else:
        total = jnp.tensordot(weights, e, 1)
    return total.astype(leaf.dtype)
