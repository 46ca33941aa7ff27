"""Analysis of which examples' rewards each value of a program can change.

The analysis runs backwards from the rewards. It is sound for any operation: an operation without a
rule is assumed to spread an element's influence over all examples. Credit is therefore never
missed; where influence is not known exactly, an element gets credit for more rewards than
necessary, which adds noise to the estimate but no bias.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from grlu.influence.primitives import AFFINE, LINEAR, RULES, SAME
from grlu.influence.rows import Digits, common, every_example, on_axes, rows
from grlu.influence.values import Influence, Maybe, anywhere, bent, keep, meet, steps
from grlu.jaxprs.calls import bind, body, is_call, scanned
from grlu.tracing.build import plain
from grlu.tracing.program import Atom, Bind, Branch, Literal, Loop, Program, Settle, Site
from grlu.tracing.recognition import ELEMENTWISE

# Largest number of elements of a constant index that is evaluated during the analysis.
_KNOWN_SIZE = 1 << 20


@dataclasses.dataclass(frozen=True)
class Found:
    """Result of the analysis for one site.

    Attributes:
        digits: digits of the example that an element belongs to.
        live: True if the reward depends on it.
        output: True if the reward depends on it without another site in between.
        penalty: True if it is a term of the reward that depends on parameters only.
    """

    digits: Digits
    live: bool
    output: bool
    penalty: bool


def influences(program: Program, batch_size: int) -> dict[int, Found]:
    """Analyse the influence of every site; return the results by site index.

    Args:
        program: its first output is the rewards, shape (B,).
        batch_size: B.
    """
    rewards = Influence(every_example(batch_size), affine=True)
    analysis = _Analysis((batch_size,))
    analysis.backward(program, [rewards, *[None] * (len(program.outs) - 1)], 0)
    return analysis.found


class _Analysis:
    def __init__(self, rewards_shape: tuple[int, ...]):
        self.rewards_shape = rewards_shape
        self.found: dict[int, Found] = {}

    def backward(self, program: Program, outs: Sequence[Maybe], depth: int) -> list[Maybe]:
        """Return the influence of a program's inputs, given that of its outputs.

        `depth` is the number of enclosing loops.
        """
        seen: dict[int, list[Maybe]] = {}

        def add(atom: Atom, value: Maybe) -> None:
            if value is not None and isinstance(atom, int):
                seen.setdefault(atom, []).append(value)

        def read(variable: int) -> Maybe:
            return meet(seen.get(variable, ()))

        for atom, out in zip(program.outs, outs, strict=True):
            add(atom, out)
        makers = {v: op for op in program.ops for v in op.outs}
        context = _Context(self, program, makers, depth)
        for op in reversed(program.ops):
            values = [read(v) for v in op.outs]
            if all(v is None for v in values) and not isinstance(op, Settle):
                if isinstance(op, Loop | Branch):
                    for site in op.body.sites if isinstance(op, Loop) else _sites(op):
                        self.found[site.index] = Found(frozenset(), False, False, False)
                continue
            if isinstance(op, Bind):
                ins = context.equation(op.eqn, op.ins, values)
            elif isinstance(op, Settle):
                ins = self.settle(op, values[0], context)
            elif isinstance(op, Loop):
                ins = self.loop(op.eqn, op.body, values, depth)
            elif isinstance(op, Branch):
                ins = self.branch(op.branches, values, depth)
            else:
                ins = [None]  # A perturbed pass uses the value of the clean pass.
            for atom, value in zip(op.ins, ins, strict=True):
                add(atom, value)
        return [read(v) for v in program.ins]

    def settle(self, op: Settle, out: Maybe, context: "_Context") -> list[Maybe]:
        """Record the result for a site; return the influence of its inputs."""
        site = op.site
        penalty = (
            out is not None
            and out.affine
            and not out.through
            and op.eqn is None
            and site.added
            and self.one_a_reward(site, out.digits)
        )
        ins: list[Maybe] = [None] * len(op.ins)
        z = out
        if op.eqn is not None and out is not None:
            before = context.equation(op.eqn, op.ins[: len(op.eqn.invars)], [out])
            z = before[op.position]
            # Noise may also enter after the activation.
            z = None if z is None else z._replace(digits=common(z.digits, out.digits))
        live = z is not None
        output = z is not None and not z.through
        self.found[site.index] = Found(z.digits if z else frozenset(), live, output, penalty)
        if z is not None:
            ins[op.position] = z if penalty else z._replace(through=True, affine=False)
        return ins

    def one_a_reward(self, site: Site, digits: Digits) -> bool:
        """Return True if a site has one element, or one per reward that it affects."""
        if not site.loops:
            return site.shape in ((), self.rewards_shape)
        shape = (*site.loops, *site.shape)
        return rows(shape, digits, len(site.loops), *self.rewards_shape).units == 1

    def loop(self, eqn: Any, program: Program, outs: Sequence[Maybe], depth: int) -> list[Maybe]:
        """Return the influence of a loop's inputs: constants, carry and scanned values."""
        first, carried = scanned(eqn)
        step = -1 - depth

        def inside(value: Maybe) -> Maybe:
            """Return the influence of one step's slice of a stacked value."""
            if value is None:
                return None
            axes = {0: step, **{a: a - 1 for a in range(1, 64)}}
            return value._replace(digits=on_axes(value.digits, axes))

        def outside(value: Maybe) -> Maybe:
            if value is None:
                return None
            shifted = on_axes(value.digits, {a: a + 1 for a in range(64)})
            return value._replace(
                digits=frozenset(d._replace(axis=0) if d.axis == step else d for d in shifted)
            )

        def any_step(value: Maybe) -> Maybe:
            """Return the influence of a value that several steps share."""
            if value is None:
                return None
            return value._replace(digits=frozenset(d for d in value.digits if d.axis != step))

        last = list(outs[:carried])
        stacked = [inside(v) for v in outs[carried:]]
        carry: list[Maybe] = [None] * carried
        while True:
            after = [meet((a, any_step(b))) for a, b in zip(last, carry, strict=True)]
            ins = self.backward(program, [*after, *stacked], depth + 1)
            new = [
                meet((a, any_step(b)))
                for a, b in zip(carry, ins[first : first + carried], strict=True)
            ]
            if new == carry:
                break
            carry = new
        consts = [any_step(v) for v in ins[:first]]
        # The initial carry enters the first step, or leaves the loop if there are no steps.
        entering = [meet(pair) for pair in zip(carry, last, strict=True)]
        if eqn.params["length"]:
            entering = carry
        return [*consts, *entering, *(outside(v) for v in ins[first + carried :])]

    def branch(self, programs: Sequence[Program], outs: Sequence[Maybe], depth: int) -> list[Maybe]:
        """Return the influence of the branch index and of the inputs of the branches."""
        ins = [self.backward(program, outs, depth) for program in programs]
        choice = anywhere(meet(outs))
        if choice is not None and any(self.found[s.index].live for p in programs for s in p.sites):
            choice = choice._replace(through=True)
        return [choice, *(meet(values) for values in zip(*ins, strict=True))]


