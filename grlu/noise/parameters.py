"""Noise on parameters: full rank on any parameter, low rank on the kernels of dense layers.

A low-rank direction of a kernel, A Bᵀ / √r with A (fan_in, r) and B (units, r) standard normal, has
uncorrelated entries of zero mean and unit variance, so that it can replace a full-rank one. It is
never materialised: the layer's pre-activation shifts by (x A) Bᵀ / √r, and the product of x and the
kernel is the same for the whole population.

Source: Sarkar et al. (2025), "Evolution Strategies at the Hyperscale" (EGGROLL), arXiv:2511.16652.
"""

import collections
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from grlu.errors import UserError
from grlu.jaxprs.calls import scanned
from grlu.jaxprs.widening import in_float32
from grlu.network import Batch, Network, Objective, Params, State, require_floats, trace
from grlu.noise.unused import used
from grlu.tracing.program import Arrival, Bind, Branch, Loop, Program


class Factors(NamedTuple):
    """Direction A Bᵀ / √r of a kernel: a is (fan_in, r), b is (units, r).

    For the stacked kernels of layers in a loop, both have a leading axis of steps.
    """

    a: jax.Array
    b: jax.Array


# One direction per parameter leaf, or None if the reward does not depend on the leaf.
Direction = list[Any]

# Operations that only change the dtype or shape of a parameter.
_RENAMED = {"convert_element_type", "reshape", "broadcast_in_dim"}


class ParameterNoise:
    """Directions in an objective's parameter space, and the rewards along them.

    Nothing is differentiated.

    Args:
        objective: `(params, rest, batch) -> (rewards, aux)`.
        params: the parameters.
        rest: the model's other state.
        batch: a batch of the size that `rewards` will receive.
        rank: rank r of the noise on kernels that are used unsliced, in dense layers only. All other
            parameters get full-rank noise; with None, so do these kernels.

    Raises:
        UserError: if the reward depends on no parameter or one is not a float.
    """

    def __init__(
        self, objective: Objective, params: Params, rest: State, batch: Batch, rank: int | None
    ):
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
                "it is constant, or is not computed from the `model` and `batch` that the reward "
                "function receives"
            )

    def draw(self, key: jax.Array) -> Direction:
        """Sample one direction, a function of the key alone."""
        sampled: Direction = []
        for i, (leaf, felt) in enumerate(zip(self._leaves, self._felt, strict=True)):
            own, shape = jax.random.fold_in(key, i), jnp.shape(leaf)
            if not felt:
                # Noise on an unused parameter would only change it at random.
                sampled.append(None)
            elif i in self.low and self._rank is not None:
                sizes = zip(jax.random.split(own), shape[-2:], strict=True)
                a, b = (
                    jax.random.normal(k, (*shape[:-2], n, self._rank), jnp.float32)
                    for k, n in sizes
                )
                sampled.append(Factors(a, b))
            else:
                sampled.append(jax.random.normal(own, shape, jnp.float32))
        return sampled

    def rewards(
        self, direction: Direction, step: jax.Array | float, rest: State, batch: Batch
    ) -> jax.Array:
        """Return the rewards (B,) at the parameters moved by `step` along a direction."""
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
            # Full-rank noise, or a kernel that affects no reward, has no factors.
            if isinstance(factors, Factors):
                moved = step * _product(at.x, factors)
                z = z + moved.reshape(z.shape).astype(z.dtype)
            return at.fn(z), None

        return self._network.run(params, rest, batch, visit, given=given)[0]

    def weighted(self, directions: Direction, weights: jax.Array) -> list[jax.Array]:
        """Return the weighted sum of n stacked directions, as leaves like the parameters."""
        return [
            _weighted(e, weights, leaf) for e, leaf in zip(directions, self._leaves, strict=True)
        ]

    def zeros(self) -> list[jax.Array]:
        """Return an empty sum of directions."""
        return [jnp.zeros_like(leaf) for leaf in self._leaves]

    def restore(self, leaves: Sequence[jax.Array]) -> Any:
        """Unflatten leaves to a tree like the parameters."""
        return jax.tree.unflatten(self._tree, leaves)


def dense_kernels(network: Network) -> frozenset[int]:
    """Return the indices of leaves that are kernels of dense layers and are read nowhere else."""
    met = collections.Counter(i for info in network.sites for i in info.site.params)
    dense = collections.Counter[int]()
    for info in network.sites:
        layer = info.site.dense
        # If only some enclosing loops slice a kernel, it is neither shared nor one per step.
        if layer is not None and layer.kernel.steps in (0, len(info.site.loops)):
            dense[layer.kernel.leaf] += 1
    program = network.program
    return frozenset(
        i for i, n in dense.items() if met[i] == n and _reads(program, program.ins[i]) == n
    )


def _reads(program: Program, variable: int) -> int:
    """Count the operations that read a variable, in loops too, not counting casts and reshapes."""
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
    """Return x (A Bᵀ) / √r, shape (B, ..., units)."""
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
