"""Unused parameters: parameters that affect no reward."""

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval

from grlu.network import Batch, Objective, Params, State


def used(objective: Objective, params: Params, rest: State, batch: Batch) -> list[bool]:
    """Return one flag per leaf of `params`: True if the rewards may depend on it."""
    closed, shape = jax.make_jaxpr(objective, return_shape=True)(params, rest, batch)
    wanted = [True] + [False] * (len(jax.tree.leaves(shape)) - 1)
    _, needed = partial_eval.dce_jaxpr(closed.jaxpr, wanted)
    return list(needed[: len(jax.tree.leaves(params))])


def used_weights(objective: Objective, params: Params, rest: State, batch: Batch) -> jax.Array:
    """Return a vector with 1 for each weight that may affect the rewards, else 0.

    The order is that of `jax.flatten_util.ravel_pytree`.
    """
    known = zip(jax.tree.leaves(params), used(objective, params, rest, batch), strict=True)
    return jnp.concatenate([jnp.full(jnp.size(leaf), float(needed)) for leaf, needed in known])