def _sites(op: Branch) -> list[Site]:
    return [s for program in op.branches for s in program.sites]


class _Context(NamedTuple):
    """Context of one equation, for the rules of influence."""

    analysis: _Analysis
    program: Program
    makers: Mapping[int, Any]
    depth: int

    def equation(self, eqn: Any, ins: Sequence[Atom], outs: Sequence[Maybe]) -> list[Maybe]:
        """Return the influence of an equation's inputs, given that of its outputs."""
        name = eqn.primitive.name
        if is_call(eqn):
            return self.analysis.backward(plain(_closed(eqn)), outs, self.depth)
        if name == "scan":
            program = plain(eqn.params["jaxpr"])
            return self.analysis.loop(eqn, program, outs, self.depth)
        if name == "cond":
            programs = [plain(b) for b in eqn.params["branches"]]
            return self.analysis.branch(programs, outs, self.depth)
        if len(outs) == 1 and (name in ELEMENTWISE or name in SAME):
            return self.elementwise(eqn, ins, outs[0])
        rule = RULES.get(name)
        if rule is None:
            return [anywhere(meet(outs))] * len(eqn.invars)
        found = rule(self, eqn, ins, outs)
        return found if name in LINEAR else [bent(v) for v in found]

    def elementwise(self, eqn: Any, ins: Sequence[Atom], out: Maybe) -> list[Maybe]:
        shape = eqn.outvars[0].aval.shape
        constant = [self.constant(a) for a in ins]
        name = eqn.primitive.name
        linear = name in AFFINE or (
            (name == "mul" and any(constant)) or (name == "div" and constant[1])
        )
        out = out if linear else bent(out)
        return [_stretched(out, v.aval.shape, shape) for v in eqn.invars]

    def constant(self, atom: Atom) -> bool:
        return isinstance(atom, Literal) or atom in self.program.constants

    def value(self, atom: Atom) -> Any:
        """Return the value of a constant if it is known at trace time, else None."""
        if isinstance(atom, Literal):
            return None if isinstance(atom.value, jax.core.Tracer) else np.asarray(atom.value)
        aval, maker = self.program.avals[atom], self.makers.get(atom)
        if atom not in self.program.constants or not isinstance(maker, Bind):
            return None
        if math.prod(aval.shape) > _KNOWN_SIZE or maker.eqn.effects:
            return None
        values = [self.value(a) for a in maker.ins]
        if any(v is None for v in values):
            return None
        with jax.ensure_compile_time_eval():
            outs = bind(maker.eqn, values)
        return np.asarray(outs[maker.outs.index(atom)])

    def column(self, indices: Atom, number: int) -> Any:
        """Return a column (..., 1) of gather indices (..., n) if it is known, else None."""
        known = self.value(indices)
        if known is not None:
            return known[..., number : number + 1]
        maker = self.makers.get(indices) if isinstance(indices, int) else None
        if not isinstance(maker, Bind) or maker.eqn.primitive.name != "concatenate":
            return None
        if maker.eqn.params["dimension"] != len(maker.eqn.outvars[0].aval.shape) - 1:
            return None
        for piece, v in zip(maker.ins, maker.eqn.invars, strict=True):
            size = v.aval.shape[-1]
            if number < size:
                known = self.value(piece)
                return None if known is None else known[..., number : number + 1]
            number -= size
        return None


def _stretched(out: Maybe, before: Sequence[int], after: Sequence[int]) -> Maybe:
    """Return the influence of an operand that may be a scalar or have axes of size one."""
    if tuple(before) == tuple(after):
        return out
    if len(before) != len(after):
        return None if out is None else out._replace(digits=steps(out.digits))
    return keep(out, (a for a in range(len(after)) if before[a] == after[a]))


def _closed(eqn: Any) -> Any:
    jaxpr, consts = body(eqn)
    return jax.extend.core.ClosedJaxpr(jaxpr, consts)
