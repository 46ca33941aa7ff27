"""Sampling of a loop's random numbers ahead of the loop, for all steps at once.

A step needs few random words, and one round of a generator costs as much for few as for many. The
words depend only on the step's number t, not on what earlier steps did to the network, so they can
be sampled for all steps together. The values are those that the step itself would sample, provided
that a generator gives each key the same words with and without `vmap` (JAX's default does).
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp

Step = Callable[[jax.Array, Any], Any]

# Values of up to this many elements are computed ahead even if they are larger than the random
# words they derive from: signs are 32 times as large as their words.
SMALL = 1024


def drawn_ahead(step: Step, count: int, carry: Any) -> Step:
    """Return a step that reads its random numbers from arrays, sampled here for `count` steps.

    Args:
        step: `(t, carry) -> carry`, as `jax.lax.fori_loop` takes it.
        count: number of steps; t runs from 0.
        carry: initial carry.

    Returns:
        The same function, for t < count. Samples with keys that depend on the carry stay in the
        step.
    """
    leaves, tree = jax.tree.flatten(carry)

    def flat(t: jax.Array, *leaves: jax.Array) -> list[jax.Array]:
        return jax.tree.leaves(step(t, jax.tree.unflatten(tree, leaves)))

    zero = jnp.zeros((), jnp.int32)
    calling = jax.make_jaxpr(flat)(zero, *leaves)

    def opened(*args: jax.Array) -> list[jax.Array]:
        env = _evaluate(calling.jaxpr.eqns, _start(calling, args))
        return [_read(v, env) for v in calling.jaxpr.outvars]

    closed = jax.make_jaxpr(opened)(zero, *leaves)
    jaxpr = closed.jaxpr
    known, sampled = _follow(jaxpr)

    def sample(t: jax.Array) -> list[jax.Array]:
        env = _evaluate(known, _start(closed, [t]))
        return [env[v] for v in sampled]

    def replay(t: jax.Array, carry: Any) -> Any:
        env = _start(closed, [t, *jax.tree.leaves(carry)])
        env.update((v, x[t]) for v, x in zip(sampled, values, strict=True))
        left = [e for e in jaxpr.eqns if not e.outvars or e.outvars[0] not in env]
        _evaluate(left, env)
        return jax.tree.unflatten(tree, [_read(v, env) for v in jaxpr.outvars])

    values = jax.vmap(sample)(jnp.arange(count, dtype=jnp.int32))
    return replay


def _follow(jaxpr: Any) -> tuple[list[Any], list[Any]]:
    """Return the equations of the first argument alone, and those of their values to precompute."""
    ready: set[Any] = {*jaxpr.constvars, jaxpr.invars[0]}
    known: list[Any] = []
    sampled: dict[Any, int] = {}
    for eqn in jaxpr.eqns:
        reads = [v for v in eqn.invars if not isinstance(v, jex.Literal)]
        if eqn.effects or not ready.issuperset(reads):
            continue
        known.append(eqn)
        ready.update(eqn.outvars)
        room = [sampled[v] for v in reads if v in sampled]
        sizes = {v: math.prod(v.aval.shape) for v in eqn.outvars}
        if eqn.primitive.name == "random_bits" or (
            room and max(sizes.values()) <= max(SMALL, *room)
        ):
            sampled.update(sizes)
    return known, list(sampled)


def _start(closed: Any, args: Iterable[Any]) -> dict[Any, Any]:
    """Return the values of a jaxpr's constants and of its first arguments."""
    env = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    return env | dict(zip(closed.jaxpr.invars, args, strict=False))


def _evaluate(eqns: Iterable[Any], env: dict[Any, Any]) -> dict[Any, Any]:
    """Add the equations' values to `env`, inlining jitted calls; return `env`."""
    for eqn in eqns:
        inputs = [_read(v, env) for v in eqn.invars]
        if eqn.primitive.name == "jit":
            body = eqn.params["jaxpr"]
            inside = _evaluate(body.jaxpr.eqns, _start(body, inputs))
            outs = [_read(v, inside) for v in body.jaxpr.outvars]
        else:
            with eqn.ctx.manager:
                outs = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
            outs = outs if eqn.primitive.multiple_results else [outs]
        env.update(zip(eqn.outvars, outs, strict=True))
    return env


def _read(atom: Any, env: dict[Any, Any]) -> Any:
    return atom.val if isinstance(atom, jex.Literal) else env[atom]
