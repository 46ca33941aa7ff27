"""Node perturbation whose updates multiply credit by the inputs of a clean pass."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from grlu.errors import UserError
from grlu.network import Aux, Batch, CleanPass, Network, Params, SiteInfo, State
from grlu.noise.directions import Part, directions
from grlu.rules import credit
from grlu.rules.learned_feedback import Prediction
from grlu.tracing.program import Arrival


def from_clean_inputs(
    rule: Any, network: Network, params: Params, rest: State, batch: Batch, key: jax.Array
) -> tuple[jax.Array, Aux, Params]:
    """Return `(rewards, aux, ascent)` of the `NodePerturbation` `rule` with inputs="clean"."""
    clean = network.clean(
        params, rest, batch, slopes=rule.site == "active" or rule.feedback is not None
    )

    def reward(shifts: Mapping[int, jax.Array]) -> jax.Array:
        given: dict[int, Any] = dict(shifts)
        if rule.site == "active":
            given = {
                i: (*clean.responses[i], clean.zs[i], shifts.get(i))
                for i in range(len(network.sites))
            }
        visit = functools.partial(_moved, rule)
        return network.run(params, rest, batch, visit, given=given, stops=clean.stops)[0]

    def slope(xi: dict[int, jax.Array]) -> jax.Array:
        up = reward({i: rule.sigma * x for i, x in xi.items()})
        if not rule.antithetic:
            return 2 * (up - clean.rewards)
        return up - reward({i: -rule.sigma * x for i, x in xi.items()})

    credits = known_credits(rule, network, params, rest, batch)
    prediction = None
    if rule.feedback is not None:
        slopes_at = [slope for _, slope in clean.responses]
        prediction = Prediction(network, params, slopes_at, rule.feedback)
    residuals = {}
    for group, group_key in _groups(rule, network, key):
        predicted = None
        if prediction is not None:
            delta = credits[prediction.output.site.index]
            predicted = [prediction.credit(info, delta) for info in group]
        estimated = _perturbed(rule, network, clean, slope, group, group_key, predicted)
        for i, (info, residual) in enumerate(zip(group, estimated, strict=True)):
            known = 0.0 if predicted is None else predicted[i]
            credits[info.site.index] = known + residual
            residuals[info.site.index] = residual
    ascent = clean.local_update(rated(rule, network, credits))
    if prediction is not None:
        delta = credits[prediction.output.site.index]
        ascent = prediction.learned(ascent, delta, residuals)
    return clean.rewards, clean.aux, ascent


def _moved(rule: Any, at: Arrival) -> tuple[jax.Array, None]:
    """Visit a site with noise that is already scaled."""
    if at.given is None:
        return at.fn(at.z), None
    if rule.site == "pre":
        return at.fn(at.z + at.given), None
    if rule.site == "post":
        return at.fn(at.z) + at.given, None
    response, slope, z, step = at.given
    moved = at.z - z if step is None else at.z - z + step
    return response + slope * moved, None


def _perturbed(
    rule: Any,
    network: Network,
    clean: CleanPass,
    slope: Callable[[dict[int, jax.Array]], jax.Array],
    group: Sequence[SiteInfo],
    key: jax.Array,
    predicted: Sequence[jax.Array] | None,
) -> list[jax.Array]:
    """Estimate the credits of a group of sites by perturbation, minus the predicted credits."""
    active: list[jax.Array] | None = None
    if rule.site == "active":
        active = [clean.responses[info.site.index][1] != 0 for info in group]

    def sample(
        key: jax.Array, active: list[jax.Array] | None, part: Part | None
    ) -> tuple[list[jax.Array], jax.Array]:
        rows = [info.rows for info in group]
        xi = directions(key, rule.noise, rule.samples, rows, active, part)
        if rule.output_noise == "softmax":
            if chosen := [i.name for i in group if i.output and i.site.chosen]:
                raise UserError(
                    f"{chosen[0]}: output_noise='softmax' needs all logits of the output layer, "
                    "the model chooses some of them: use output_noise='uniform'"
                )
            xi = [
                x * _spread(clean.zs[info.site.index])[None] if info.output else x
                for x, info in zip(xi, group, strict=True)
            ]
        slopes = jax.vmap(slope)({i.site.index: x for i, x in zip(group, xi, strict=True)})
        slopes = slopes * slope_scale(rule, network)
        if predicted is not None:
            slopes = slopes - credit.slopes(group, xi, predicted)
        return xi, slopes

    def estimate(key: jax.Array, active: list[jax.Array] | None) -> list[jax.Array]:
        size = rule.chunk or rule.samples
        if size >= rule.samples:
            return credit.from_slopes(group, *sample(key, active, None), rule.ridge)

        def add(number: jax.Array) -> list[jax.Array]:
            return credit.from_slopes(group, *sample(key, active, Part(number, size)))

        parts = rule.samples // size
        return [c / parts for c in total(add, parts)]

    steps = group[0].steps if group else ()
    if rule.layers != "steps" or math.prod(steps) == 1:
        return estimate(key, active)

    def step(number: jax.Array) -> list[jax.Array]:
        here = jnp.arange(math.prod(steps)) == number
        mask = jnp.broadcast_to(
            here.reshape(*steps, *[1] * len(group[0].site.shape)), group[0].shape
        )
        masks = [mask] if active is None else [mask & active[0]]
        return estimate(jax.random.fold_in(key, number), masks)

    return total(step, math.prod(steps))


def _groups(rule: Any, network: Network, key: jax.Array) -> list[tuple[list[SiteInfo], jax.Array]]:
    """Return the groups of sites to perturb together, each with a key."""
    # Noise on an unused site would only change weights at random.
    moved = [i for i in network.sites if i.moved and not (i.output and rule.output == "delta")]
    if rule.layers == "together":
        return [(moved, key)] if moved else []
    if rule.feedback is not None:
        moved.sort(key=lambda info: not info.output)  # The output's credit predicts the others'.
    return [([info], jax.random.fold_in(key, info.site.index)) for info in moved]


def perturbed_units(rule: Any, network: Network) -> int:
    """Return the largest number of units of an example that are perturbed at once.

    With site="active", only the active units among them are perturbed.
    """
    found = 0
    for group, _ in _groups(rule, network, jax.random.key(0)):
        steps = math.prod(group[0].steps) if rule.layers == "steps" else 1
        found = max(found, sum(info.rows.units for info in group) // steps)
    return found


def _spread(logits: jax.Array) -> jax.Array:
    """Return 2 √(p (1 - p)) for the softmax probabilities p of logits; 1 at p = 1/2."""
    p = jax.nn.softmax(logits, axis=-1)
    return 2 * jnp.sqrt(p * (1 - p))


def known_credits(
    rule: Any, network: Network, params: Params, rest: State, batch: Batch
) -> list[jax.Array]:
    """Return the credits that need no noise, zero for the other sites."""
    credits = [jnp.zeros(info.shape, info.dtype) for info in network.sites]
    known = [
        info for info in network.sites if info.penalty or (info.output and rule.output == "delta")
    ]
    if not known:
        return credits
    indices = [info.site.index for info in known]
    deltas = credit.exact(network, params, rest, batch, indices)
    factor = network.batch_size if rule.reduction == "sum" else 1
    for info, delta in zip(known, deltas, strict=True):
        # Keeps the penalty's weight relative to the perturbed credits.
        scale = rule.sigma**2 if info.penalty and not rule.scaled else 1
        credits[info.site.index] = delta * factor * scale
    return credits


def rated(rule: Any, network: Network, credits: Sequence[jax.Array]) -> list[jax.Array]:
    """Return the credits with the output layer's scaled by `output_rate`."""
    return [
        c * rule.output_rate if info.output else c
        for c, info in zip(credits, network.sites, strict=True)
    ]


def slope_scale(rule: Any, network: Network) -> Any:
    """Return the factor that turns reward differences into slopes; reduction="mean" adds 1/B."""
    scale = 1 / (2 * rule.sigma) if rule.scaled else rule.sigma / 2
    return scale / network.batch_size if rule.reduction == "mean" else scale


def total(fn: Callable[[jax.Array], Any], count: int) -> Any:
    """Return the sum of `fn(i)` over i < count, computed sequentially."""

    def add(so_far: Any, number: jax.Array) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, so_far, fn(number)), None

    shapes = jax.eval_shape(fn, jnp.zeros((), jnp.int32))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(add, zeros, jnp.arange(count))[0]
