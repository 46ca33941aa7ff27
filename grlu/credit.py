"""Credit of a network's sites: from slopes along noise, or exactly.

Credits and directions are arrays like the sites' values, float32 at least. For a site whose
elements move the rewards of several examples, the slopes of these are summed.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from grlu.errors import UserError
from grlu.tracing.network import Network, SiteInfo
from grlu.tracing.program import Arrival


def by_sample(
    infos: Sequence[SiteInfo], xi: Sequence[jax.Array], slopes: jax.Array
) -> list[jax.Array]:
    """Return each direction times the slope of the reward along it, sample by sample.

    Args:
        infos: the sites.
        xi: directions, (N, *shape) for each site.
        slopes: slope of each example's reward in each direction, (N, B).

    Returns:
        For each site an array (N, *shape).
    """
    return [
        info.rows.join(info.rows.split(x) * info.rows.of_groups(slopes)[:, :, None]).astype(
            info.dtype
        )
        for x, info in zip(xi, infos, strict=True)
    ]


def from_slopes(
    infos: Sequence[SiteInfo],
    xi: Sequence[jax.Array],
    slopes: jax.Array,
    ridge: float | None = None,
) -> list[jax.Array]:
    """Return the mean over the samples of each direction times its slope; or least squares.

    Args:
        infos: the sites.
        xi: directions, (N, *shape) for each site.
        slopes: slope of each example's reward in each direction, (N, B).
        ridge: None for the mean, else λ: the credit is then the g that minimises
            |slopes - Ξ g|² + λ d |g|², for d perturbed units of an example.

    Returns:
        For each site an array of its shape.

    Raises:
        UserError: if least squares meets a site whose units move several examples' rewards.
    """
    slopes = slopes / len(slopes) if ridge is None else _solved(infos, xi, slopes, ridge)
    credits = []
    for x, info in zip(xi, infos, strict=True):
        rows, weights = info.rows, info.rows.of_groups(slopes)
        if rows.groups == 1:
            total = jnp.tensordot(weights[:, 0], x, axes=1)
        else:
            total = rows.join(jnp.einsum("ng,ngu->gu", weights, rows.split(x)))
        credits.append(total.astype(info.dtype))
    return credits


def slopes(
    infos: Sequence[SiteInfo], xi: Sequence[jax.Array], credits: Sequence[jax.Array]
) -> jax.Array:
    """Return the slopes (N, B) of the examples' rewards along directions, given their credits.

    The sites must be ones whose units move one example's reward each.
    """
    total: Any = 0.0
    for x, c, info in zip(xi, credits, infos, strict=True):
        total = total + jnp.sum(info.rows.split(x * c[None]), axis=2)
    return total


def _solved(
    infos: Sequence[SiteInfo], xi: Sequence[jax.Array], slopes: jax.Array, ridge: float
) -> jax.Array:
    """(ΞΞᵀ + λ d)⁻¹ slopes for each example: the weights of the directions."""
    samples, batch_size = slopes.shape
    gram = jnp.zeros((batch_size, samples, samples), slopes.dtype)
    for x, info in zip(xi, infos, strict=True):
        if not info.rows.each:
            raise UserError(
                f"{info.name}: least squares needs every unit to move the reward of one example, "
                "those of this layer move several; use ridge=None"
            )
        flat = info.rows.split(x)
        gram = gram + jnp.einsum("nbu,mbu->bnm", flat, flat)
    # The mean squared length of a direction is the number of units that it moves.
    units = jnp.trace(gram, axis1=1, axis2=2)[:, None, None] / samples
    regularised = gram + ridge * units * jnp.eye(samples)[None]
    return jnp.linalg.solve(regularised, slopes.T[..., None])[..., 0].T


def exact(
    network: Network, params: Any, consts: Any, batch: Any, which: Sequence[int]
) -> list[jax.Array]:
    """Return the exact gradient of the mean reward at some sites, by index, at the clean pass."""

    def mean_reward(shifts: list[jax.Array]) -> jax.Array:
        given = dict(zip(which, shifts, strict=True))

        def visit(at: Arrival) -> tuple[jax.Array, None]:
            return at.fn(at.z if at.given is None else at.z + at.given), None

        return jnp.mean(network.run(params, consts, batch, visit, given=given)[0])

    infos = [network.sites[i] for i in which]
    return jax.grad(mean_reward)([jnp.zeros(info.shape, info.dtype) for info in infos])
