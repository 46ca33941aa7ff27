"""Ways to fill the credit of a network's sites: from slopes along noise, exactly, by feedback."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from grlu.network import Network
from grlu.sites import Site


def by_sample(network: Network, xi: Sequence[jax.Array], slopes: jax.Array) -> list[jax.Array]:
    """Each direction times the slope of the reward along it, sample by sample.

    Args:
        network: the traced objective.
        xi: directions, (N, *shape) for each site.
        slopes: of each example's reward in each direction, (N, B).

    Returns:
        For each site an array (N, *shape).
    """
    credits = []
    for x, info in zip(xi, network.sites, strict=True):
        if info.axis is None:
            # Every example's reward speaks for the whole site.
            weight = jnp.sum(slopes, axis=1).reshape(-1, *[1] * len(info.shape))
        else:
            shape = [1] * len(info.shape)
            shape[info.axis] = network.batch_size
            weight = slopes.reshape(-1, *shape)
        credits.append((x * weight).astype(info.dtype))
    return credits


def from_slopes(network: Network, xi: Sequence[jax.Array], slopes: jax.Array) -> list[jax.Array]:
    """The mean of `by_sample` over the samples, as one product of matrices a site.

    Returns:
        For each site an array of its shape.
    """
    credits = []
    slopes = slopes / len(slopes)
    for x, info in zip(xi, network.sites, strict=True):
        if info.axis is None:
            credit = jnp.tensordot(jnp.sum(slopes, axis=1), x, axes=1)
        else:
            examples = jnp.moveaxis(x, info.axis + 1, 1)
            credit = jnp.moveaxis(jnp.einsum("nb,nb...->b...", slopes, examples), 0, info.axis)
        credits.append(credit.astype(info.dtype))
    return credits


def exact(
    network: Network, params: Any, consts: Any, batch: Any, which: Sequence[int]
) -> list[jax.Array]:
    """The exact gradient of the mean reward at some sites, by index, at the clean pass."""

    def mean_reward(shifts: list[jax.Array]) -> jax.Array:
        given = dict(zip(which, shifts, strict=True))

        def visit(site: Site, z: jax.Array, fn: Callable) -> jax.Array:
            return fn(z + given[site.index]) if site.index in given else fn(z)

        return jnp.mean(network.run(params, consts, batch, visit)[0])

    infos = [network.sites[i] for i in which]
    return jax.grad(mean_reward)([jnp.zeros(info.shape, info.dtype) for info in infos])
