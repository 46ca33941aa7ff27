"""What an operation is to a layer: its product, its bias, its activation, or none of these.

Values are of four kinds, and what an operation yields follows from what goes into it:

* CONST: depends on neither parameters nor batch (literals, masks, rng keys, running statistics);
* PARAM: depends on parameters but not on the batch (`exp(log_sigma)`, a normalised weight);
* DATA: depends on the batch;
* PENDING: a parameter has met data, and the site may still grow (a bias is yet to be added).
"""

import dataclasses
import enum
from typing import Any

import jax
import jax.numpy as jnp

from grlu.jaxprs import CUSTOM, body, is_call

# The name that `grlu.activation` gives to the call that it wraps.
ACTIVATION = "grlu_activation"

_SHAPE_OPS = {"reshape", "squeeze", "broadcast_in_dim", "transpose", "convert_element_type", "copy"}
_NONLINEAR = {"tanh", "logistic", "max", "min", "exp", "erf", "sin", "cos", "clamp"}
_ELEMENTWISE = (
    _NONLINEAR
    | {"add", "sub", "mul", "div", "neg", "abs", "sign", "select_n", "log", "log1p", "expm1"}
    | {"integer_pow", "pow", "sqrt", "rsqrt", "square", "gt", "lt", "ge", "le", "eq", "ne", "and"}
    | {"or", "not", "is_finite", "convert_element_type", "copy", "stop_gradient", "erfc"}
)


@dataclasses.dataclass(frozen=True)
class Dense:
    """A site of the form `x @ kernel + bias`, with whole parameters of rank 2 and 1.

    The units may be spread over several axes afterwards, such as those of heads, or be a single
    one without an axis.

    Attributes:
        x: the layer's input, shape (B, fan_in), perhaps with more axes between the two.
        kernel: index of the parameter leaf of shape (fan_in, units).
        bias: index of the one of shape (units,), or None.
    """

    x: jax.Array
    kernel: int
    bias: int | None = None


class Kind(enum.Enum):
    """What a value depends on; see the module's docstring."""

    CONST = enum.auto()
    PARAM = enum.auto()
    DATA = enum.auto()
    PENDING = enum.auto()


@dataclasses.dataclass
class Value:
    """A value of a jaxpr that is being run, and what is known of it."""

    value: Any
    kind: Kind
    params: frozenset[int] = frozenset()
    upstream: frozenset[int] = frozenset()
    behind: bool = False  # a site lies before it, perhaps beyond a stop_gradient
    gain: bool = False  # pending, and born of an elementwise product with a parameter
    whole: bool = False  # a parameter leaf itself, perhaps with axes of size one added
    dense: Dense | None = None  # pending, and born of a plain matrix product


def extends(eqn: Any, inputs: list[Value], alone: list[bool]) -> bool:
    """Whether the result is still one and the same site: a bias added, a shape changed.

    Only while nobody else reads the pending value: two readers may each need their own noise.
    """
    name = eqn.primitive.name
    pending = [v.kind is Kind.PENDING for v in inputs]
    if not all(a for a, p in zip(alone, pending, strict=True) if p):
        return False
    if name in _SHAPE_OPS:
        # A merged axis could not be told from the batch's any more.
        return name != "reshape" or len(eqn.outvars[0].aval.shape) >= len(eqn.invars[0].aval.shape)
    if name in {"add", "sub", "add_any"}:
        return all(v.kind is not Kind.DATA for v in inputs)
    # x̂ * (1/std * scale): the site of a normalisation's gain is its output.
    return (
        (name == "mul" or (name == "div" and pending[0]))
        and sum(pending) == 1
        and all(v.gain for v, p in zip(inputs, pending, strict=True) if p)
        and all(v.kind is not Kind.PARAM for v in inputs)
    )


def dense_site(eqn: Any, inputs: list[Value]) -> Dense | None:
    """The dense site whose product the equation is, as yet without a bias; None if it is none."""
    if eqn.primitive.name != "dot_general" or inputs[0].kind is not Kind.DATA:
        return None
    x, kernel = inputs
    last = jnp.ndim(x.value) - 1
    plain = last >= 1 and eqn.params["dimension_numbers"] == (((last,), (0,)), ((), ()))
    if not (plain and kernel.whole and jnp.ndim(kernel.value) == 2):
        return None
    return Dense(x.value, *kernel.params)


def with_bias(eqn: Any, inputs: list[Value]) -> Dense | None:
    """The dense site that an equation extends by its bias; None if it becomes something else."""
    dense = next((v.dense for v in inputs if v.dense), None)
    if eqn.primitive.name in {"reshape", "squeeze"}:
        return dense
    bias = next((v for v in inputs if v.kind is Kind.PARAM), None)
    if dense is None or dense.bias is not None or eqn.primitive.name != "add" or bias is None:
        return None
    *lead, units = jnp.shape(eqn.outvars[0].aval)
    if not bias.whole or jnp.shape(bias.value) != (*(1 for _ in lead), units):
        return None
    return dataclasses.replace(dense, bias=next(iter(bias.params)))


def adds_axes(eqn: Any) -> bool:
    """Whether the equation only puts axes of size one before the others, as for a bias."""
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    leading = (1,) * (len(after) - len(before))
    if eqn.primitive.name == "broadcast_in_dim":
        last = tuple(range(len(leading), len(after)))
        return after == leading + before and eqn.params["broadcast_dimensions"] == last
    return eqn.primitive.name == "reshape" and after == leading + before


def is_activation(eqn: Any, inputs: list[Value], alone: list[bool]) -> bool:
    """Whether the equation maps one pending value, alone and unit by unit, to its like."""
    varying = [i for i, v in enumerate(inputs) if v.kind is not Kind.CONST]
    if len(varying) != 1 or not alone[varying[0]] or len(eqn.outvars) != 1:
        return False
    before, after = eqn.invars[varying[0]].aval, eqn.outvars[0].aval
    if before.shape != after.shape or before.dtype != after.dtype:
        return False
    if eqn.params.get("name") == ACTIVATION:
        return True
    return eqn.primitive.name in _NONLINEAR or (is_call(eqn) and _is_elementwise(eqn, before.shape))


def _is_elementwise(eqn: Any, shape: tuple[int, ...]) -> bool:
    if is_call(eqn):
        return all(_is_elementwise(e, shape) for e in body(eqn)[0].eqns)
    if eqn.primitive.name == "broadcast_in_dim":
        return eqn.invars[0].aval.shape == ()
    shapes = {v.aval.shape for v in [*eqn.invars, *eqn.outvars]}
    return eqn.primitive.name in _ELEMENTWISE and shapes <= {(), shape}


def stops(eqn: Any) -> bool:
    """Whether a call holds a `stop_gradient`; an activation's own is part of its slope."""
    if not is_call(eqn) or eqn.params.get("name") == ACTIVATION or eqn.primitive.name in CUSTOM:
        return False
    return any(e.primitive.name == "stop_gradient" or stops(e) for e in body(eqn)[0].eqns)
