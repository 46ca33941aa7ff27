"""Reading a jaxpr: the calls in it, and who reads a variable."""

from collections.abc import Sequence
from typing import Any

import jax.extend.core as jex

# Calls that only wrap a jaxpr: where it is kept in their parameters.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
}
# Calls with a derivative of their own, which opening would lose.
CUSTOM = {"custom_jvp_call", "custom_vjp_call"}


def is_call(eqn: Any) -> bool:
    """Whether an equation only wraps a jaxpr, which could stand in its place."""
    return eqn.primitive.name in _CALLS


def body(eqn: Any) -> tuple[jex.Jaxpr, Sequence[Any]]:
    """The jaxpr that a call wraps, and its constants."""
    wrapped = eqn.params[_CALLS[eqn.primitive.name]]
    return getattr(wrapped, "jaxpr", wrapped), getattr(wrapped, "consts", ())


def has_body(eqn: Any) -> bool:
    """Whether a jaxpr is among the parameters of an equation: of a call, a loop, a branch."""
    return any(
        isinstance(p, jex.Jaxpr | jex.ClosedJaxpr)
        for param in eqn.params.values()
        for p in (param if isinstance(param, tuple | list) else (param,))
    )


def reads(jaxpr: jex.Jaxpr, var: Any) -> int:
    """How many operations take a variable, inside calls too; handing it on is none of them."""
    count = sum(v is var for v in jaxpr.outvars)
    for eqn in jaxpr.eqns:
        for i, v in enumerate(eqn.invars):
            if v is not var:
                continue
            if not is_call(eqn):
                count += 1
                continue
            inner, _ = body(eqn)
            count += reads(inner, inner.invars[i])
            for out, handed_on in zip(eqn.outvars, inner.outvars, strict=True):
                if handed_on is inner.invars[i]:
                    count += reads(jaxpr, out) - 1
    return count
