"""Programs: an objective as a list of operations in which every site is marked.

A *site* is the result of the operation in which a parameter first meets a value that depends on
the batch: `x @ W + b`, a convolution, an embedding's row plus its position, `x̂ * scale + bias`.
It is a layer's pre-activation, found in the jaxpr of the model, so it needs no name, no base class
and no registration: any NNX module works, with raw parameters, tied weights, or modules that are
called twice. A site in a loop has one value per step.

`Program.run` calls `visit(arrival)` at every site and goes on with what it returns: `fn(z)` leaves
the network as it is, `fn(z + noise)` perturbs it, and `fn(stop_gradient(z))` cuts it, so that a
VJP to the recorded `z` reaches that layer alone. `fn` is the site's activation where it has one (a
function of the site alone), else the identity.

A site's visitor may be handed arrays and may record some. Inside a loop these have a leading axis
of steps: the loop scans over what is given and stacks what is recorded. So a visitor is a pure
function, and nothing but these arrays passes between it and its caller.

Credit does not flow through `stop_gradient`: a perturbed pass replaces what comes to one by the
value of the clean pass, which records it.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from grlu.tracing.jaxprs import bind, scanned
from grlu.tracing.recognition import Dense
from grlu.tracing.widening import LOW, bind_wide, widened


@dataclasses.dataclass(frozen=True)
class Site:
    """One place where credit is assigned.

    Attributes:
        index: position in the order of execution.
        params: indices of the parameter leaves that reach it, in the order of the inputs.
        shape: shape of one value; a complex one has a last axis of 2, its real and imaginary part.
        dtype: dtype of the value.
        loops: lengths of the loops around it, outermost first.
        fed: whether credit flows from its input to another site.
        first: whether its input depends on no site at all, not even through a `stop_gradient`.
        weight: whether it is a parameter's own value, perturbed before it meets the data, because
            it meets them where no layer can be told apart (a while loop, a callback).
        added: whether it is the sum of data and a value that depends on parameters alone.
        dense: how it is made, if it is a plain dense layer.
    """

    index: int
    params: frozenset[int]
    shape: tuple[int, ...]
    dtype: Any
    loops: tuple[int, ...] = ()
    fed: bool = False
    first: bool = False
    weight: bool = False
    added: bool = False
    dense: Dense | None = None


class Arrival(NamedTuple):
    """What a visitor sees.

    Attributes:
        site: the site.
        z: its value.
        fn: its activation.
        given: what the caller of `run` gives for the site, this step's part in a loop; or None.
        x: the input of a dense layer; else None.
    """

    site: Site
    z: jax.Array
    fn: Callable[[jax.Array], jax.Array]
    given: Any
    x: jax.Array | None


# From an arrival to the value to go on with, and what to record of it (any pytree).
Visit = Callable[[Arrival], tuple[jax.Array, Any]]


class Literal(NamedTuple):
    """A constant of a program."""

    value: Any


Atom = int | Literal  # A variable's number, or a constant.


@dataclasses.dataclass(frozen=True)
class Bind:
    """Run an equation."""

    eqn: Any
    ins: tuple[Atom, ...]
    outs: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Settle:
    """Visit a site: `outs[0]` is the activation of the site's value `ins[position]`.

    Without an equation the activation is the identity. `ins` ends with the dense layer's input, if
    there is one.
    """

    site: Site
    eqn: Any
    ins: tuple[Atom, ...]
    outs: tuple[int, ...]
    position: int


@dataclasses.dataclass(frozen=True)
class Stop:
    """Stop the gradient, by number `index` of all the program's stops."""

    index: int
    ins: tuple[Atom, ...]
    outs: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Loop:
    """Scan over a body that holds sites or stops."""

    eqn: Any
    ins: tuple[Atom, ...]
    outs: tuple[int, ...]
    body: "Program"


@dataclasses.dataclass(frozen=True)
class Branch:
    """Choose among branches of which one holds sites or stops."""

    eqn: Any
    ins: tuple[Atom, ...]
    outs: tuple[int, ...]
    branches: tuple["Program", ...]


Op = Bind | Settle | Stop | Loop | Branch


class Outcome(NamedTuple):
    """Result of a run: outputs, and by index what sites recorded and what came to the stops."""

    outs: list[Any]
    records: dict[int, Any]
    stopped: dict[int, Any]


@dataclasses.dataclass(frozen=True)
class Program:
    """A list of operations.

    Attributes:
        ins: variables of the inputs.
        ops: the operations, in order.
        outs: the outputs.
        avals: shape and dtype of every variable.
        constants: variables that depend on neither parameters nor data.
        sites: the sites in it, those of its loops and branches included.
        stops: indices of its stops, likewise.
        cuts: those of stops whose value matters, unlike that of a softmax's maximum.
    """

    ins: tuple[int, ...]
    ops: tuple[Op, ...]
    outs: tuple[Atom, ...]
    avals: Mapping[int, Any]
    constants: frozenset[int]
    sites: tuple[Site, ...]
    stops: tuple[int, ...]
    cuts: tuple[int, ...] = ()

    def run(
        self,
        args: Sequence[Any],
        visit: Visit,
        given: Mapping[int, Any] | None = None,
        stops: Mapping[int, Any] | None = None,
        *,
        wide: bool = False,
        keep_stops: bool = False,
    ) -> Outcome:
        """Run the program.

        Args:
            args: the inputs.
            visit: visitor of the sites.
            given: by site, what to hand to the visitor; leading axes of steps in loops.
            stops: by stop, what passes it; None lets pass what comes.
            wide: whether to run bfloat16 and float16 operations in float32.
            keep_stops: whether to report what came to the stops.
        """
        return _Run(visit, given or {}, stops or {}, wide, keep_stops)(self, args)


class _Run(NamedTuple):
    """One run of a program, or of a loop's body in one step."""

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
            env.update(zip(op.outs, outs, strict=True))
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
        """What is given for the sites and stops of a loop or a branch."""
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
                # A branch that is not taken records zeros: its layers have no part in the reward.
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
    """The value with the carry's type, which rounding or weak types may have changed."""
    return value if value.dtype == carry.dtype else value.astype(carry.dtype)
