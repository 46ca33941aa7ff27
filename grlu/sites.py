"""Where a model's parameters meet its data: the sites at which credit is defined.

A *site* is the result of the operation in which a parameter first meets a value that depends on
the batch: `x @ W + b`, a convolution, an embedding's row plus its position, `x̂ * scale + bias`.
It is a layer's pre-activation, found in the jaxpr of the model, so that it needs no name, no base
class and no registration: any NNX module works, with raw parameters, tied weights, or modules that
are called twice.

`evaluate` runs a jaxpr and calls `visit(site, z, fn)` at every site. The visitor decides what
flows on: `fn(z)` leaves the network as it is, `fn(z + noise)` perturbs it, and
`fn(stop_gradient(z))` cuts it, so that a VJP to the recorded `z` is each layer's own and no
gradient flows from one layer to another. `fn` is the site's activation where it has one (a function
of the site alone), else the identity.

Values are of four kinds, and what an operation yields follows from what goes into it:

* CONST: depends on neither parameters nor batch (literals, masks, rng keys, running statistics);
* PARAM: depends on parameters but not on the batch (`exp(log_sigma)`, a normalised weight);
* DATA: depends on the batch;
* PENDING: a parameter has met data, and the site may still grow (a bias is yet to be added).

Credit does not flow through `stop_gradient`: what lies behind one depends on no site before it.
`stop(value)` decides what does pass; a perturbed pass lets the clean pass's value through.
"""

import collections
import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp

from grlu.errors import UserError

Visit = Callable[["Site", jax.Array, Callable[[jax.Array], jax.Array]], jax.Array]
Stop = Callable[[jax.Array], jax.Array]

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
_CUSTOM = {"custom_jvp_call", "custom_vjp_call"}


def reads(jaxpr: jex.Jaxpr, var: Any) -> int:
    """How many operations take a variable, inside calls too; handing it on is none of them."""
    count = sum(v is var for v in jaxpr.outvars)
    for eqn in jaxpr.eqns:
        body = eqn.params.get(_CALLS.get(eqn.primitive.name, ""))
        inner = getattr(body, "jaxpr", body)
        for i, v in enumerate(eqn.invars):
            if v is not var:
                continue
            if inner is None:
                count += 1
                continue
            count += reads(inner, inner.invars[i])
            for out, handed_on in zip(eqn.outvars, inner.outvars, strict=True):
                if handed_on is inner.invars[i]:
                    count += reads(jaxpr, out) - 1
    return count


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


@dataclasses.dataclass(frozen=True)
class Site:
    """One place where credit is assigned.

    Attributes:
        index: position in the order of execution.
        params: indices of the parameter leaves (in the order given to `evaluate`) that reach it.
        upstream: indices of the sites to which its input's credit flows; empty for a first layer.
        first: whether its input depends on no site at all, not even through a `stop_gradient`.
        dense: how it is made, if it is a plain dense layer.
    """

    index: int
    params: frozenset[int]
    upstream: frozenset[int]
    first: bool = False
    dense: Dense | None = None


class Kind(enum.Enum):
    """What a value depends on; see the module's docstring."""

    CONST = enum.auto()
    PARAM = enum.auto()
    DATA = enum.auto()
    PENDING = enum.auto()


@dataclasses.dataclass
class _Value:
    value: Any
    kind: Kind
    params: frozenset[int] = frozenset()
    upstream: frozenset[int] = frozenset()
    behind: bool = False  # a site lies before it, perhaps beyond a stop_gradient
    gain: bool = False  # pending, and born of an elementwise product with a parameter
    whole: bool = False  # a parameter leaf itself, perhaps with axes of size one added
    dense: Dense | None = None  # pending, and born of a plain matrix product


@dataclasses.dataclass(frozen=True)
class Output:
    """One output of the jaxpr, and the sites on which it depends."""

    value: jax.Array
    upstream: frozenset[int]


def evaluate(
    closed: jex.ClosedJaxpr,
    params: Sequence[Any],
    consts: Sequence[Any],
    data: Sequence[Any],
    visit: Visit,
    names: Sequence[str],
    stop: Stop | None = None,
) -> list[Output]:
    """Runs a jaxpr of `(*params, *consts, *data)`, calling `visit` at every site.

    Args:
        closed: the traced function; its own constants count as data (a function may close over
            a batch).
        params: trainable leaves.
        consts: leaves that depend on neither parameters nor batch (rng keys, statistics).
        data: leaves of the batch.
        visit: `visit(site, z, fn) -> h`, called in the order of execution.
        names: one name per parameter leaf, for errors.
        stop: `stop(value) -> value`, called at every `stop_gradient` behind a site, in the order of
            execution.

    Raises:
        UserError: if a parameter meets data inside a loop, where no site can be placed.
    """
    args = [
        *(_Value(p, Kind.PARAM, frozenset({i}), whole=True) for i, p in enumerate(params)),
        *(_Value(c, Kind.CONST) for c in consts),
        *(_Value(d, Kind.DATA) for d in data),
    ]
    closed_over = [_Value(c, Kind.DATA) for c in closed.consts]
    interpreter = _Interpreter(visit, names, stop or (lambda value: value))
    outs = interpreter.run(closed.jaxpr, closed_over, args)
    return [Output(v.value, v.upstream) for v in map(interpreter.settled, outs)]


