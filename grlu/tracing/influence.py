"""Influence: which examples' rewards each value of a program can change.

The analysis runs backwards from the rewards. It is sound for any operation: what it has no rule for
is taken to spread an element's influence over all examples. So credit is never missed; where
influence is not known exactly, more rewards than necessary speak for an element, which adds noise
to the estimate and no bias.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from grlu.tracing.build import plain
from grlu.tracing.jaxprs import bind, body, is_call, scanned
from grlu.tracing.program import Atom, Bind, Branch, Literal, Loop, Program, Settle, Site
from grlu.tracing.recognition import ELEMENTWISE
from grlu.tracing.rows import Digits, common, every_example, on_axes, reshaped, rows

# Constants that an index is compared with are computed up to this number of elements.
_KNOWN_SIZE = 1 << 20


class Influence(NamedTuple):
    """How a value changes the rewards; None stands for not at all.

    Attributes:
        digits: digits of the example that an element belongs to.
        through: whether some of it passes another site on the way.
        affine: whether all of it is affine, with constant factors: the credit is then known.
    """

    digits: Digits
    through: bool = False
    affine: bool = False


Maybe = Influence | None


@dataclasses.dataclass(frozen=True)
class Found:
    """What is found of a site.

    Attributes:
        digits: digits of the example that an element belongs to.
        live: whether the reward depends on it.
        output: whether the reward depends on it, without another site between.
        penalty: whether it is a term of the reward that depends on parameters alone.
    """

    digits: Digits
    live: bool
    output: bool
    penalty: bool


def influences(program: Program, batch_size: int) -> dict[int, Found]:
    """Return what is found of every site, by index.

    Args:
        program: its first output is the rewards, shape (B,).
        batch_size: B.
    """
    rewards = Influence(every_example(batch_size), affine=True)
    analysis = _Analysis((batch_size,))
    analysis.backward(program, [rewards, *[None] * (len(program.outs) - 1)], 0)
    return analysis.found


def _meet(values: Iterable[Maybe]) -> Maybe:
    """Return the influence of a value that is read at several places."""
    alive = [v for v in values if v is not None]
    if not alive:
        return None
    return Influence(
        functools.reduce(common, (v.digits for v in alive)),
        any(v.through for v in alive),
        all(v.affine for v in alive),
    )


def _anywhere(value: Maybe) -> Maybe:
    """Return the influence of what may reach any element of a value: only the step is kept."""
    return None if value is None else Influence(_steps(value.digits), value.through)


def _steps(digits: Digits) -> Digits:
    return frozenset(d for d in digits if d.axis < 0)


def _bent(value: Maybe) -> Maybe:
    return None if value is None else value._replace(affine=False)


class _Analysis:
    def __init__(self, rewards_shape: tuple[int, ...]):
        self.rewards_shape = rewards_shape
        self.found: dict[int, Found] = {}

    def backward(self, program: Program, outs: Sequence[Maybe], depth: int) -> list[Maybe]:
        """Return the influence of a program's inputs, given that of its outputs.

        `depth` is the number of loops around it.
        """
        seen: dict[int, list[Maybe]] = {}

        def add(atom: Atom, value: Maybe) -> None:
            if value is not None and isinstance(atom, int):
                seen.setdefault(atom, []).append(value)

        def read(variable: int) -> Maybe:
            return _meet(seen.get(variable, ()))

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
                ins = [None]  # A perturbed pass takes the clean pass's value instead.
            for atom, value in zip(op.ins, ins, strict=True):
                add(atom, value)
        return [read(v) for v in program.ins]

    def settle(self, op: Settle, out: Maybe, context: "_Context") -> list[Maybe]:
        """Note what is found of a site; return the influence of what it is made of."""
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
            # Noise may enter behind the activation too.
            z = None if z is None else z._replace(digits=common(z.digits, out.digits))
        live = z is not None
        output = z is not None and not z.through
        self.found[site.index] = Found(z.digits if z else frozenset(), live, output, penalty)
        if z is not None:
            ins[op.position] = z if penalty else z._replace(through=True, affine=False)
        return ins

    def one_a_reward(self, site: Site, digits: Digits) -> bool:
        """Return whether a site has one element, or one for each reward that it moves."""
        if not site.loops:
            return site.shape in ((), self.rewards_shape)
        shape = (*site.loops, *site.shape)
        return rows(shape, digits, len(site.loops), *self.rewards_shape).units == 1

    def loop(self, eqn: Any, program: Program, outs: Sequence[Maybe], depth: int) -> list[Maybe]:
        """Return the influence of a loop's inputs: constants, carry, and what it scans over."""
        first, carried = scanned(eqn)
        step = -1 - depth

        def inside(value: Maybe) -> Maybe:
            """Of one step's part of a stack."""
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

        def whole(value: Maybe) -> Maybe:
            """Of what is not one step's alone."""
            if value is None:
                return None
            return value._replace(digits=frozenset(d for d in value.digits if d.axis != step))

        last = list(outs[:carried])
        stacked = [inside(v) for v in outs[carried:]]
        carry: list[Maybe] = [None] * carried
        while True:
            after = [_meet((a, whole(b))) for a, b in zip(last, carry, strict=True)]
            ins = self.backward(program, [*after, *stacked], depth + 1)
            new = [
                _meet((a, whole(b)))
                for a, b in zip(carry, ins[first : first + carried], strict=True)
            ]
            if new == carry:
                break
            carry = new
        consts = [whole(v) for v in ins[:first]]
        # What enters the first step, or leaves the loop if it has none.
        entering = [_meet(pair) for pair in zip(carry, last, strict=True)]
        if eqn.params["length"]:
            entering = carry
        return [*consts, *entering, *(outside(v) for v in ins[first + carried :])]

    def branch(self, programs: Sequence[Program], outs: Sequence[Maybe], depth: int) -> list[Maybe]:
        """Return the influence of the choice and of the inputs of the branches."""
        ins = [self.backward(program, outs, depth) for program in programs]
        choice = _anywhere(_meet(outs))
        if choice is not None and any(self.found[s.index].live for p in programs for s in p.sites):
            choice = choice._replace(through=True)
        return [choice, *(_meet(values) for values in zip(*ins, strict=True))]


