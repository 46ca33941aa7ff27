"""Unused parameters: those on which no reward depends."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval

from grlu.tracing.network import Objective


def used(objective: Objective, params: Any, rest: Any, batch: Any) -> list[bool]:
    """Return for each leaf of `params` whether the rewards may depend on it."""
    closed, shape = jax.make_jaxpr(objective, return_shape=True)(params, rest, batch)
    wanted = [True] + [False] * (len(jax.tree.leaves(shape)) - 1)
    _, needed = partial_eval.dce_jaxpr(closed.jaxpr, wanted)
    return list(needed[: len(jax.tree.leaves(params))])


def used_weights(objective: Objective, params: Any, rest: Any, batch: Any) -> jax.Array:
    """Return 1 for each weight on which the rewards may depend and 0 for the others.

    The order is that of `jax.flatten_util.ravel_pytree`.
    """
    known = zip(jax.tree.leaves(params), used(objective, params, rest, batch), strict=True)
    return jnp.concatenate([jnp.full(jnp.size(leaf), float(needed)) for leaf, needed in known])
