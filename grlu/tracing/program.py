"""Programs: objectives as lists of operations in which every site is marked.

A *site* is the result of the operation in which a parameter first meets a value that depends on
the batch: `x @ W + b`, a convolution, an embedding's row plus its position, `x̂ * scale + bias`.
It is a layer's pre-activation, found in the jaxpr of the model, so it needs no name, base class or
registration: any NNX module works, with raw parameters, tied weights, or modules that are called
twice. A site in a loop has one value per step. Elements of a parameter that the data choose, such
as a layer's active rows, are still a parameter: their product with data is the site. So are units
that the network itself chooses, such as winners: the others have no site.

A run (`grlu/tracing/run.py`) calls `visit(arrival)` at every site and continues with the value that
it returns: `fn(z)` leaves the network unchanged, `fn(z + noise)` perturbs it, and
`fn(stop_gradient(z))` cuts it, so that a VJP to the recorded `z` reaches only that layer. `fn` is
the site's activation, if it is a function of the site alone, else the identity.

A visitor may receive arrays and record arrays for its site. Inside a loop these have a leading axis
of steps: the loop scans over the given arrays and stacks the recorded ones. A visitor is therefore
a pure function, and only these arrays pass between it and its caller.

Credit does not flow through `stop_gradient`: a perturbed pass replaces the value at each one by the
value that the clean pass recorded.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from grlu.tracing.recognition import Dense


@dataclasses.dataclass(frozen=True)
class Site:
    """Place in a program to which credit is assigned.

    Attributes:
        index: position in the order of execution.
        params: indices of the parameter leaves that reach it, in the order of the inputs.
        shape: shape of one value; a complex value has a last axis of 2, real and imaginary part.
        dtype: dtype of the value.
        loops: lengths of the enclosing loops, outermost first.
        fed: True if credit flows from its input to another site.
        first: True if its input depends on no other site, not even through a `stop_gradient`.
        weight: True if it is a parameter's own value, perturbed before it meets the data because no
            layer can be identified there (a while loop, a callback).
        added: True if it is the sum of data and a value that depends on parameters only.
        dense: its parameters and input if it is a plain dense layer, else None.
        chosen: the dense layer whose units the data choose at this site, else None.
        indexed: True if the data choose its units, or the weights of its units.
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
    chosen: Dense | None = None
    indexed: bool = False


class Arrival(NamedTuple):
    """Argument of a visitor.

    Attributes:
        site: the site.
        z: its value.
        fn: its activation.
        given: values that the caller of `run` gives for the site (in a loop, this step's slice), or
            None.
        x: the input of a dense layer, else None.
    """

    site: Site
    z: jax.Array
    fn: Callable[[jax.Array], jax.Array]
    given: Any
    x: jax.Array | None


# Arrival -> (value to continue with, pytree to record)
Visit = Callable[[Arrival], tuple[jax.Array, Any]]


class Literal(NamedTuple):
    """Constant of a program."""

    value: Any


Atom = int | Literal  # A variable's number, or a constant.


@dataclasses.dataclass(frozen=True)
class Bind:
    """Operation: evaluate an equation."""

    eqn: Any
    ins: tuple[Atom, ...]
    outs: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Settle:
    """Operation: visit a site; `outs[0]` is the activation of the site's value `ins[position]`.

    Without an equation the activation is the identity. For a dense layer, `ins` ends with the
    layer's input.
    """

    site: Site
    eqn: Any
    ins: tuple[Atom, ...]
    outs: tuple[int, ...]
    position: int


@dataclasses.dataclass(frozen=True)
class Stop:
    """Operation: stop a gradient on which the outputs depend; `index` numbers these stops."""

    index: int
    eqn: Any
    ins: tuple[Atom, ...]
    outs: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Loop:
    """Operation: scan over a body that contains sites or stops."""

    eqn: Any
    ins: tuple[Atom, ...]
    outs: tuple[int, ...]
    body: "Program"


@dataclasses.dataclass(frozen=True)
class Branch:
    """Operation: choose among branches, at least one of which contains sites or stops."""

    eqn: Any
    ins: tuple[Atom, ...]
    outs: tuple[int, ...]
    branches: tuple["Program", ...]


Op = Bind | Settle | Stop | Loop | Branch


class Outcome(NamedTuple):
    """Result of a run: outputs, and by index the records of sites and the values at stops."""

    outs: list[Any]
    records: dict[int, Any]
    stopped: dict[int, Any]


@dataclasses.dataclass(frozen=True)
class Program:
    """List of operations.

    Attributes:
        ins: variables of the inputs.
        ops: the operations, in order.
        outs: the outputs.
        avals: shape and dtype of every variable.
        constants: variables that depend on neither parameters nor data.
        sites: the sites, including those in loops and branches.
        stops: indices of the stops, including those in loops and branches.
    """

    ins: tuple[int, ...]
    ops: tuple[Op, ...]
    outs: tuple[Atom, ...]
    avals: Mapping[int, Any]
    constants: frozenset[int]
    sites: tuple[Site, ...]
    stops: tuple[int, ...]
