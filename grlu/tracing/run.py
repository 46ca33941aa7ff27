"""Execution of programs: one pass, with a visitor at every site."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from grlu.jaxprs.calls import bind, scanned
from grlu.jaxprs.widening import LOW, bind_wide, widened
from grlu.tracing.program import (
    Arrival,
    Atom,
    Bind,
    Branch,
    Literal,
    Loop,
    Outcome,
    Program,
    Settle,
    Stop,
    Visit,
)


def run(
    program: Program,
    args: Sequence[Any],
    visit: Visit,
    given: Mapping[int, Any] | None = None,
    stops: Mapping[int, Any] | None = None,
    *,
    wide: bool = False,
    keep_stops: bool = False,
    replace: Mapping[int, Any] | None = None,
    read: Sequence[int] | None = None,
) -> Outcome:
    """Run a program.

    Args:
        program: the program.
        args: its inputs.
        visit: visitor of the sites.
        given: values for the visitor, by site; in loops, with leading axes of steps.
        stops: replacement values at the stops, by stop; other stops pass their input.
        wide: run bfloat16 and float16 operations in float32.
        keep_stops: return the values at the stops.
        replace: values of variables outside loops, instead of those that the program computes.
        read: variables outside loops to return instead of the program's outputs.

    With `replace` or `read`, the run skips operations that do not affect the result.
    """
    if replace is not None or read is not None:
        program = _cut(program, tuple(replace or ()), read)
        args = [*args, *(replace or {}).values()]
    return _Run(visit, given or {}, stops or {}, wide, keep_stops)(program, args)


def _cut(program: Program, replaced: Collection[int], read: Sequence[int] | None) -> Program:
    """Return the part of a program that computes its outputs, or the variables `read`.

    The variables `replaced` become inputs, after the others.
    """
    outs = program.outs if read is None else tuple(read)
    needed = {a for a in outs if isinstance(a, int)} - set(replaced)
    ops = []
    for op in reversed(program.ops):
        made = [v for v in op.outs if v not in replaced]
        if needed.intersection(made):
            ops.append(op)
            needed.difference_update(made)
            needed.update(a for a in op.ins if isinstance(a, int) and a not in replaced)
    return dataclasses.replace(
        program, ins=(*program.ins, *replaced), ops=tuple(reversed(ops)), outs=outs
    )


class _Run(NamedTuple):
    """Run of a program, or of a loop's body in one step."""

    visit: Visit
    given: Mapping[int, Any]
    stops: Mapping[int, Any]
    wide: bool
    keep_stops: bool

    def __call__(self, program: Program, args: Sequence[Any]) -> Outcome:
        widen = widened if self.wide else lambda value: value
        env: dict[int, Any] = dict(zip(program.ins, map(widen, args), strict=True))
        records: dict[int, Any] = {}
        stopped: dict[int, Any] = {}

        def read(atom: Atom) -> Any:
            return widen(atom.value) if isinstance(atom, Literal) else env[atom]

        for op in program.ops:
            values = [read(atom) for atom in op.ins]
            if isinstance(op, Bind):
                outs = self.bind(op.eqn, values)
            elif isinstance(op, Settle):
                value, records[op.site.index] = self.settle(op, values)
                outs = [value]
            elif isinstance(op, Stop):
                if self.keep_stops:
                    stopped[op.index] = jax.lax.stop_gradient(values[0])
                outs = [jax.lax.stop_gradient(self.stops.get(op.index, values[0]))]
            else:
                run = self.loop if isinstance(op, Loop) else self.branch
                outs, more, kept = run(op, values)  # type: ignore[arg-type]
                records |= more
                stopped |= kept
            env.update((v, o) for v, o in zip(op.outs, outs, strict=True) if v not in env)
        return Outcome([read(atom) for atom in program.outs], records, stopped)

    def bind(self, eqn: Any, values: Sequence[Any]) -> list[Any]:
        return bind_wide(eqn, values) if self.wide else bind(eqn, values)

    def settle(self, op: Settle, values: list[Any]) -> tuple[Any, Any]:
        z, x = values[op.position], values[-1] if op.site.dense else None
        split = jnp.iscomplexobj(z)

        def fn(z: jax.Array) -> jax.Array:
            z = _joined(z) if split else z
            if op.eqn is not None:
                inputs = values[: len(op.eqn.invars)]
                inputs[op.position] = z
                (z,) = self.bind(op.eqn, inputs)
            return _parts(z) if split else z

        given = self.given.get(op.site.index)
        value, record = self.visit(Arrival(op.site, _parts(z) if split else z, fn, given, x))
        return (_joined(value) if split else value), record

    def inside(self, program: Program) -> tuple[dict[int, Any], dict[int, Any]]:
        """Return the given values of the sites and stops inside a loop or branch."""
        sites = {s.index: self.given[s.index] for s in program.sites if s.index in self.given}
        return sites, {i: self.stops[i] for i in program.stops if i in self.stops}

    def loop(self, op: Loop, values: list[Any]) -> Outcome:
        params = op.eqn.params
        first, carried = scanned(op.eqn)
        consts, init = values[:first], values[first : first + carried]
        init = [jnp.asarray(v) for v in init]

        def step(carry: list[Any], scanned: Any) -> tuple[list[Any], Any]:
            xs, (given, stops) = scanned
            run = self._replace(given=given, stops=stops)
            outs, records, stopped = run(op.body, [*consts, *carry, *xs])
            after = [_like(o, c) for o, c in zip(outs[:carried], carry, strict=True)]
            return after, (outs[carried:], records, stopped)

        xs = values[first + carried :], self.inside(op.body)
        options = {k: params[k] for k in ("length", "reverse", "unroll")}
        carry, (ys, records, stopped) = jax.lax.scan(step, init, xs, **options)
        return Outcome([*carry, *ys], records, stopped)

    def branch(self, op: Branch, values: list[Any]) -> Outcome:
        index, *inputs = values

        def taken(program: Program) -> Callable[..., Outcome]:
            def run(inputs: Any, inside: Any) -> Outcome:
                given, stops = inside
                done = self._replace(given=given, stops=stops)(program, inputs)
                wanted = [v.aval.dtype for v in op.eqn.outvars]
                if self.wide:
                    wanted = [jnp.dtype(jnp.float32) if d in LOW else d for d in wanted]
                pairs = zip(done.outs, wanted, strict=True)
                return done._replace(outs=[_of_type(o, dtype) for o, dtype in pairs])

            return run

        inside = [self.inside(program) for program in op.branches]
        runs = [taken(program) for program in op.branches]
        shapes = [jax.eval_shape(r, inputs, i) for r, i in zip(runs, inside, strict=True)]

        def filled(number: int) -> Callable[..., Outcome]:
            def run(inputs: Any, inside: Any) -> Outcome:
                outs, records, stopped = runs[number](inputs, inside[number])
                # A branch that is not taken records zeros: its layers do not affect the reward.
                for other in (s for i, s in enumerate(shapes) if i != number):
                    records = records | jax.tree.map(_zeros, other.records)
                    stopped = stopped | jax.tree.map(_zeros, other.stopped)
                return Outcome(outs, records, stopped)

            return run

        choices = [filled(i) for i in range(len(runs))]
        return jax.lax.switch(index, choices, inputs, inside)


def _parts(z: jax.Array) -> jax.Array:
    return jnp.stack([jnp.real(z), jnp.imag(z)], axis=-1)


def _joined(z: jax.Array) -> jax.Array:
    return jax.lax.complex(z[..., 0], z[..., 1])


def _zeros(shape: jax.ShapeDtypeStruct) -> jax.Array:
    return jnp.zeros(shape.shape, shape.dtype)


def _of_type(value: Any, dtype: Any) -> Any:
    extended = jax.dtypes.issubdtype(dtype, jax.dtypes.extended)
    return value if extended else jnp.asarray(value, dtype)


def _like(value: Any, carry: Any) -> Any:
    """Cast a value to the carry's dtype, which rounding or weak types may have changed."""
    return value if value.dtype == carry.dtype else value.astype(carry.dtype)
