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

Of what kind values are, and which operations belong to one site: `grlu.recognition`.

Credit does not flow through `stop_gradient`: what lies behind one depends on no site before it.
`stop(value)` decides what does pass; a perturbed pass lets the clean pass's value through.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp

from grlu.errors import UserError
from grlu.jaxprs import CUSTOM, body, has_body, is_call
from grlu.recognition import (
    Dense,
    Kind,
    Value,
    adds_axes,
    dense_site,
    extends,
    is_activation,
    stops,
    with_bias,
)

Visit = Callable[["Site", jax.Array, Callable[[jax.Array], jax.Array]], jax.Array]
Stop = Callable[[jax.Array], jax.Array]


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
        *(Value(p, Kind.PARAM, frozenset({i}), whole=True) for i, p in enumerate(params)),
        *(Value(c, Kind.CONST) for c in consts),
        *(Value(d, Kind.DATA) for d in data),
    ]
    closed_over = [Value(c, Kind.DATA) for c in closed.consts]
    interpreter = _Interpreter(visit, names, stop or (lambda value: value))
    outs = interpreter.run(closed.jaxpr, closed_over, args)
    return [Output(v.value, v.upstream) for v in map(interpreter.settled, outs)]


class _Interpreter:
    def __init__(self, visit: Visit, names: Sequence[str], stop: Stop):
        self.visit = visit
        self.names = names
        self.stop = stop
        self.count = 0

    def run(self, jaxpr: Any, consts: Sequence[Value], args: Sequence[Value]) -> list[Value]:
        uses = collections.Counter(
            v
            for v in [*(v for eqn in jaxpr.eqns for v in eqn.invars), *jaxpr.outvars]
            if not isinstance(v, jex.Literal)
        )
        env: dict[Any, Value] = dict(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, args, strict=True))

        def read(atom: Any) -> Value:
            return Value(atom.val, Kind.CONST) if isinstance(atom, jex.Literal) else env[atom]

        for eqn in jaxpr.eqns:
            inputs = [read(v) for v in eqn.invars]
            alone = [not isinstance(v, jex.Literal) and uses[v] == 1 for v in eqn.invars]
            env.update(zip(eqn.outvars, self.equation(eqn, inputs, alone), strict=True))
        return [read(v) for v in jaxpr.outvars]

    def equation(self, eqn: Any, inputs: list[Value], alone: list[bool]) -> list[Value]:
        kinds = {v.kind for v in inputs}
        name = eqn.primitive.name
        if not kinds & {Kind.DATA, Kind.PENDING}:
            trainable = Kind.PARAM in kinds and name != "stop_gradient"
            values = _bind(eqn, inputs, Kind.PARAM if trainable else Kind.CONST)
            values[0].whole = inputs[0].whole and adds_axes(eqn) if inputs else False
            return values
        if name == "stop_gradient" and (Kind.PENDING in kinds or inputs[0].upstream):
            return self.stopped(eqn, inputs[0])
        if not kinds & {Kind.PARAM, Kind.PENDING}:
            if is_call(eqn) and stops(eqn) and any(v.upstream for v in inputs):
                return self.opened(eqn, inputs)
            return _bind(eqn, inputs, Kind.DATA)

        if Kind.PENDING in kinds and is_activation(eqn, inputs, alone):
            return [self.activated(eqn, inputs)]
        if is_call(eqn) and (name not in CUSTOM or Kind.PARAM in kinds):
            return self.opened(eqn, inputs)
        if Kind.PARAM in kinds and name not in CUSTOM and has_body(eqn):
            params = frozenset().union(*(v.params for v in inputs if v.kind is Kind.PARAM))
            which = ", ".join(sorted(self.names[i] for i in params))
            raise UserError(
                f"{which}: the parameter meets the data inside a '{name}', where its layer's input "
                "cannot be told apart step by step; unroll the loop in Python, or leave the "
                "parameter out of the rule's `wrt` filter"
            )
        if Kind.PENDING in kinds and extends(eqn, inputs, alone):
            gain = any(v.gain for v in inputs)
            (value,) = _bind(eqn, inputs, Kind.PENDING, gain=gain)
            value.dense = with_bias(eqn, inputs)
            return [value]

        inputs = [self.settled(v) for v in inputs]
        if any(v.kind is Kind.PARAM for v in inputs):
            values = _bind(eqn, inputs, Kind.PENDING, gain=name in {"mul", "div"})
            values[0].dense = dense_site(eqn, inputs)
            return values
        return _bind(eqn, inputs, Kind.DATA)

    def opened(self, eqn: Any, inputs: list[Value]) -> list[Value]:
        """Runs the body of a call as if it stood in its place."""
        jaxpr, consts = body(eqn)
        return self.run(jaxpr, [Value(c, Kind.CONST) for c in consts], inputs)

    def stopped(self, eqn: Any, value: Value) -> list[Value]:
        (out,) = _bind(eqn, [self.settled(value)], Kind.DATA)
        out.value, out.upstream = self.stop(out.value), frozenset()
        return [out]

    def settled(self, value: Value) -> Value:
        """Turns a pending value into data: its site is complete. Other values pass."""
        if value.kind is Kind.PENDING:
            # In place: whoever else holds this value must see the same noise.
            self._settle(value, lambda z: z)
        return value

    def activated(self, eqn: Any, inputs: list[Value]) -> Value:
        position = next(i for i, v in enumerate(inputs) if v.kind is Kind.PENDING)

        def fn(z: jax.Array) -> jax.Array:
            values = [z if i == position else v.value for i, v in enumerate(inputs)]
            return _call(eqn, values)[0]

        return self._settle(inputs[position], fn)

    def _settle(self, value: Value, fn: Callable[[jax.Array], jax.Array]) -> Value:
        site = Site(self.count, value.params, value.upstream, not value.behind, value.dense)
        self.count += 1
        value.value = self.visit(site, value.value, fn)
        value.kind, value.params, value.dense = Kind.DATA, frozenset(), None
        value.upstream, value.behind = value.upstream | {site.index}, True
        return value


def _call(eqn: Any, values: list[Any]) -> list[Any]:
    out = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
    return out if eqn.primitive.multiple_results else [out]


def _bind(eqn: Any, inputs: list[Value], kind: Kind, gain: bool = False) -> list[Value]:
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
            values.append(Value(out, rest, upstream=upstream, behind=behind))
        elif kind in (Kind.PARAM, Kind.PENDING):
            values.append(Value(out, kind, params, upstream, behind, gain))
        else:
            values.append(Value(out, kind, upstream=upstream, behind=behind))
    return values


def _is_float(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)
