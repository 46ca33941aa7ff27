"""Node perturbation as published: updates multiply credit by the inputs of the noisy passes."""

from typing import Any

import jax
import jax.numpy as jnp

from grlu.network import Aux, Batch, Network, Params, State, untouched
from grlu.noise.directions import Part, directions
from grlu.rules import credit
from grlu.rules.clean_inputs import known_credits, rated, slope_scale, total
from grlu.rules.rule import reseed
from grlu.tracing.program import Arrival


def from_noisy_inputs(
    rule: Any, network: Network, params: Params, rest: State, batch: Batch, key: jax.Array
) -> tuple[jax.Array, Aux, Params]:
    """Return `(rewards, aux, ascent)` of the `NodePerturbation` `rule` with inputs="noisy"."""
    infos = network.sites
    model_key = jax.random.fold_in(key, len(infos))  # The sites use the preceding numbers.
    keys = jax.random.split(model_key, rule.samples)

    def ascent(keys: jax.Array, part: Part | None) -> Any:
        xi = directions(key, rule.noise, rule.samples, [i.rows for i in infos], None, part)
        # Noise on an unused site would only change weights at random.
        xi = [x if info.moved else jnp.zeros_like(x) for x, info in zip(xi, infos, strict=True)]

        def pairs(params: Params) -> tuple[list[jax.Array], jax.Array]:
            def visit(at: Arrival) -> tuple[jax.Array, jax.Array]:
                z = jax.lax.stop_gradient(at.z)
                if rule.site == "post":
                    return at.fn(z) + at.given, at.z
                return at.fn(z + at.given), at.z

            def one(key: jax.Array, xi: list[jax.Array], sign: jax.Array) -> Any:
                given = {i: sign * rule.sigma * x for i, x in enumerate(xi)}
                state = reseed(rest, key)
                outcome = network.outcome(params, state, batch, visit, given=given)
                zs = [outcome.records[i] for i in range(len(infos))]
                return zs, network.unflatten(outcome)[0]

            both = jax.vmap(one, in_axes=(None, None, 0))
            return jax.vmap(both, in_axes=(0, 0, None))(keys, xi, jnp.array([1.0, -1.0]))

        _, vjp, rewards = jax.vjp(pairs, params, has_aux=True)
        differences = rewards[:, 0] - rewards[:, 1]
        credits = credit.by_sample(infos, xi, differences * slope_scale(rule, network))
        credits = rated(rule, network, credits)
        # Each of a pair's two inputs gets half of its credit, averaged over the N pairs.
        return vjp([jnp.stack([c, c], axis=1) / (2 * rule.samples) for c in credits])[0]

    if rule.chunk is None or rule.chunk >= rule.samples:
        gradient = ascent(keys, None)
    else:
        size, parts = rule.chunk, rule.samples // rule.chunk
        split = keys.reshape(parts, size)
        gradient = total(lambda number: ascent(split[number], Part(number, size)), parts)
    known = known_credits(rule, network, params, rest, batch)
    if any(info.penalty for info in infos):
        clean = network.clean(params, rest, batch)
        gradient = jax.tree.map(jnp.add, gradient, clean.local_update(known))
        return clean.rewards, clean.aux, gradient
    rewards, aux = network.run(params, rest, batch, untouched)
    return rewards, aux, gradient