def _sites(op: Branch) -> list[Site]:
    return [s for program in op.branches for s in program.sites]


class _Context(NamedTuple):
    """What a rule for one equation may ask."""

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
        if len(outs) == 1 and (name in ELEMENTWISE or name in _SAME):
            return self.elementwise(eqn, ins, outs[0])
        rule = _RULES.get(name)
        if rule is None:
            return [_anywhere(_meet(outs))] * len(eqn.invars)
        found = rule(self, eqn, ins, outs)
        return found if name in _LINEAR else [_bent(v) for v in found]

    def elementwise(self, eqn: Any, ins: Sequence[Atom], out: Maybe) -> list[Maybe]:
        shape = eqn.outvars[0].aval.shape
        constant = [self.constant(a) for a in ins]
        name = eqn.primitive.name
        linear = name in _AFFINE or (
            (name == "mul" and any(constant)) or (name == "div" and constant[1])
        )
        out = out if linear else _bent(out)
        return [_stretched(out, v.aval.shape, shape) for v in eqn.invars]

    def constant(self, atom: Atom) -> bool:
        return isinstance(atom, Literal) or atom in self.program.constants

    def value(self, atom: Atom) -> Any:
        """Return the value of an integer constant if it is known before anything runs."""
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
        """Return a column (..., 1) of gathering indices (..., n), if it is known."""
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
    """The influence of an operand that may be a scalar, or have axes of size one."""
    if tuple(before) == tuple(after):
        return out
    if len(before) != len(after):
        return None if out is None else out._replace(digits=_steps(out.digits))
    return _keep(out, (a for a in range(len(after)) if before[a] == after[a]))


