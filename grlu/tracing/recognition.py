"""Recognition of layers: which equations are a product, a bias, an activation."""

import dataclasses
import enum
from collections.abc import Sequence
from typing import Any

from grlu.tracing.jaxprs import body, is_call, is_inexact

# The name that `grlu.activation` gives to the call that it wraps.
ACTIVATION = "grlu_activation"

_SHAPE_OPS = {"reshape", "squeeze", "broadcast_in_dim", "transpose", "convert_element_type", "copy"}
_NONLINEAR = {"tanh", "logistic", "max", "min", "exp", "erf", "sin", "cos", "clamp"}
ELEMENTWISE = (
    _NONLINEAR
    | {"add", "sub", "mul", "div", "neg", "abs", "sign", "select_n", "log", "log1p", "expm1"}
    | {"integer_pow", "pow", "sqrt", "rsqrt", "square", "gt", "lt", "ge", "le", "eq", "ne", "and"}
    | {"or", "not", "is_finite", "convert_element_type", "copy", "erfc", "tan", "cbrt", "exp2"}
    | {"asin", "acos", "atan", "atan2", "sinh", "cosh", "asinh", "acosh", "atanh", "erf_inv"}
    | {"floor", "ceil", "round", "rem", "xor", "nextafter", "lgamma", "digamma", "add_any"}
    | {"shift_left", "shift_right_logical", "shift_right_arithmetic", "population_count", "clz"}
    | {"real", "imag", "complex", "conj", "bessel_i0e", "bessel_i1e", "igamma", "igammac"}
    | {
        "reduce_precision",
        "log2",
        "one_minus_square",
        "polygamma",
        "zeta",
        "regularized_incomplete_beta",
    }
)


class Kind(enum.Enum):
    """What a value depends on.

    CONST: neither parameters nor batch (literals, masks, PRNG keys, running statistics).
    PARAM: parameters but not the batch (`exp(log_sigma)`, a normalised weight).
    DATA: the batch, or a site.
    """

    CONST = enum.auto()
    PARAM = enum.auto()
    DATA = enum.auto()


@dataclasses.dataclass(frozen=True)
class Whole:
    """A parameter leaf as it is, perhaps cast, or with axes of size one added in front.

    Attributes:
        leaf: index of the parameter leaf.
        steps: number of enclosing loops that slice the leaf's leading axes, one each.
        cast: whether its type was changed.
    """

    leaf: int
    steps: int = 0
    cast: bool = False


@dataclasses.dataclass(frozen=True)
class Fact:
    """Static knowledge of a value.

    Attributes:
        kind: what it depends on.
        params: indices of the parameter leaves of a PARAM value.
        behind: whether a site lies before it, perhaps beyond a `stop_gradient`.
        fed: whether credit flows from it to a site.
        whole: the parameter leaf that it is, if it is one.
    """

    kind: Kind
    params: frozenset[int] = frozenset()
    behind: bool = False
    fed: bool = False
    whole: Whole | None = None


@dataclasses.dataclass(frozen=True)
class Dense:
    """A site of the form `x @ kernel + bias`, with whole parameters of rank 2 and 1.

    The units may be spread over several axes afterwards, such as those of heads.

    Attributes:
        x: the variable of the layer's input, shape (..., fan_in).
        kernel: the parameter leaf of shape (fan_in, units).
        bias: the one of shape (units,), or None.
    """

    x: int
    kernel: Whole
    bias: Whole | None = None


@dataclasses.dataclass(frozen=True)
class Pending:
    """A site that may still grow, as when its bias is yet to be added.

    Attributes:
        params: parameter leaves that reach it.
        behind: whether its input depends on a site, perhaps beyond a `stop_gradient`.
        fed: whether credit flows from its input to a site.
        gain: whether it is an elementwise product with a parameter.
        added: whether it is the sum of a parameter and data.
        dense: its form, if it is a plain dense layer.
    """

    params: frozenset[int]
    behind: bool
    fed: bool
    gain: bool = False
    added: bool = False
    dense: Dense | None = None


