"""Flattening: a jaxpr without calls, with what is known of each value.

A call that holds a layer is replaced by its body, so that the readers of a value can be counted
across calls. Elementwise calls stay whole, since they may be activations, and so do calls with a
derivative of their own.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.extend.core as jex

from grlu.errors import UserError
from grlu.tracing.jaxprs import (
    bodies,
    body,
    has_own_derivative,
    is_call,
    is_inexact,
    opened,
    scanned,
    stops,
)
from grlu.tracing.program import Atom, Literal
from grlu.tracing.recognition import (
    Fact,
    Kind,
    is_elementwise_call,
    is_marked,
    still_whole,
)
from grlu.tracing.widening import holds_low

_CONST = Fact(Kind.CONST)
# Operations without a derivative.
_CALLBACKS = {"pure_callback", "io_callback", "ffi_call"}
# Operations on arrays that change in place, through which nothing can be followed.
_MUTABLE = {"new_ref", "get", "swap", "addupdate", "freeze", "empty_ref", "run_state", "box_get"}
_MUTABLE |= {"box_set", "new_box", "log_read", "log_extend", "new_log", "accum_grad_in_ref"}
# Operations whose body is one arithmetic step, as that of a reduction.
_WITH_BODY = {"reduce", "reduce_window", "select_and_scatter", "custom_linear_solve"}


@dataclasses.dataclass(frozen=True)
class Item:
    """One equation of a flat jaxpr.

    Attributes:
        role: "bind"; "meet", where parameters meet data and sites begin; "weights", which only
            takes parameters that are sites themselves; "stop"; "loop" or "branch".
        eqn: the equation.
        ins: its inputs.
        outs: its outputs.
        inner: the flat body of a loop, or those of branches.
        data: of a loop or branch, which inputs and, in the bodies, which outputs must be data.
    """

    role: str
    eqn: Any
    ins: tuple[Atom, ...]
    outs: tuple[int, ...]
    inner: tuple["Flat", ...] = ()
    data: tuple[tuple[bool, ...], tuple[bool, ...]] = ((), ())


@dataclasses.dataclass(frozen=True)
class Flat:
    """A jaxpr without calls.

    Attributes:
        ins: variables of its inputs.
        items: its equations.
        outs: its outputs.
        facts: what is known of each variable, by its number.
        avals: shape and dtype of each.
    """

    ins: tuple[int, ...]
    items: tuple[Item, ...]
    outs: tuple[Atom, ...]
    facts: Mapping[int, Fact]
    avals: Mapping[int, Any]

    def fact(self, atom: Atom) -> Fact:
        """Return what is known of a variable or constant."""
        return _CONST if isinstance(atom, Literal) else self.facts[atom]

    @property
    def marks(self) -> bool:
        """Whether there is anything to mark: a site or a stop, in loops and branches too."""
        return any(item.role != "bind" for item in self.items)


def flatten(
    jaxpr: jex.Jaxpr,
    consts: Sequence[Any],
    facts: Sequence[Fact],
    names: Sequence[str],
    closed_over: Fact = _CONST,
) -> Flat:
    """Flatten a jaxpr.

    Args:
        jaxpr: the jaxpr.
        consts: its constants.
        facts: what is known of its inputs.
        names: one name per parameter leaf, for errors.
        closed_over: what is known of its constants.

    Raises:
        UserError: if a `stop_gradient` lies where credit cannot be kept from passing it.
    """
    return _Flattener(names).run(jaxpr, consts, facts, closed_over)


class _Flattener:
    def __init__(self, names: Sequence[str]):
        self.names = names
        self.numbers = itertools.count()
        self.items: list[Item] = []
        self.facts: dict[int, Fact] = {}
        self.avals: dict[int, Any] = {}

    def run(
        self, jaxpr: jex.Jaxpr, consts: Sequence[Any], facts: Sequence[Fact], closed_over: Fact
    ) -> Flat:
        ins = tuple(self.new(v.aval, f) for v, f in zip(jaxpr.invars, facts, strict=True))
        fixed: list[Atom] = [
            self.new(v.aval, closed_over) if closed_over.kind is Kind.DATA else Literal(c)
            for v, c in zip(jaxpr.constvars, consts, strict=True)
        ]
        outs = self.equations(jaxpr, fixed, ins)
        # Constants that count as data become inputs after the others.
        more = tuple(a for a in fixed if isinstance(a, int))
        return Flat((*ins, *more), tuple(self.items), tuple(outs), self.facts, self.avals)

    def new(self, aval: Any, fact: Fact) -> int:
        number = next(self.numbers)
        self.avals[number], self.facts[number] = aval, fact
        return number

    def fact(self, atom: Atom) -> Fact:
        return _CONST if isinstance(atom, Literal) else self.facts[atom]

    def equations(
        self, jaxpr: jex.Jaxpr, consts: Sequence[Atom], args: Sequence[Atom]
    ) -> list[Atom]:
        env: dict[Any, Atom] = dict(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, args, strict=True))

        def read(v: Any) -> Atom:
            return Literal(v.val) if isinstance(v, jex.Literal) else env[v]

        for eqn in jaxpr.eqns:
            ins = tuple(read(v) for v in eqn.invars)
            env.update(zip(eqn.outvars, self.equation(eqn, ins), strict=True))
        return [read(v) for v in jaxpr.outvars]

    def equation(self, eqn: Any, ins: tuple[Atom, ...]) -> Sequence[Atom]:
        facts = [self.fact(a) for a in ins]
        kinds = {f.kind for f in facts}
        name, behind = eqn.primitive.name, any(f.behind for f in facts)
        fed = any(f.fed for f in facts)
        if name in _MUTABLE:
            raise UserError(
                f"the reward function changes an array in place ('{name}'), which a rule cannot "
                "follow; return the new value instead of using jax.new_ref"
            )
        own = has_own_derivative(eqn)
        if is_call(eqn) and not own and not self.kept(eqn, kinds):
            jaxpr, consts = body(eqn)
            return self.equations(jaxpr, [Literal(c) for c in consts], ins)
        if Kind.DATA not in kinds:
            return self.constant(eqn, ins, facts)
        meets = Kind.PARAM in kinds
        if name == "stop_gradient" and behind:
            return self.add("stop", eqn, ins, [Fact(Kind.DATA, behind=True)])
        if name in ("scan", "cond") and (meets or (behind and _must_open(eqn))):
            return (self.loop if name == "scan" else self.branch)(eqn, ins, facts)
        if behind and stops(eqn) and not is_marked(eqn):
            raise UserError(
                f"a stop_gradient inside a '{name}' cannot be kept from passing credit; move it "
                "out, or use a Python loop, jax.lax.scan or jax.lax.fori_loop instead"
            )
        if meets and not own and self.opaque(eqn):
            return self.add("weights", eqn, ins, _data(eqn, True, True))
        if meets:
            return self.add("meet", eqn, ins, _data(eqn, True, True))
        return self.add("bind", eqn, ins, _data(eqn, behind, fed))

    def kept(self, eqn: Any, kinds: set[Kind]) -> bool:
        """Whether a call stays whole: one that may be an activation."""
        if is_marked(eqn):
            return Kind.PARAM not in kinds
        return Kind.PARAM not in kinds and not stops(eqn) and is_elementwise_call(eqn)

    @staticmethod
    def opaque(eqn: Any) -> bool:
        """Whether layers may hide in an equation, or it has no derivative: while, callbacks."""
        name = eqn.primitive.name
        if name in _CALLBACKS:
            return True
        plain = name in _WITH_BODY or name.startswith("scatter")
        return not plain and not is_call(eqn) and any(True for _ in bodies(eqn))

    def constant(self, eqn: Any, ins: tuple[Atom, ...], facts: Sequence[Fact]) -> Sequence[Atom]:
        """An equation of parameters and constants."""
        params = frozenset[int]().union(*(f.params for f in facts))
        trainable = bool(params) and eqn.primitive.name != "stop_gradient"
        whole = still_whole(eqn, facts[0].whole) if len(facts) == 1 else None
        outs = [
            Fact(Kind.PARAM, params, whole=whole) if trainable and is_inexact(v.aval) else _CONST
            for v in eqn.outvars
        ]
        return self.add("bind", eqn, ins, outs)

    def add(
        self,
        role: str,
        eqn: Any,
        ins: tuple[Atom, ...],
        facts: Sequence[Fact],
        inner: tuple[Flat, ...] = (),
        data: tuple[tuple[bool, ...], tuple[bool, ...]] = ((), ()),
    ) -> tuple[int, ...]:
        outs = tuple(self.new(v.aval, f) for v, f in zip(eqn.outvars, facts, strict=True))
        self.items.append(Item(role, eqn, ins, outs, inner, data))
        return outs

    def body(self, closed: Any, facts: Sequence[Fact]) -> Flat:
        return flatten(*opened(closed), facts, self.names)

    def loop(self, eqn: Any, ins: tuple[Atom, ...], facts: Sequence[Fact]) -> Sequence[Atom]:
        closed = eqn.params["jaxpr"]
        first, carried = scanned(eqn)
        last = first + carried
        seen = [*facts[:last], *(_sliced(f) for f in facts[last:])]
        flat = self.fixed_point(
            seen, lambda seen: self.body(closed, seen), lambda flat: (first, flat.outs[:carried])
        )
        seen = [flat.facts[v] for v in flat.ins]
        after = [flat.fact(a) for a in flat.outs]
        converts = self.converts(facts, seen) or self.converts(after[:carried], seen[first:last])
        outs = [*seen[first:last], *after[carried:]]
        outs = [dataclasses.replace(f, whole=None) for f in outs]
        if not flat.marks and not converts and not _must_open(eqn):
            return self.add("bind", eqn, ins, outs)
        inputs = tuple(f.kind is Kind.DATA for f in seen)
        outputs = (*inputs[first:last], *(False for _ in flat.outs[carried:]))
        return self.add("loop", eqn, ins, outs, (flat,), (inputs, outputs))

    def fixed_point(
        self,
        seen: list[Fact],
        flattened: Callable[[list[Fact]], Flat],
        carried: Callable[[Flat], tuple[int, Sequence[Atom]]],
    ) -> Flat:
        """The flat body of a loop whose carry is at every step of the kind that it begins with."""
        while True:
            flat = flattened(seen)
            first, outs = carried(flat)
            after = list(seen)
            for i, atom in enumerate(outs, start=first):
                # A carry that is handed on as it came is what it was before the loop.
                same = atom == flat.ins[i]
                after[i] = seen[i] if same else _join(seen[i], flat.fact(atom))
            if after == seen:
                return flat
            seen = after

    def branch(self, eqn: Any, ins: tuple[Atom, ...], facts: Sequence[Fact]) -> Sequence[Atom]:
        flats = tuple(self.body(b, facts[1:]) for b in eqn.params["branches"])
        outs = []
        for atoms in zip(*(flat.outs for flat in flats), strict=True):
            fact = flats[0].fact(atoms[0])
            for flat, atom in zip(flats[1:], atoms[1:], strict=True):
                fact = _join(fact, flat.fact(atom))
            if facts[0].kind is Kind.DATA and fact.kind is Kind.CONST:
                fact = Fact(Kind.DATA)
            behind = fact.behind or facts[0].behind
            outs.append(dataclasses.replace(fact, whole=None, behind=behind))
        demanded = tuple(f.kind is Kind.DATA for f in outs)
        if not _must_open(eqn) and not any(
            flat.marks or self.converts([flat.fact(a) for a in flat.outs], outs) for flat in flats
        ):
            return self.add("bind", eqn, ins, outs)
        return self.add("branch", eqn, ins, outs, flats, (tuple(False for _ in ins), demanded))

    @staticmethod
    def converts(before: Sequence[Fact], after: Sequence[Fact]) -> bool:
        """Whether a parameter's value becomes data, as one that is carried into a loop does."""
        return any(
            b.kind is Kind.PARAM and a.kind is Kind.DATA
            for b, a in zip(before, after, strict=False)
        )


def _must_open(eqn: Any) -> bool:
    """Whether a loop or branch must be run step by step, with or without sites in it.

    So must a `stop_gradient`, which noise may not pass, and bfloat16, in which it would be lost.
    """
    return stops(eqn) or any(holds_low(jaxpr) for jaxpr in bodies(eqn))


def _data(eqn: Any, behind: bool, fed: bool) -> list[Fact]:
    return [Fact(Kind.DATA, behind=behind, fed=fed) for _ in eqn.outvars]


def _sliced(fact: Fact) -> Fact:
    """What is known of one step's part of a scanned value."""
    if fact.whole is None:
        return fact
    return dataclasses.replace(
        fact, whole=dataclasses.replace(fact.whole, steps=fact.whole.steps + 1)
    )


def _join(one: Fact, two: Fact) -> Fact:
    """What is known of a value that is one or the other."""
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
