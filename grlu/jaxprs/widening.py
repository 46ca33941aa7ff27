"""Evaluation of bfloat16 and float16 programs in float32.

Noise of .01 on a bfloat16 value near 1 is three of its steps, and vanishes in the next rounding.
Rules therefore run a low-precision network in float32: each value that the model rounds to 16 bits
keeps 32 bits. The result equals the model up to the model's own rounding.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp

from grlu.jaxprs.calls import CUSTOM, bind, bodies, body, is_call, opened, scanned, stops

LOW = (jnp.bfloat16, jnp.float16)
# Parameters of primitives that set the dtype of the result.
_TYPES = ("new_dtype", "preferred_element_type", "dtype")


def is_low(value: Any) -> bool:
    """Return True if a value or aval is bfloat16 or float16."""
    return getattr(value, "dtype", None) in LOW


def widened(value: Any) -> Any:
    """Cast a low-precision value to float32; return any other value unchanged."""
    return jnp.asarray(value, jnp.float32) if is_low(value) else value


def holds_low(jaxpr: jex.Jaxpr) -> bool:
    """Return True if a jaxpr computes anything in low precision."""
    return any(
        any(is_low(v.aval) for v in [*eqn.invars, *eqn.outvars])
        or any(holds_low(inner) for inner in bodies(eqn))
        for eqn in jaxpr.eqns
    )


def in_float32(objective: Callable[..., Any], *args: Any) -> Callable[..., Any]:
    """Return a function that runs 16-bit operations in float32.

    Args:
        objective: the function.
        args: example arguments, as pytrees; in place of their bfloat16 or float16 leaves, the
            result also accepts float32 ones.
    """
    closed, shape = jax.make_jaxpr(objective, return_shape=True)(*args)
    if not holds_low(closed.jaxpr) and not any(is_low(v.aval) for v in closed.jaxpr.invars):
        return objective

    def wide(*args: Any) -> Any:
        outs = run_wide(closed.jaxpr, closed.consts, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shape), outs)

    return wide


def bind_wide(eqn: Any, values: Sequence[Any]) -> list[Any]:
    """Evaluate one equation on widened values; return widened results.

    The body of a kernel or a reduction runs in its own dtypes, with inputs rounded to them.
    """
    if is_call(eqn) and eqn.primitive.name not in CUSTOM:
        jaxpr, consts = body(eqn)
        return run_wide(jaxpr, consts, values)
    outside = any(is_low(v.aval) for v in [*eqn.invars, *eqn.outvars])
    if eqn.primitive.name in _NESTED and (outside or any(map(holds_low, bodies(eqn)))):
        return _NESTED[eqn.primitive.name](eqn, values)
    if not outside:
        return bind(eqn, values)
    if eqn.primitive.name in CUSTOM:
        return _custom(eqn, values)
    if eqn.primitive.name == "reduce_precision":
        return list(values)
    if eqn.primitive.name == "bitcast_convert_type" or any(True for _ in bodies(eqn)):
        return [widened(out) for out in bind(eqn, _narrowed(eqn, values))]
    types = {k: jnp.dtype(jnp.float32) for k in _TYPES if eqn.params.get(k) in LOW}
    with eqn.ctx.manager:
        out = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params | types))
    return list(out) if eqn.primitive.multiple_results else [out]


def run_wide(jaxpr: jex.Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """Evaluate a jaxpr on widened values; return widened results."""
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, map(widened, consts), strict=True))
    env.update(zip(jaxpr.invars, map(widened, args), strict=True))

    def read(atom: Any) -> Any:
        return widened(atom.val) if isinstance(atom, jex.Literal) else env[atom]

    for eqn in jaxpr.eqns:
        env.update(zip(eqn.outvars, bind_wide(eqn, [read(v) for v in eqn.invars]), strict=True))
    return [read(v) for v in jaxpr.outvars]


def _narrowed(eqn: Any, values: Sequence[Any]) -> list[Any]:
    return [
        jnp.asarray(v, a.aval.dtype) if is_low(a.aval) else v
        for v, a in zip(values, eqn.invars, strict=True)
    ]


def _scan(eqn: Any, values: Sequence[Any]) -> list[Any]:
    jaxpr, consts = opened(eqn.params["jaxpr"])
    first, carried = scanned(eqn)
    last = first + carried

    def step(carry: list[Any], xs: list[Any]) -> tuple[list[Any], list[Any]]:
        outs = run_wide(jaxpr, consts, [*values[:first], *carry, *xs])
        after = [_like(o, c) for o, c in zip(outs[:carried], carry, strict=True)]
        return after, outs[carried:]

    init, xs = [jnp.asarray(v) for v in values[first:last]], list(values[last:])
    options = {k: eqn.params[k] for k in ("length", "reverse", "unroll")}
    carry, ys = jax.lax.scan(step, init, xs, **options)
    return [*carry, *ys]


def _cond(eqn: Any, values: Sequence[Any]) -> list[Any]:
    branches = [functools.partial(run_wide, *opened(branch)) for branch in eqn.params["branches"]]
    return jax.lax.switch(values[0], branches, list(values[1:]))


def _while(eqn: Any, values: Sequence[Any]) -> list[Any]:
    tested, kept = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    cond, body = opened(eqn.params["cond_jaxpr"]), opened(eqn.params["body_jaxpr"])
    first, rest = values[:tested], values[tested : tested + kept]

    def step(carry: list[Any]) -> list[Any]:
        after = run_wide(*body, [*rest, *carry])
        return [_like(a, c) for a, c in zip(after, carry, strict=True)]

    init = [jnp.asarray(v) for v in values[tested + kept :]]
    return jax.lax.while_loop(lambda carry: run_wide(*cond, [*first, *carry])[0], step, init)


def _like(value: Any, carry: jax.Array) -> jax.Array:
    """Cast a value to the carry's dtype, which weak types may have changed."""
    value = jnp.asarray(value)
    return value if value.dtype == carry.dtype else value.astype(carry.dtype)


_NESTED = {"scan": _scan, "cond": _cond, "while": _while}


def _custom(eqn: Any, values: Sequence[Any]) -> list[Any]:
    """Evaluate a call with a custom derivative: its body in float32, its derivative as declared."""
    jaxpr, consts = body(eqn)

    def wide(*values: Any) -> list[Any]:
        return run_wide(jaxpr, consts, values)

    def declared(*values: Any) -> list[Any]:
        return [widened(out) for out in bind(eqn, _narrowed(eqn, values))]

    if eqn.primitive.name == "custom_jvp_call":
        forward = jax.custom_jvp(wide)
        forward.defjvp(
            lambda primals, tangents: (wide(*primals), jax.jvp(declared, primals, tangents)[1])
        )
        return forward(*values)
    both = jax.custom_vjp(wide)
    both.defvjp(
        lambda *primals: (wide(*primals), primals),
        lambda primals, cotangents: jax.vjp(declared, *primals)[1](list(cotangents)),
    )
    return both(*values)


def must_open(eqn: Any) -> bool:
    """Return True if a loop or branch must be opened even without sites.

    This is so if it contains a `stop_gradient`, which noise must not pass, or low precision, in
    which noise would be lost.
    """
    return stops(eqn) or any(holds_low(jaxpr) for jaxpr in bodies(eqn))