class _Interpreter:
    def __init__(self, visit: Visit, names: Sequence[str], stop: Stop):
        self.visit = visit
        self.names = names
        self.stop = stop
        self.count = 0

    def run(self, jaxpr: Any, consts: Sequence[_Value], args: Sequence[_Value]) -> list[_Value]:
        uses = collections.Counter(
            v
            for v in [*(v for eqn in jaxpr.eqns for v in eqn.invars), *jaxpr.outvars]
            if not isinstance(v, jex.Literal)
        )
        env: dict[Any, _Value] = dict(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, args, strict=True))

        def read(atom: Any) -> _Value:
            return _Value(atom.val, Kind.CONST) if isinstance(atom, jex.Literal) else env[atom]

        for eqn in jaxpr.eqns:
            inputs = [read(v) for v in eqn.invars]
            alone = [not isinstance(v, jex.Literal) and uses[v] == 1 for v in eqn.invars]
            env.update(zip(eqn.outvars, self.equation(eqn, inputs, alone), strict=True))
        return [read(v) for v in jaxpr.outvars]

    def equation(self, eqn: Any, inputs: list[_Value], alone: list[bool]) -> list[_Value]:
        kinds = {v.kind for v in inputs}
        name = eqn.primitive.name
        if not kinds & {Kind.DATA, Kind.PENDING}:
            trainable = Kind.PARAM in kinds and name != "stop_gradient"
            values = _bind(eqn, inputs, Kind.PARAM if trainable else Kind.CONST)
            values[0].whole = inputs[0].whole and _adds_axes(eqn) if inputs else False
            return values
        if name == "stop_gradient" and (Kind.PENDING in kinds or inputs[0].upstream):
            return self.stopped(eqn, inputs[0])
        if not kinds & {Kind.PARAM, Kind.PENDING}:
            if name in _CALLS and _stops(eqn) and any(v.upstream for v in inputs):
                return self.opened(eqn, inputs)
            return _bind(eqn, inputs, Kind.DATA)

        if Kind.PENDING in kinds and _is_activation(eqn, inputs, alone):
            return [self.activated(eqn, inputs)]
        if name in _CALLS and (name not in _CUSTOM or Kind.PARAM in kinds):
            return self.opened(eqn, inputs)
        if Kind.PARAM in kinds and name not in _CUSTOM and _has_body(eqn):
            params = frozenset().union(*(v.params for v in inputs if v.kind is Kind.PARAM))
            which = ", ".join(sorted(self.names[i] for i in params))
            raise UserError(
                f"{which}: the parameter meets the data inside a '{name}', where its layer's input "
                "cannot be told apart step by step; unroll the loop in Python, or leave the "
                "parameter out of the rule's `wrt` filter"
            )
        if Kind.PENDING in kinds and _extends(eqn, inputs, alone):
            gain = any(v.gain for v in inputs)
            (value,) = _bind(eqn, inputs, Kind.PENDING, gain=gain)
            value.dense = _with_bias(eqn, inputs)
            return [value]

        inputs = [self.settled(v) for v in inputs]
        if any(v.kind is Kind.PARAM for v in inputs):
            values = _bind(eqn, inputs, Kind.PENDING, gain=name in {"mul", "div"})
            values[0].dense = _dense(eqn, inputs)
            return values
        return _bind(eqn, inputs, Kind.DATA)

    def opened(self, eqn: Any, inputs: list[_Value]) -> list[_Value]:
        """Runs the body of a call as if it stood in its place."""
        body = eqn.params[_CALLS[eqn.primitive.name]]
        consts = [_Value(c, Kind.CONST) for c in getattr(body, "consts", ())]
        return self.run(getattr(body, "jaxpr", body), consts, inputs)

    def stopped(self, eqn: Any, value: _Value) -> list[_Value]:
        (out,) = _bind(eqn, [self.settled(value)], Kind.DATA)
        out.value, out.upstream = self.stop(out.value), frozenset()
        return [out]

    def settled(self, value: _Value) -> _Value:
        """Turns a pending value into data: its site is complete. Other values pass."""
        if value.kind is Kind.PENDING:
            # In place: whoever else holds this value must see the same noise.
            self._settle(value, lambda z: z)
        return value

    def activated(self, eqn: Any, inputs: list[_Value]) -> _Value:
        position = next(i for i, v in enumerate(inputs) if v.kind is Kind.PENDING)

        def fn(z: jax.Array) -> jax.Array:
            values = [z if i == position else v.value for i, v in enumerate(inputs)]
            return _call(eqn, values)[0]

        return self._settle(inputs[position], fn)

    def _settle(self, value: _Value, fn: Callable[[jax.Array], jax.Array]) -> _Value:
        site = Site(self.count, value.params, value.upstream, not value.behind, value.dense)
        self.count += 1
        value.value = self.visit(site, value.value, fn)
        value.kind, value.params, value.dense = Kind.DATA, frozenset(), None
        value.upstream, value.behind = value.upstream | {site.index}, True
        return value


