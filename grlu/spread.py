"""Several devices: the noisy passes of a rule, dealt to them along one axis of a mesh.

Under `jax.set_mesh(mesh)`, where `mesh` is a `jax.sharding.Mesh` with an axis "population", a rule
computes its samples or members in equal shares, one a device of that axis; without such a mesh all
of this is the identity. The noise itself never travels: JAX's generator gives every device its part
of the numbers that one device would draw.
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
    """Among how many devices noisy passes are dealt."""
    if _undivided.get():
        return 1
    return dict(jax.sharding.get_abstract_mesh().shape).get(POPULATION, 1)


def spread(tree: Any) -> Any:
    """Arrays whose first axis is that of the passes, dealt to the devices.

    Raises:
        UserError: if there are not as many passes for every device.
    """
    if shares() == 1:
        return tree

    def dealt(x: jax.Array) -> jax.Array:
        require_even(len(x), "noisy passes")
        spec = PartitionSpec(POPULATION, *[_FREE] * (x.ndim - 1))
        return jax.lax.with_sharding_constraint(x, spec)

    return jax.tree.map(dealt, tree)


def require_even(passes: int, what: str) -> None:
    """Raises UserError if the devices can't take equal shares of so many passes."""
    if passes % shares():
        raise UserError(
            f"{passes} {what} can't be dealt evenly to the {shares()} devices of the mesh's axis "
            f"{POPULATION!r}: their number must be a multiple of {shares()}"
        )


def gathered(tree: Any) -> Any:
    """Arrays whose first axis is that of the passes, whole on every device."""
    if shares() == 1:
        return tree

    def whole(x: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, PartitionSpec(None, *[_FREE] * (x.ndim - 1)))

    return jax.tree.map(whole, tree)


def total(fn: Callable[[jax.Array], jax.Array], keys: jax.Array) -> jax.Array:
    """The sum of `fn(key)` over keys, one after the other on each device."""

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
    """Inside, rules deal out nothing: for a rule within the reward of another one."""
    token = _undivided.set(True)
    try:
        yield
    finally:
        _undivided.reset(token)
