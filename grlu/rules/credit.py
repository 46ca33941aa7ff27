"""Credit of a network's sites, estimated from slopes along noise or computed exactly.

Credits and directions have the shapes of the sites' values and at least float32 precision. If the
elements of a site affect the rewards of several examples, the slopes of these examples are summed.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from grlu.errors import UserError
from grlu.network import Batch, Network, Params, SiteInfo, State
from grlu.tracing.program import Arrival


def by_sample(
    infos: Sequence[SiteInfo], xi: Sequence[jax.Array], slopes: jax.Array
) -> list[jax.Array]:
    """Return each sample's direction times the slope of the reward along it.

    Args:
        infos: the sites.
        xi: directions, (N, *shape) for each site.
        slopes: slope of each example's reward in each direction, (N, B).

    Returns:
        An array (N, *shape) for each site.
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
    """Return the mean over samples of direction times slope, or the least-squares credit.

    Args:
        infos: the sites.
        xi: directions, (N, *shape) for each site.
        slopes: slope of each example's reward in each direction, (N, B).
        ridge: None for the mean, else λ: the credit is then the g that minimises
            |slopes - Ξ g|² + λ d |g|², for d perturbed units per example.

    Returns:
        An array of the site's shape for each site.

    Raises:
        UserError: if least squares is used on a site whose units affect several examples' rewards.
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
    """Return the slopes (N, B) of the examples' rewards along directions, given the credits.

    Each unit of the sites must affect exactly one example's reward.
    """
    total: Any = 0.0
    for x, c, info in zip(xi, credits, infos, strict=True):
        total = total + jnp.sum(info.rows.split(x * c[None]), axis=2)
    return total


def _solved(
    infos: Sequence[SiteInfo], xi: Sequence[jax.Array], slopes: jax.Array, ridge: float
) -> jax.Array:
    """Return (ΞΞᵀ + λ d)⁻¹ slopes for each example, (N, B): the weights of the directions."""
    samples, batch_size = slopes.shape
    gram = jnp.zeros((batch_size, samples, samples), slopes.dtype)
    for x, info in zip(xi, infos, strict=True):
        if not info.rows.each:
            raise UserError(
                f"{info.name}: least squares needs every unit to affect the reward of one example, "
                "the units of this layer affect several; use ridge=None"
            )
        flat = info.rows.split(x)
        gram = gram + jnp.einsum("nbu,mbu->bnm", flat, flat)
    # The mean squared length of a direction is the number of units that it perturbs.
    units = jnp.trace(gram, axis1=1, axis2=2)[:, None, None] / samples
    regularised = gram + ridge * units * jnp.eye(samples)[None]
    return jnp.linalg.solve(regularised, slopes.T[..., None])[..., 0].T


def exact(
    network: Network, params: Params, consts: State, batch: Batch, which: Sequence[int]
) -> list[jax.Array]:
    """Return the exact gradient of the mean reward at the sites with the indices `which`.

    Raises:
        UserError: if a while loop lies between a site and the reward.
    """

    def mean_reward(shifts: list[jax.Array]) -> jax.Array:
        given = dict(zip(which, shifts, strict=True))

        def visit(at: Arrival) -> tuple[jax.Array, None]:
            return at.fn(at.z if at.given is None else at.z + at.given), None

        return jnp.mean(network.run(params, consts, batch, visit, given=given)[0])

    infos = [network.sites[i] for i in which]
    try:
        return jax.grad(mean_reward)([jnp.zeros(info.shape, info.dtype) for info in infos])
    except ValueError as error:
        if "Reverse-mode" not in str(error):
            raise
        raise UserError(
            "exact credit needs the reward's reverse-mode derivative, which a while loop between a "
            "layer and the reward does not have: use jax.lax.scan, or grlu.NodePerturbation with "
            "output='perturb'"
        ) from error
