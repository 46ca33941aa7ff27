"""Utilities for jaxprs: calls, their bodies, and evaluation of one equation."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax.extend.core as jex
import jax.numpy as jnp

# Calls that only wrap a jaxpr, with the name of the parameter that holds it.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vmap_call": "call",
    "checkpoint": "jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
}
# Calls with a custom derivative, which inlining would lose.
CUSTOM = {"custom_jvp_call", "custom_vjp_call"}


def is_call(eqn: Any) -> bool:
    """Return True if an equation only wraps a jaxpr, which could replace it."""
    return eqn.primitive.name in _CALLS


def body(eqn: Any) -> tuple[jex.Jaxpr, Sequence[Any]]:
    """Return the jaxpr that a call wraps, and its constants."""
    return opened(eqn.params[_CALLS[eqn.primitive.name]])


def opened(wrapped: Any) -> tuple[jex.Jaxpr, Sequence[Any]]:
    """Return the jaxpr and the constants of an open or closed jaxpr."""
    return getattr(wrapped, "jaxpr", wrapped), getattr(wrapped, "consts", ())


def bodies(eqn: Any) -> Iterator[jex.Jaxpr]:
    """Yield every jaxpr among the parameters of an equation."""
    for param in eqn.params.values():
        for p in param if isinstance(param, tuple | list) else (param,):
            if isinstance(p, jex.Jaxpr | jex.ClosedJaxpr):
                yield opened(p)[0]


def has_own_derivative(eqn: Any) -> bool:
    """Return True if an equation's derivative differs from that of its body.

    This includes linear solvers, whose factors are stopped: the derivative is the solution's.
    """
    if eqn.primitive.name in CUSTOM:
        return True
    return is_call(eqn) and any(
        e.primitive.name == "custom_linear_solve" for e in body(eqn)[0].eqns
    )


def stops(eqn: Any) -> bool:
    """Return True if an equation contains a `stop_gradient` that jax.grad would respect."""
    if has_own_derivative(eqn):
        return False
    return eqn.primitive.name == "stop_gradient" or any(
        stops(inner) for jaxpr in bodies(eqn) for inner in jaxpr.eqns
    )


def bind(eqn: Any, values: Sequence[Any]) -> list[Any]:
    """Evaluate one equation."""
    with eqn.ctx.manager:
        out = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
    return list(out) if eqn.primitive.multiple_results else [out]


def is_inexact(aval: Any) -> bool:
    """Return True for real and complex floating-point arrays, which can have a gradient."""
    return jnp.issubdtype(aval.dtype, jnp.inexact)


def scanned(eqn: Any) -> tuple[int, int]:
    """Return the number of constants and the number of carried values of a scan."""
    if "num_consts" in eqn.params:
        return eqn.params["num_consts"], eqn.params["num_carry"]
    # JAX 0.12 stores them as trees.
    consts, carry, _ = (len(list(part)) for part in eqn.params["ft_in"].unpack())
    return consts, carry