def extends(eqn: Any, facts: Sequence[Fact], pending: Sequence[Pending | None]) -> bool:
    """Return whether a result is still the same site: a bias added, a shape changed.

    Only called for pending values that nothing else reads: two readers may need their own noise.
    """
    name = eqn.primitive.name
    if len(eqn.outvars) != 1 or not is_inexact(eqn.outvars[0].aval):
        return False
    if name in _SHAPE_OPS:
        return name != "reshape" or len(eqn.outvars[0].aval.shape) >= len(eqn.invars[0].aval.shape)
    data = [f.kind is Kind.DATA and p is None for f, p in zip(facts, pending, strict=True)]
    if name in {"add", "sub", "add_any"}:
        return not any(data)
    # x̂ * (1/std * scale): the site of a normalisation's gain is its output.
    others = [f for f, p in zip(facts, pending, strict=True) if p is None]
    return (
        (name == "mul" or (name == "div" and pending[0] is not None))
        and len(others) == 1
        and all(p.gain for p in pending if p)
        and others[0].kind is not Kind.PARAM
    )


def dense_site(eqn: Any, facts: Sequence[Fact], ins: Sequence[Any]) -> Dense | None:
    """Return the dense site whose product an equation is, as yet without a bias."""
    if eqn.primitive.name != "dot_general" or facts[0].kind is not Kind.DATA:
        return None
    x, kernel = (v.aval for v in eqn.invars)
    last = len(x.shape) - 1
    plain = last >= 1 and eqn.params["dimension_numbers"] == (((last,), (0,)), ((), ()))
    whole = facts[1].whole
    if not (plain and whole and len(kernel.shape) == 2 and isinstance(ins[0], int)):
        return None
    return Dense(ins[0], whole)


def with_bias(eqn: Any, facts: Sequence[Fact], pending: Sequence[Pending | None]) -> Dense | None:
    """Return the dense site that an equation extends by its bias; None if it is none any more."""
    before = [p for p in pending if p]
    dense = before[0].dense
    if len(before) > 1 or dense is None:
        return None
    name = eqn.primitive.name
    if name in {"reshape", "squeeze", "convert_element_type", "copy"}:
        return dense
    bias = next((i for i, f in enumerate(facts) if f.kind is Kind.PARAM), None)
    if dense.bias is not None or name != "add" or bias is None:
        return None
    whole, shape = facts[bias].whole, eqn.invars[bias].aval.shape
    *lead, units = eqn.outvars[0].aval.shape or (1,)
    if whole is None or shape != (*(1 for _ in lead), units):
        return None
    return dataclasses.replace(dense, bias=whole)


def still_whole(eqn: Any, whole: Whole | None) -> Whole | None:
    """Return what is known of a parameter after an equation that only casts it or adds axes."""
    if whole is None or len(eqn.outvars) != 1:
        return None
    name, before, after = eqn.primitive.name, eqn.invars[0].aval, eqn.outvars[0].aval
    if name == "convert_element_type":
        return dataclasses.replace(whole, cast=True) if is_inexact(after) else None
    leading = (1,) * (len(after.shape) - len(before.shape))
    if after.shape != leading + before.shape:
        return None
    if name == "broadcast_in_dim":
        last = tuple(range(len(leading), len(after.shape)))
        return whole if eqn.params["broadcast_dimensions"] == last else None
    return whole if name == "reshape" else None


def is_activation(eqn: Any, facts: Sequence[Fact], pending: Sequence[Pending | None]) -> bool:
    """Return whether an equation maps one pending value, unit by unit, to its like.

    Only called for pending values that nothing else reads.
    """
    varying = [
        i
        for i, (f, p) in enumerate(zip(facts, pending, strict=True))
        if p is not None or f.kind is not Kind.CONST
    ]
    if len(varying) != 1 or len(eqn.outvars) != 1:
        return False
    before, after = eqn.invars[varying[0]].aval, eqn.outvars[0].aval
    if before.shape != after.shape or before.dtype != after.dtype:
        return False
    return eqn.primitive.name in _NONLINEAR or is_marked(eqn) or is_elementwise_call(eqn)


def is_marked(eqn: Any) -> bool:
    """Return whether an equation is a call that `grlu.activation` wraps."""
    return is_call(eqn) and eqn.params.get("name") == ACTIVATION


def is_elementwise_call(eqn: Any) -> bool:
    """Return whether a call maps arrays of one shape, and scalars, element by element."""
    return (
        is_call(eqn) and len(eqn.outvars) == 1 and _is_elementwise(eqn, eqn.outvars[0].aval.shape)
    )


def _is_elementwise(eqn: Any, shape: tuple[int, ...]) -> bool:
    if is_call(eqn):
        return all(_is_elementwise(e, shape) for e in body(eqn)[0].eqns)
    if eqn.primitive.name == "broadcast_in_dim":
        return eqn.invars[0].aval.shape == ()
    shapes = {v.aval.shape for v in [*eqn.invars, *eqn.outvars]}
    return eqn.primitive.name in ELEMENTWISE and shapes <= {(), shape}
