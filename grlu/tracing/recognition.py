"""Recognition of layers: products, biases and activations among equations."""

import dataclasses
import enum
from collections.abc import Sequence
from typing import Any

from grlu.jaxprs.calls import body, is_call, is_inexact

# Name of the calls that `grlu.activation` creates.
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
    """Dependence of a value.

    CONST: on neither parameters nor batch (literals, masks, PRNG keys, running statistics).
    PARAM: on parameters but not the batch (`exp(log_sigma)`, a normalised weight).
    DATA: on the batch or a site.
    """

    CONST = enum.auto()
    PARAM = enum.auto()
    DATA = enum.auto()


@dataclasses.dataclass(frozen=True)
class Whole:
    """Unchanged parameter leaf, perhaps cast or with leading axes of size one.

    Attributes:
        leaf: index of the parameter leaf.
        steps: number of enclosing loops that slice the leaf's leading axes, one each.
        cast: True if its dtype was changed.
    """

    leaf: int
    steps: int = 0
    cast: bool = False


@dataclasses.dataclass(frozen=True)
class Fact:
    """Static facts about a value.

    Attributes:
        kind: its dependence on parameters and batch.
        params: indices of the parameter leaves of a PARAM value.
        behind: True if it depends on a site, perhaps through a `stop_gradient`.
        fed: True if credit flows from it to a site.
        whole: the parameter leaf that it equals, or None.
    """

    kind: Kind
    params: frozenset[int] = frozenset()
    behind: bool = False
    fed: bool = False
    whole: Whole | None = None


@dataclasses.dataclass(frozen=True)
class Dense:
    """Site of the form `x @ kernel + bias`, with whole parameters of rank 2 and 1.

    The units may later be reshaped to several axes, such as heads.

    Attributes:
        x: variable of the layer's input, shape (..., fan_in).
        kernel: parameter leaf of shape (fan_in, units).
        out: variable of the result.
        bias: parameter leaf of shape (units,), or None.
    """

    x: int
    kernel: Whole
    out: int
    bias: Whole | None = None


@dataclasses.dataclass(frozen=True)
class Pending:
    """Site that may still be extended, for example by a bias.

    Attributes:
        params: parameter leaves that reach it.
        behind: True if its input depends on a site, perhaps through a `stop_gradient`.
        fed: True if credit flows from its input to a site.
        gain: True if it is an elementwise product with a parameter.
        added: True if it is the sum of a parameter and data.
        gathered: True if it consists of elements of parameters, chosen by the data.
        indexed: True if the data choose its units, or the weights of its units.
        dense: its parameters and input if it is a plain dense layer, else None.
        chosen: the dense layer whose units the data choose at this site, else None.
    """

    params: frozenset[int]
    behind: bool
    fed: bool
    gain: bool = False
    added: bool = False
    gathered: bool = False
    indexed: bool = False
    dense: Dense | None = None
    chosen: Dense | None = None


def extends(eqn: Any, facts: Sequence[Fact], pending: Sequence[Pending | None]) -> bool:
    """Return True if a result still belongs to the same site, as after a bias or a reshape.

    Requires pending values that nothing else reads: two readers may need separate noise.
    """
    name = eqn.primitive.name
    if len(eqn.outvars) != 1 or not is_inexact(eqn.outvars[0].aval):
        return False
    if name in _SHAPE_OPS:
        return name != "reshape" or len(eqn.outvars[0].aval.shape) >= len(eqn.invars[0].aval.shape)
    data = [f.kind is Kind.DATA and p is None for f, p in zip(facts, pending, strict=True)]
    if name in {"add", "sub", "add_any"}:
        return not any(data)
    if name == "gather":
        # Elements of gathered elements, or units that the network chooses, such as winners. A
        # label's choice is no part of the layer: the other logits are units too.
        of = pending[0]
        return of is not None and pending[1] is None and (of.gathered or facts[1].behind)
    if name == "concatenate":
        return all(p is not None and p.gathered for p in pending)
    if weighs(eqn, facts, pending):
        return True
    # x̂ * (1/std * scale): the site of a normalisation's gain is its output.
    others = [f for f, p in zip(facts, pending, strict=True) if p is None]
    return (
        (name == "mul" or (name == "div" and pending[0] is not None))
        and len(others) == 1
        and all(p.gain for p in pending if p)
        and others[0].kind is not Kind.PARAM
    )


