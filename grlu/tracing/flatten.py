"""Flattening of jaxprs: inlines calls and records static facts about each value.

A call that holds a layer is replaced by its body, so that the readers of a value can be counted
across calls. Elementwise calls are kept, because they may be activations, as are calls with a
custom derivative.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax.extend.core as jex

from grlu.errors import UserError
from grlu.jaxprs.calls import (
    bodies,
    body,
    has_own_derivative,
    is_call,
    is_inexact,
    opened,
    scanned,
    stops,
)
from grlu.jaxprs.widening import must_open
from grlu.tracing.program import Atom, Literal
from grlu.tracing.recognition import (
    Fact,
    Kind,
    is_elementwise_call,
    is_marked,
    joined,
    sliced,
    still_whole,
)

_CONST = Fact(Kind.CONST)
# Operations without a derivative.
_CALLBACKS = {"pure_callback", "io_callback", "ffi_call"}
# Operations without a reverse-mode derivative, which a layer's weight update needs.
_ONE_WAY = {"while", *_CALLBACKS}
# Operations on arrays that change in place, which cannot be analysed.
_MUTABLE = {"new_ref", "get", "swap", "addupdate", "freeze", "empty_ref", "run_state", "box_get"}
_MUTABLE |= {"box_set", "new_box", "log_read", "log_extend", "new_log", "accum_grad_in_ref"}
# Operations whose body is one arithmetic step, such as a reduction.
_WITH_BODY = {"reduce", "reduce_window", "select_and_scatter", "custom_linear_solve"}


@dataclasses.dataclass(frozen=True)
class Item:
    """Equation of a flat jaxpr.

    Attributes:
        role: "bind"; "meet", where parameters meet data and sites begin; "weights", which only
            takes parameters that are sites themselves; "stop"; "loop" or "branch".
        eqn: the equation.
        ins: its inputs.
        outs: its outputs.
        inner: the flat body of a loop, or the flat branches.
        data: for a loop or branch, flags of the inputs and, in the bodies, of the outputs that must
            be data.
    """

    role: str
    eqn: Any
    ins: tuple[Atom, ...]
    outs: tuple[int, ...]
    inner: tuple["Flat", ...] = ()
    data: tuple[tuple[bool, ...], tuple[bool, ...]] = ((), ())


@dataclasses.dataclass(frozen=True)
class Flat:
    """Jaxpr without calls.

    Attributes:
        ins: variables of its inputs.
        items: its equations.
        outs: its outputs.
        facts: static facts about each variable, by number.
        avals: shape and dtype of each variable, by number.
    """

    ins: tuple[int, ...]
    items: tuple[Item, ...]
    outs: tuple[Atom, ...]
    facts: Mapping[int, Fact]
    avals: Mapping[int, Any]

    def fact(self, atom: Atom) -> Fact:
        """Return the facts about a variable or constant."""
        return _CONST if isinstance(atom, Literal) else self.facts[atom]

    @property
    def marks(self) -> bool:
        """Return True if there is a site or stop to mark, in loops and branches too."""
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
        facts: facts about its inputs.
        names: one name per parameter leaf, for errors.
        closed_over: fact about its constants.

    Raises:
        UserError: if credit would leak through a `stop_gradient`.
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
                "trace; return the new value instead of using jax.new_ref"
            )
        own = has_own_derivative(eqn)
        if is_call(eqn) and not own and not self.kept(eqn, kinds):
            jaxpr, consts = body(eqn)
            return self.equations(jaxpr, [Literal(c) for c in consts], ins)
        if Kind.DATA not in kinds:
            if Kind.PARAM in kinds and name in _ONE_WAY:
                return self.add("weights", eqn, ins, _data(eqn, True, True))
            return self.constant(eqn, ins, facts)
        meets = Kind.PARAM in kinds
        if name == "stop_gradient" and behind:
            return self.add("stop", eqn, ins, [Fact(Kind.DATA, behind=True)])
        if name in ("scan", "cond") and (meets or (behind and must_open(eqn))):
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
        """Return True for a call that may be an activation, which is not inlined."""
        if is_marked(eqn):
            return Kind.PARAM not in kinds
        return Kind.PARAM not in kinds and not stops(eqn) and is_elementwise_call(eqn)

    @staticmethod
    def opaque(eqn: Any) -> bool:
        """Return True for while loops, callbacks and others that may hide layers from analysis."""
        name = eqn.primitive.name
        if name in _CALLBACKS:
            return True
        plain = name in _WITH_BODY or name.startswith("scatter")
        return not plain and not is_call(eqn) and any(True for _ in bodies(eqn))

    def constant(self, eqn: Any, ins: tuple[Atom, ...], facts: Sequence[Fact]) -> Sequence[Atom]:
        """Add an equation of parameters and constants; return its outputs."""
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

    def loop(self, eqn: Any, ins: tuple[Atom, ...], facts: Sequence[Fact]) -> Sequence[Atom]:
        first, carried = scanned(eqn)
        last = first + carried
        seen = [*facts[:last], *(sliced(f) for f in facts[last:])]
        flat = self.fixed_point(eqn.params["jaxpr"], seen, first, carried)
        seen = [flat.facts[v] for v in flat.ins]
        after = [flat.fact(a) for a in flat.outs]
        converts = self.converts(facts, seen) or self.converts(after[:carried], seen[first:last])
        outs = [*seen[first:last], *after[carried:]]
        outs = [dataclasses.replace(f, whole=None) for f in outs]
        if not flat.marks and not converts and not must_open(eqn):
            return self.add("bind", eqn, ins, outs)
        inputs = tuple(f.kind is Kind.DATA for f in seen)
        outputs = (*inputs[first:last], *(False for _ in flat.outs[carried:]))
        return self.add("loop", eqn, ins, outs, (flat,), (inputs, outputs))

    def fixed_point(self, closed: Any, seen: list[Fact], first: int, carried: int) -> Flat:
        """Flatten a loop's body, with facts about the carry that hold at every step."""
        while True:
            flat = flatten(*opened(closed), seen, self.names)
            after = list(seen)
            for i, atom in enumerate(flat.outs[:carried], start=first):
                # A carry that the body returns unchanged is still its initial value.
                same = atom == flat.ins[i]
                after[i] = seen[i] if same else joined(seen[i], flat.fact(atom))
            if after == seen:
                return flat
            seen = after

    def branch(self, eqn: Any, ins: tuple[Atom, ...], facts: Sequence[Fact]) -> Sequence[Atom]:
        branches = eqn.params["branches"]
        flats = tuple(flatten(*opened(b), facts[1:], self.names) for b in branches)
        outs = []
        for atoms in zip(*(flat.outs for flat in flats), strict=True):
            fact = flats[0].fact(atoms[0])
            for flat, atom in zip(flats[1:], atoms[1:], strict=True):
                fact = joined(fact, flat.fact(atom))
            if facts[0].kind is Kind.DATA and fact.kind is Kind.CONST:
                fact = Fact(Kind.DATA)
            behind = fact.behind or facts[0].behind
            outs.append(dataclasses.replace(fact, whole=None, behind=behind))
        demanded = tuple(f.kind is Kind.DATA for f in outs)
        if not must_open(eqn) and not any(
            flat.marks or self.converts([flat.fact(a) for a in flat.outs], outs) for flat in flats
        ):
            return self.add("bind", eqn, ins, outs)
        return self.add("branch", eqn, ins, outs, flats, (tuple(False for _ in ins), demanded))

    @staticmethod
    def converts(before: Sequence[Fact], after: Sequence[Fact]) -> bool:
        """Return True if a parameter's value becomes data, as when a loop carries it."""
        return any(
            b.kind is Kind.PARAM and a.kind is Kind.DATA
            for b, a in zip(before, after, strict=False)
        )


def _data(eqn: Any, behind: bool, fed: bool) -> list[Fact]:
    return [Fact(Kind.DATA, behind=behind, fed=fed) for _ in eqn.outvars]