def _closed(eqn: Any) -> Any:
    jaxpr, consts = body(eqn)
    return jax.extend.core.ClosedJaxpr(jaxpr, consts)


def _mapped(value: Maybe, axes: dict[int, int]) -> Maybe:
    """From an output's axes to an input's."""
    return None if value is None else value._replace(digits=on_axes(value.digits, axes))


def _keep(value: Maybe, axes: Iterable[int]) -> Maybe:
    return _mapped(value, {a: a for a in axes})


Rule = Callable[[_Context, Any, Sequence[Atom], Sequence[Maybe]], list[Maybe]]

# Operations with one result that keeps every element at its place.
_SAME = {
    *("sharding_constraint", "layout_constraint", "reshard", "pvary", "pcast", "copy", "name"),
    *("stop_gradient", "reduce_precision", "optimization_barrier", "mulhi", "igamma_grad_a"),
    *("eq_to", "le_to", "lt_to"),
}
_AFFINE = {"add", "sub", "neg", "convert_element_type", "add_any", "copy"} | _SAME
_LINEAR = {
    "broadcast_in_dim",
    "reshape",
    "squeeze",
    "transpose",
    "reduce_sum",
    "slice",
    "expand_dims",
}


def _broadcast(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    dims = eqn.params["broadcast_dimensions"]
    axes = {d: i for i, d in enumerate(dims) if before[i] == after[d]}
    return [_mapped(outs[0], axes), *[_anywhere(outs[0])] * (len(eqn.invars) - 1)]


def _reshape(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
    (out,) = outs
    if out is None or eqn.params.get("dimensions") is not None:
        return [_anywhere(out)] * len(eqn.invars)
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    return [out._replace(digits=reshaped(out.digits, after, before))]


def _squeeze(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
    gone = {d % len(eqn.invars[0].aval.shape) for d in eqn.params["dimensions"]}
    left = [a for a in range(len(eqn.invars[0].aval.shape)) if a not in gone]
    return [_mapped(outs[0], dict(enumerate(left)))]


def _transpose(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
    return [_mapped(outs[0], dict(enumerate(eqn.params["permutation"])))]


def _reduce(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
    gone = eqn.params.get("axes", eqn.params.get("dimensions"))
    found = []
    for v in eqn.invars:
        rank = len(v.aval.shape)
        left = [a for a in range(rank) if a not in gone]
        found.append(
            _mapped(_meet(outs), dict(enumerate(left))) if rank else _anywhere(_meet(outs))
        )
    return found


def _along(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
    """Operations along one axis that leave the others alone."""
    params = eqn.params
    axis = params["axis"] if "axis" in params else params["dimension"]
    rank = len(eqn.invars[0].aval.shape)
    return [_keep(_meet(outs), (a for a in range(rank) if a != axis % rank))] * len(eqn.invars)


def _reverse(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
    rank = len(eqn.invars[0].aval.shape)
    return [_keep(outs[0], (a for a in range(rank) if a not in eqn.params["dimensions"]))]


def _leading(trailing: int) -> Rule:
    """Operations on the last axes, one by one for the others."""

    def rule(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
        out = _meet(outs)
        return [_keep(out, range(len(v.aval.shape) - trailing)) for v in eqn.invars]

    return rule


def _fft(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
    rank = len(eqn.invars[0].aval.shape) - len(eqn.params["fft_lengths"])
    return [_keep(outs[0], range(rank))]


def _same_extent(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
    """Slices and pads: an axis that is whole keeps its meaning."""
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    whole = [a for a in range(len(before)) if before[a] == after[a]]
    if eqn.primitive.name == "pad":
        whole = [a for a in whole if tuple(eqn.params["padding_config"][a]) == (0, 0, 0)]
    return [_keep(outs[0], whole), *[_anywhere(outs[0])] * (len(eqn.invars) - 1)]


def _update(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
    """`dynamic_update_slice(operand, update, *start)`."""
    shape, update = (v.aval.shape for v in eqn.invars[:2])
    whole = [a for a in range(len(shape)) if shape[a] == update[a]]
    rest = [_anywhere(outs[0])] * (len(eqn.invars) - 2)
    return [outs[0], _keep(outs[0], whole), *rest]


def _together(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
    """Operations that take and return several arrays, each its like."""
    return list(outs)


def _split(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
    rank = len(eqn.invars[0].aval.shape)
    return [_keep(_meet(outs), (a for a in range(rank) if a != eqn.params["axis"]))]


def _dot(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
    contracted, batch = eqn.params["dimension_numbers"]
    found, place = [], len(batch[0])
    for v, gone, kept in zip(eqn.invars, contracted, batch, strict=True):
        axes = dict(enumerate(kept))
        for a in range(len(v.aval.shape)):
            if a not in gone and a not in kept:
                axes[place] = a
                place += 1
        found.append(_mapped(outs[0], axes))
    return found


def _convolution(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
    numbers = eqn.params["dimension_numbers"]
    axes = {numbers.out_spec[0]: numbers.lhs_spec[0]}
    if eqn.params["batch_group_count"] != 1:
        axes = {}
    return [_mapped(outs[0], axes), _anywhere(outs[0])]


def _window(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
    params, rank = eqn.params, len(eqn.invars[0].aval.shape)
    kept = [
        a
        for a in range(rank)
        if params["window_dimensions"][a] == 1
        and params["window_strides"][a] == 1
        and tuple(params["padding"][a]) == (0, 0)
        and (params.get("base_dilation") or (1,) * rank)[a] == 1
    ]
    out = _meet(outs)
    return [_keep(out, kept) if v.aval.shape else _anywhere(out) for v in eqn.invars]


def _gather(context: Any, eqn: Any, ins: Sequence[Atom], outs: Sequence[Maybe]) -> list[Maybe]:
    (out,) = outs
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    operand, indices = (v.aval.shape for v in eqn.invars)
    rank = len(eqn.outvars[0].aval.shape)
    # The axes of the result that are not a slice's are those of the indices, but for the last.
    batch = [a for a in range(rank) if a not in numbers.offset_dims]
    sliced = [
        a
        for a in range(len(operand))
        if a not in numbers.collapsed_slice_dims and a not in numbers.operand_batching_dims
    ]
    axes = {}
    for place, a in zip(numbers.offset_dims, sliced, strict=True):
        if a not in numbers.start_index_map and sizes[a] == operand[a]:
            axes[place] = a
    pairs = zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
    for a, b in pairs:
        axes[batch[b]] = a
    for number, a in enumerate(numbers.start_index_map):
        column = context.column(ins[1], number) if a in numbers.collapsed_slice_dims else None
        for b, place in enumerate(batch):
            # `x[arange(B), i]` takes from row b what becomes row b.
            if column is not None and indices[b] == operand[a] and _counts(column, b):
                axes[place] = a
    return [_mapped(out, axes), _mapped(out, {place: b for b, place in enumerate(batch)})]


def _counts(column: np.ndarray, axis: int) -> bool:
    """Whether an array (..., 1) of indices is its own index along an axis."""
    shape = [1] * column.ndim
    shape[axis] = column.shape[axis]
    return bool(np.all(column == np.arange(column.shape[axis]).reshape(shape)))


def _scatter(context: Any, eqn: Any, ins: Sequence[Atom], outs: Sequence[Maybe]) -> list[Maybe]:
    (out,) = outs
    numbers = eqn.params["dimension_numbers"]
    operand, indices, updates = (v.aval.shape for v in eqn.invars)
    batch = [a for a in range(len(updates)) if a not in numbers.update_window_dims]
    window = [
        a
        for a in range(len(operand))
        if a not in numbers.inserted_window_dims and a not in numbers.operand_batching_dims
    ]
    to_updates, to_indices = {}, {}
    for place, a in zip(numbers.update_window_dims, window, strict=True):
        if a not in numbers.scatter_dims_to_operand_dims and updates[place] == operand[a]:
            to_updates[a] = place
    pairs = zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True)
    for a, b in pairs:
        to_updates[a], to_indices[a] = batch[b], b
    for number, a in enumerate(numbers.scatter_dims_to_operand_dims):
        column = context.column(ins[1], number) if a in numbers.inserted_window_dims else None
        for b, place in enumerate(batch):
            if column is not None and indices[b] == operand[a] and _counts(column, b):
                to_updates[a], to_indices[a] = place, b
    return [out, _mapped(out, to_indices), _mapped(out, to_updates)]


_RULES: dict[str, Rule] = {
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "transpose": _transpose,
    "concatenate": _along,
    "sort": _along,
    "rev": _reverse,
    "slice": _same_extent,
    "dynamic_slice": _same_extent,
    "pad": _same_extent,
    "dynamic_update_slice": _update,
    "optimization_barrier": _together,
    "split": _split,
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "gather": _gather,
    "fft": _fft,
    "cholesky": _leading(2),
    "lu": _leading(2),
    "qr": _leading(2),
    "eigh": _leading(2),
    "svd": _leading(2),
    "eig": _leading(2),
    "schur": _leading(2),
    "hessenberg": _leading(2),
    "householder_product": _leading(2),
    "triangular_solve": _leading(2),
    "select_and_gather_add": _window,
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), _along),
    **{f"reduce_{kind}": _reduce for kind in ("sum", "max", "min", "prod", "and", "or", "xor")},
    **dict.fromkeys(("argmax", "argmin", "reduce"), _reduce),
    **{f"reduce_window{kind}": _window for kind in ("", "_sum", "_max", "_min")},
    **{f"scatter{kind}": _scatter for kind in ("", "-add", "-sub", "-mul", "-min", "-max")},
    **{f"scatter_{kind}": _scatter for kind in ("add", "sub", "mul", "min", "max")},
}


def _top_k(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
    rank = len(eqn.invars[0].aval.shape)
    axis = eqn.params.get("axis", eqn.params.get("reduction_dimension", rank - 1)) % rank
    return [_keep(_meet(outs), (a for a in range(rank) if a != axis))]


def _stack(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
    new = eqn.params["axis"]
    axes = {a + (a >= new): a for a in range(len(eqn.invars[0].aval.shape))}
    return [_mapped(outs[0], axes)] * len(eqn.invars)


def _unstack(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
    gone = eqn.params["axis"]
    axes = {a: a + (a >= gone) for a in range(len(eqn.outvars[0].aval.shape))}
    return [_mapped(_meet(outs), axes)]


def _tile(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
    (out,), shape, reps = outs, eqn.invars[0].aval.shape, eqn.params["reps"]
    if out is None or len(shape) != len(reps):
        return [_anywhere(out)]
    cut = [size for pair in zip(reps, shape, strict=True) for size in pair]
    digits = reshaped(out.digits, eqn.outvars[0].aval.shape, cut)
    return [out._replace(digits=on_axes(digits, {2 * a + 1: a for a in range(len(shape))}))]


def _first_axis(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
    """Fused attention: the first axis is the batch's, but of a bias that all examples share."""
    out, size = _meet(outs), eqn.outvars[0].aval.shape[0]
    shapes = [v.aval.shape for v in eqn.invars]
    return [_keep(out, [0] if s and s[0] == size else []) for s in shapes]


def _bitcast(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
    same = eqn.invars[0].aval.shape == eqn.outvars[0].aval.shape
    return [outs[0] if same else _anywhere(outs[0])]


_RULES |= {
    "top_k": _top_k,
    "approx_top_k": _top_k,
    "stack": _stack,
    "unstack": _unstack,
    "tile": _tile,
    "device_put": _together,
    "bitcast_convert_type": _bitcast,
    **{f"dot_product_attention_{kind}": _first_axis for kind in ("fwd", "fwd_wrapper")},
}