def weighs(eqn: Any, facts: Sequence[Fact], pending: Sequence[Pending | None]) -> bool:
    """Return True for a product of data with gathered parameters, such as a layer's active rows.

    The site is then the product, because a parameter that the data choose is still a parameter.
    """
    if eqn.primitive.name not in ("dot_general", "mul"):
        return False
    return any(
        one is not None and one.gathered and other is None and fact.kind is Kind.DATA
        for one, other, fact in (
            (pending[0], pending[1], facts[1]),
            (pending[1], pending[0], facts[0]),
        )
    )


def dense_site(eqn: Any, facts: Sequence[Fact], ins: Sequence[Any], out: int) -> Dense | None:
    """Return the dense site, without a bias so far, of an equation that is its product, or None."""
    if eqn.primitive.name != "dot_general" or facts[0].kind is not Kind.DATA:
        return None
    x, kernel = (v.aval for v in eqn.invars)
    last = len(x.shape) - 1
    plain = last >= 1 and eqn.params["dimension_numbers"] == (((last,), (0,)), ((), ()))
    whole = facts[1].whole
    if not (plain and whole and len(kernel.shape) == 2 and isinstance(ins[0], int)):
        return None
    return Dense(ins[0], whole, out)


def with_bias(
    eqn: Any, facts: Sequence[Fact], pending: Sequence[Pending | None], out: int
) -> Dense | None:
    """Return the dense site after an equation that may add its bias; None if no longer dense."""
    before = [p for p in pending if p]
    dense = before[0].dense
    if len(before) > 1 or dense is None:
        return None
    name = eqn.primitive.name
    if name in {"reshape", "squeeze", "convert_element_type", "copy"}:
        return dataclasses.replace(dense, out=out)
    bias = next((i for i, f in enumerate(facts) if f.kind is Kind.PARAM), None)
    if dense.bias is not None or name != "add" or bias is None:
        return None
    whole, shape = facts[bias].whole, eqn.invars[bias].aval.shape
    *lead, units = eqn.outvars[0].aval.shape or (1,)
    if whole is None or shape != (*(1 for _ in lead), units):
        return None
    return dataclasses.replace(dense, out=out, bias=whole)


def still_whole(eqn: Any, whole: Whole | None) -> Whole | None:
    """Return the parameter leaf after an equation that only casts it or adds axes, else None."""
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
    """Return True if an equation maps one pending value elementwise, unit by unit.

    Requires pending values that nothing else reads.
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
    """Return True if an equation is a call that `grlu.activation` created."""
    return is_call(eqn) and eqn.params.get("name") == ACTIVATION


def is_elementwise_call(eqn: Any) -> bool:
    """Return True if a call is elementwise on arrays of one shape and scalars."""
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


def sliced(fact: Fact) -> Fact:
    """Return the fact about one step's slice of a scanned value."""
    if fact.whole is None:
        return fact
    return dataclasses.replace(
        fact, whole=dataclasses.replace(fact.whole, steps=fact.whole.steps + 1)
    )


def joined(one: Fact, two: Fact) -> Fact:
    """Return the fact about a value that equals one of two values, as after a branch."""
    kinds = {one.kind, two.kind}
    kind = next(k for k in (Kind.DATA, Kind.PARAM, Kind.CONST) if k in kinds)
    site = kind is Kind.DATA and Kind.PARAM in kinds
    return Fact(
        kind,
        one.params | two.params if kind is Kind.PARAM else frozenset(),
        one.behind or two.behind or site,
        one.fed or two.fed or site,
        one.whole if one.whole == two.whole else None,
    )
