"""Construction of programs: finds the beginning and end of each site of a flat jaxpr."""

import collections
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax.extend.core as jex
import jax.numpy as jnp

from grlu.jaxprs.calls import is_inexact, opened
from grlu.tracing.flatten import Flat, Item, flatten
from grlu.tracing.program import Atom, Bind, Branch, Literal, Loop, Op, Program, Settle, Site, Stop
from grlu.tracing.recognition import (
    Fact,
    Kind,
    Pending,
    Whole,
    dense_site,
    extends,
    is_activation,
    weighs,
    with_bias,
)
from grlu.tracing.shifts import cancels


def build(closed: jex.ClosedJaxpr, params: int, consts: int, names: Sequence[str]) -> Program:
    """Build a program from a jaxpr of `(*params, *consts, *data)`.

    The program's inputs are those of the jaxpr, followed by its constants, which count as data: a
    function may close over a batch.

    Args:
        closed: the jaxpr; its first output is the rewards.
        params: number of trainable leaves.
        consts: number of leaves that depend on neither parameters nor batch.
        names: one name per trainable leaf.

    Raises:
        UserError: if credit would leak through a `stop_gradient`.
    """
    facts = [Fact(Kind.PARAM, frozenset({i}), whole=Whole(i)) for i in range(params)]
    facts += [Fact(Kind.CONST)] * consts
    facts += [Fact(Kind.DATA)] * (len(closed.jaxpr.invars) - len(facts))
    flat = flatten(closed.jaxpr, closed.consts, facts, names, Fact(Kind.DATA))
    # The reward is data, even where it is a function of the parameters alone.
    rewards = tuple(i == 0 for i in range(len(flat.outs)))
    return _Builder(flat, itertools.count(), itertools.count(), ()).build(rewards, first=1)


def plain(jaxpr: Any) -> Program:
    """Build a program without sites from an open or closed jaxpr."""
    jaxpr, consts = opened(jaxpr)
    flat = flatten(jaxpr, consts, [Fact(Kind.DATA)] * len(jaxpr.invars), ())
    demanded = (False,) * len(flat.outs)
    return _Builder(flat, itertools.count(), itertools.count(), ()).build(demanded)


