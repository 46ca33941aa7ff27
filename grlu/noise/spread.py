"""Sharding of a rule's noisy passes over devices, along one axis of a mesh.

Under `jax.set_mesh(mesh)`, where `mesh` is a `jax.sharding.Mesh` with an axis "population", a rule
computes its samples or members in equal shards, one per device of that axis; without such a mesh
these functions are identities. Noise is never transferred: JAX's generator gives every device its
shard of the numbers that one device would sample.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from grlu.errors import UserError

POPULATION = "population"
_FREE = PartitionSpec.UNCONSTRAINED
_undivided: contextvars.ContextVar[bool] = contextvars.ContextVar("undivided", default=False)


def shares() -> int:
    """Return the number of devices that share the noisy passes."""
    if _undivided.get():
        return 1
    return dict(jax.sharding.get_abstract_mesh().shape).get(POPULATION, 1)


def spread(tree: Any) -> Any:
    """Shard arrays over the devices along their first axis, which runs over passes.

    Raises:
        UserError: if the passes do not divide evenly among the devices.
    """
    if shares() == 1:
        return tree

    def shard(x: jax.Array) -> jax.Array:
        require_even(len(x), "noisy passes")
        spec = PartitionSpec(POPULATION, *[_FREE] * (x.ndim - 1))
        return jax.lax.with_sharding_constraint(x, spec)

    return jax.tree.map(shard, tree)


def require_even(passes: int, what: str) -> None:
    """Raise UserError if the passes do not divide evenly among the devices."""
    if passes % shares():
        raise UserError(
            f"{passes} {what} cannot be sharded evenly over the {shares()} devices of the mesh "
            f"axis {POPULATION!r}: their number must be a multiple of {shares()}"
        )


def gathered(tree: Any) -> Any:
    """Replicate arrays whose first axis runs over passes on every device."""
    if shares() == 1:
        return tree

    def replicate(x: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, PartitionSpec(None, *[_FREE] * (x.ndim - 1)))

    return jax.tree.map(replicate, tree)


def total(fn: Callable[[jax.Array], jax.Array], keys: jax.Array) -> jax.Array:
    """Sum `fn(key)` over keys, one after the other on each device."""

    def add(so_far: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
        return so_far + fn(key), None

    def in_turn(keys: jax.Array) -> jax.Array:
        shape = jax.eval_shape(fn, keys[0])
        return jax.lax.scan(add, jnp.zeros(shape.shape, shape.dtype), keys)[0]

    count = shares()
    if count == 1:
        return in_turn(keys)
    require_even(len(keys), "noisy passes")
    by_device = spread(keys.reshape(count, -1))
    return jnp.sum(spread(jax.vmap(in_turn)(by_device)), axis=0)


@contextlib.contextmanager
def undivided() -> Iterator[None]:
    """Disable sharding inside the context, for a rule within the reward of another rule."""
    token = _undivided.set(True)
    try:
        yield
    finally:
        _undivided.reset(token)