def _call(eqn: Any, values: list[Any]) -> list[Any]:
    out = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
    return out if eqn.primitive.multiple_results else [out]


def _bind(eqn: Any, inputs: list[_Value], kind: Kind, gain: bool = False) -> list[_Value]:
    """Runs one equation; integer and boolean results of parameters carry no gradient."""
    params = frozenset().union(*(v.params for v in inputs))
    upstream = frozenset().union(*(v.upstream for v in inputs))
    with eqn.ctx.manager:
        outs = _call(eqn, [v.value for v in inputs])
    behind = any(v.behind for v in inputs)
    values = []
    for out in outs:
        if kind in (Kind.PARAM, Kind.PENDING) and not _is_float(out):
            rest = Kind.CONST if kind is Kind.PARAM else Kind.DATA
            values.append(_Value(out, rest, upstream=upstream, behind=behind))
        elif kind in (Kind.PARAM, Kind.PENDING):
            values.append(_Value(out, kind, params, upstream, behind, gain))
        else:
            values.append(_Value(out, kind, upstream=upstream, behind=behind))
    return values


def _is_float(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)


def _has_body(eqn: Any) -> bool:
    return any(
        isinstance(p, jex.Jaxpr | jex.ClosedJaxpr)
        for param in eqn.params.values()
        for p in (param if isinstance(param, tuple | list) else (param,))
    )


def _stops(eqn: Any) -> bool:
    """Whether a call holds a `stop_gradient`; an activation's own is part of its slope."""
    if eqn.params.get("name") == ACTIVATION or eqn.primitive.name in _CUSTOM:
        return False
    body = eqn.params[_CALLS[eqn.primitive.name]]
    return any(
        e.primitive.name == "stop_gradient" or (e.primitive.name in _CALLS and _stops(e))
        for e in getattr(body, "jaxpr", body).eqns
    )


def _extends(eqn: Any, inputs: list[_Value], alone: list[bool]) -> bool:
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


def _adds_axes(eqn: Any) -> bool:
    """Whether the equation only puts axes of size one before the others, as for a bias."""
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    leading = (1,) * (len(after) - len(before))
    if eqn.primitive.name == "broadcast_in_dim":
        last = tuple(range(len(leading), len(after)))
        return after == leading + before and eqn.params["broadcast_dimensions"] == last
    return eqn.primitive.name == "reshape" and after == leading + before


def _dense(eqn: Any, inputs: list[_Value]) -> Dense | None:
    if eqn.primitive.name != "dot_general" or inputs[0].kind is not Kind.DATA:
        return None
    x, kernel = inputs
    last = jnp.ndim(x.value) - 1
    plain = last >= 1 and eqn.params["dimension_numbers"] == (((last,), (0,)), ((), ()))
    if not (plain and kernel.whole and jnp.ndim(kernel.value) == 2):
        return None
    return Dense(x.value, *kernel.params)


def _with_bias(eqn: Any, inputs: list[_Value]) -> Dense | None:
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


def _is_activation(eqn: Any, inputs: list[_Value], alone: list[bool]) -> bool:
    """Whether the equation maps one pending value, alone and unit by unit, to its like."""
    varying = [i for i, v in enumerate(inputs) if v.kind is not Kind.CONST]
    if len(varying) != 1 or not alone[varying[0]] or len(eqn.outvars) != 1:
        return False
    before, after = eqn.invars[varying[0]].aval, eqn.outvars[0].aval
    if before.shape != after.shape or before.dtype != after.dtype:
        return False
    if eqn.params.get("name") == ACTIVATION:
        return True
    name = eqn.primitive.name
    return name in _NONLINEAR or (name in _CALLS and _is_elementwise(eqn, before.shape))


def _is_elementwise(eqn: Any, shape: tuple[int, ...]) -> bool:
    if eqn.primitive.name in _CALLS:
        body = eqn.params[_CALLS[eqn.primitive.name]]
        return all(_is_elementwise(e, shape) for e in getattr(body, "jaxpr", body).eqns)
    if eqn.primitive.name == "broadcast_in_dim":
        return eqn.invars[0].aval.shape == ()
    shapes = {v.aval.shape for v in [*eqn.invars, *eqn.outvars]}
    return eqn.primitive.name in _ELEMENTWISE and shapes <= {(), shape}
