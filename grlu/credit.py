"""Ways to fill the credit of a network's sites: from slopes along noise, exactly, by feedback."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from grlu.errors import UserError
from grlu.network import Network, SiteInfo
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


def from_slopes(
    infos: Sequence[SiteInfo],
    xi: Sequence[jax.Array],
    slopes: jax.Array,
    ridge: float | None = None,
) -> list[jax.Array]:
    """The mean over the samples of each direction times the slope along it; or least squares.

    Args:
        infos: the sites.
        xi: directions, (N, *shape) for each site.
        slopes: of each example's reward in each direction, (N, B).
        ridge: None for the mean, else λ: the credit is then the g that minimises
            |slopes - Ξ g|² + λ d |g|², for d perturbed units of an example.

    Returns:
        For each site an array of its shape.

    Raises:
        UserError: if least squares meets a site that all examples share.
    """
    slopes = slopes / len(slopes) if ridge is None else _solved(infos, xi, slopes, ridge)
    credits = []
    for x, info in zip(xi, infos, strict=True):
        if info.axis is None:
            credit = jnp.tensordot(jnp.sum(slopes, axis=1), x, axes=1)
        else:
            examples = jnp.moveaxis(x, info.axis + 1, 1)
            credit = jnp.moveaxis(jnp.einsum("nb,nb...->b...", slopes, examples), 0, info.axis)
        credits.append(credit.astype(info.dtype))
    return credits


def slopes(
    infos: Sequence[SiteInfo], xi: Sequence[jax.Array], credits: Sequence[jax.Array]
) -> jax.Array:
    """The slopes (N, B) of the examples' rewards along directions, if these were the credits."""
    total: Any = 0.0
    for x, c, info in zip(xi, credits, infos, strict=True):
        axis = 0 if info.axis is None else info.axis
        product = jnp.moveaxis(x * c[None], axis + 1, 1)
        total = total + jnp.sum(product.reshape(*product.shape[:2], -1), axis=2)
    return total


def _solved(
    infos: Sequence[SiteInfo], xi: Sequence[jax.Array], slopes: jax.Array, ridge: float
) -> jax.Array:
    """(ΞΞᵀ + λ d)⁻¹ slopes for each example: what the directions are to be weighted with."""
    samples, batch_size = slopes.shape
    gram = jnp.zeros((batch_size, samples, samples), slopes.dtype)
    for x, info in zip(xi, infos, strict=True):
        if info.axis is None and batch_size > 1:
            raise UserError(f"{info.name}: least squares needs a unit to belong to one example")
        x = x[:, None] if info.axis is None else jnp.moveaxis(x, info.axis + 1, 1)
        flat = x.reshape(samples, batch_size, -1)
        gram = gram + jnp.einsum("nbu,mbu->bnm", flat, flat)
    # The mean squared length of a direction is the number of units that it moves.
    units = jnp.trace(gram, axis1=1, axis2=2)[:, None, None] / samples
    regularised = gram + ridge * units * jnp.eye(samples)[None]
    return jnp.linalg.solve(regularised, slopes.T[..., None])[..., 0].T


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