class _Builder:
    def __init__(
        self, flat: Flat, sites: Iterator[int], stops: Iterator[int], loops: tuple[int, ...]
    ):
        self.flat, self.sites, self.stops, self.loops = flat, sites, stops, loops
        self.avals = dict(flat.avals)
        self.fresh = itertools.count(len(self.avals))
        atoms = [*(a for item in flat.items for a in item.ins), *flat.outs]
        self.uses = collections.Counter(a for a in atoms if isinstance(a, int))
        self.chosen = self.choices()
        self.uses.subtract(
            a for i in flat.items if i.role == "stop" for a in self.chosen & {*i.ins}
        )
        self.constants = frozenset(v for v, f in flat.facts.items() if f.kind is Kind.CONST)
        self.pending: dict[int, Pending] = {}
        self.settled: dict[int, int] = {}  # Variable of a site's value -> variable after the site.
        self.ops: list[Op] = []
        self.found: list[Site] = []
        self.stopped: list[int] = []

    def build(self, demanded: Sequence[bool], first: int | None = None) -> Program:
        """Build the program, with the outputs that are `demanded` as data.

        The rewards depend on the first `first` outputs, or on all if it is None.
        """
        for item in self.flat.items:
            self.item(item)
        outs = [self.complete(a, d) for a, d in zip(self.flat.outs, demanded, strict=True)]
        # If a stop's value cancels, as a softmax's maximum does, each pass uses its own value: the
        # clean pass's value could cause overflow.
        for place, op in enumerate(self.ops):
            if isinstance(op, Stop):
                shape = self.avals[op.outs[0]].shape
                if cancels(op, self.ops, outs[:first], shape):
                    self.ops[place] = Bind(op.eqn, op.ins, op.outs)
                else:
                    self.stopped.append(op.index)
        return Program(
            self.flat.ins,
            tuple(self.ops),
            tuple(outs),
            self.avals,
            self.constants,
            tuple(self.found),
            tuple(self.stopped),
        )

    def choices(self) -> set[int]:
        """Return the values read only by a gather of the network's choice and by stops.

        The choice may read such a value behind a stop before the gather completes its site.
        """
        readers = collections.defaultdict(list)
        for item in self.flat.items:
            for a in {a for a in item.ins if isinstance(a, int)} if item.role != "stop" else ():
                readers[a].append(item)
        return {
            a
            for a, (item, *others) in readers.items()
            if not others
            and a not in self.flat.outs
            and item.role == "bind"
            and item.eqn.primitive.name == "gather"
            and item.ins[0] == a
            and self.flat.fact(item.ins[1]).behind
        }

    def item(self, item: Item) -> None:
        facts = [self.flat.fact(a) for a in item.ins]
        pending = [self.pending.get(a) if isinstance(a, int) else None for a in item.ins]
        if item.role in ("bind", "meet") and any(pending):
            alone = all(
                self.uses[a] == 1 and a not in self.settled
                for a in item.ins
                if isinstance(a, int) and a in self.pending
            )
            if alone and item.role == "bind" and is_activation(item.eqn, facts, pending):
                position = next(i for i, p in enumerate(pending) if p)
                self.settle(item.ins[position], item, position)
                return
            if alone and extends(item.eqn, facts, pending):
                self.extend(item, facts, pending)
                return
        if item.role == "stop" and self.chosen & {*item.ins}:
            self.ops.append(Stop(next(self.stops), item.eqn, item.ins, item.outs))
            return
        demanded = item.data[0] or (item.role == "weights",) * len(item.ins)
        ins = tuple(self.complete(a, d) for a, d in zip(item.ins, demanded, strict=True))
        if item.role == "meet":
            self.ops.append(Bind(item.eqn, ins, item.outs))
            self.meet(item, facts, ins)
        elif item.role == "stop":
            self.ops.append(Stop(next(self.stops), item.eqn, ins, item.outs))
        elif item.role in ("loop", "branch"):
            self.nested(item, ins)
        else:
            self.ops.append(Bind(item.eqn, ins, item.outs))

    def meet(self, item: Item, facts: Sequence[Fact], ins: Sequence[Atom]) -> None:
        """Begin sites at the outputs of an equation in which parameters meet data."""
        params = frozenset[int]().union(*(f.params for f in facts))
        name = item.eqn.primitive.name
        for out, v in zip(item.outs, item.eqn.outvars, strict=True):
            if is_inexact(v.aval):
                self.pending[out] = Pending(
                    params,
                    any(f.behind for f in facts),
                    any(f.fed for f in facts),
                    gain=name in {"mul", "div"},
                    added=name in {"add", "sub", "add_any"},
                    gathered=name == "gather" and facts[1].kind is not Kind.PARAM,
                    dense=dense_site(item.eqn, facts, ins, out),
                )

    def extend(self, item: Item, facts: Sequence[Fact], pending: Sequence[Pending | None]) -> None:
        self.ops.append(Bind(item.eqn, item.ins, item.outs))
        before = [p for p in pending if p]
        params = frozenset[int]().union(*(f.params for f in facts), *(p.params for p in before))
        (out,) = item.outs
        name = item.eqn.primitive.name
        # Indices choose among the units; they are not an input of the layer.
        inputs: list[Pending | Fact] = [*before]
        if name != "gather":
            inputs += [f for f, p in zip(facts, pending, strict=True) if p is None]
        self.pending[out] = Pending(
            params,
            any(i.behind for i in inputs),
            any(i.fed for i in inputs),
            gathered=all(p.gathered for p in before)
            and name not in {"add", "sub", "add_any", "dot_general", "mul"},
            indexed=any(p.indexed for p in before)
            or name == "gather"
            or weighs(item.eqn, facts, pending),
            gain=any(p.gain for p in before),
            added=all(p.added for p in before),
            dense=with_bias(item.eqn, facts, pending, out),
            chosen=before[0].dense if name == "gather" else None,
        )
        for a in item.ins:
            if isinstance(a, int):
                self.pending.pop(a, None)

    def complete(self, atom: Atom, data: bool) -> Atom:
        """Complete the site of an atom, if any; return the atom to read instead.

        With `data`, a parameter's own value becomes a site.
        """
        if isinstance(atom, Literal):
            return atom
        if atom in self.settled:
            return self.settled[atom]
        fact = self.flat.fact(atom)
        if atom in self.pending:
            return self.settle(atom)
        if data and fact.kind is Kind.PARAM:
            self.pending[atom] = Pending(fact.params, False, False, added=True)
            after = self.settle(atom, weight=True)
            # Other readers still see the parameter.
            del self.settled[atom]
            return after
        return atom

    def settle(
        self, z: Any, item: Item | None = None, position: int = 0, weight: bool = False
    ) -> int:
        """Mark a site, whose activation, if any, is the equation of `item`."""
        pending = self.pending.pop(z)
        aval = self.avals[z]
        dense = pending.dense
        split = jnp.issubdtype(aval.dtype, jnp.complexfloating)
        site = Site(
            next(self.sites),
            pending.params,
            (*aval.shape, 2) if split else tuple(aval.shape),
            jnp.finfo(aval.dtype).dtype if split else aval.dtype,
            self.loops,
            pending.fed,
            not pending.behind and not self.loops,
            weight,
            pending.added,
            dense,
            pending.chosen,
            pending.indexed,
        )
        self.found.append(site)
        ins = (z,) if item is None else item.ins
        more = () if dense is None else (dense.x,)
        if item is None:
            out = next(self.fresh)
            self.avals[out] = aval
            self.settled[z] = out
        else:
            (out,) = item.outs
        eqn = None if item is None else item.eqn
        self.ops.append(Settle(site, eqn, (*ins, *more), (out,), position))
        return out

    def nested(self, item: Item, ins: tuple[Atom, ...]) -> None:
        loops = self.loops
        if item.role == "loop":
            loops = (*loops, item.eqn.params["length"])
        programs = []
        for flat in item.inner:
            program = _Builder(flat, self.sites, self.stops, loops).build(item.data[1])
            self.found += program.sites
            self.stopped += program.stops
            programs.append(program)
        if item.role == "loop":
            self.ops.append(Loop(item.eqn, ins, item.outs, programs[0]))
        else:
            self.ops.append(Branch(item.eqn, ins, item.outs, tuple(programs)))
