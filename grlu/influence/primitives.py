"""Rules of influence for single operations."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from grlu.influence.rows import on_axes, reshaped
from grlu.influence.values import Maybe, anywhere, keep, mapped, meet
from grlu.tracing.program import Atom

Rule = Callable[[Any, Any, Sequence[Atom], Sequence[Maybe]], list[Maybe]]

# Operations with one result that keep every element in place.
SAME = {
    *("sharding_constraint", "layout_constraint", "reshard", "pvary", "pcast", "copy", "name"),
    *("stop_gradient", "reduce_precision", "optimization_barrier", "mulhi", "igamma_grad_a"),
    *("eq_to", "le_to", "lt_to"),
}
AFFINE = {"add", "sub", "neg", "convert_element_type", "add_any", "copy"} | SAME
LINEAR = {
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
    return [mapped(outs[0], axes), *[anywhere(outs[0])] * (len(eqn.invars) - 1)]


def _reshape(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
    (out,) = outs
    if out is None or eqn.params.get("dimensions") is not None:
        return [anywhere(out)] * len(eqn.invars)
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    return [out._replace(digits=reshaped(out.digits, after, before))]


def _squeeze(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
    gone = {d % len(eqn.invars[0].aval.shape) for d in eqn.params["dimensions"]}
    left = [a for a in range(len(eqn.invars[0].aval.shape)) if a not in gone]
    return [mapped(outs[0], dict(enumerate(left)))]


def _transpose(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
    return [mapped(outs[0], dict(enumerate(eqn.params["permutation"])))]


def _reduce(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
    gone = eqn.params.get("axes", eqn.params.get("dimensions"))
    found = []
    for v in eqn.invars:
        rank = len(v.aval.shape)
        left = [a for a in range(rank) if a not in gone]
        found.append(mapped(meet(outs), dict(enumerate(left))) if rank else anywhere(meet(outs)))
    return found


def _along(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
    """Propagate through operations that mix elements along one axis only."""
    params = eqn.params
    axis = params["axis"] if "axis" in params else params["dimension"]
    rank = len(eqn.invars[0].aval.shape)
    return [keep(meet(outs), (a for a in range(rank) if a != axis % rank))] * len(eqn.invars)


def _reverse(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
    rank = len(eqn.invars[0].aval.shape)
    return [keep(outs[0], (a for a in range(rank) if a not in eqn.params["dimensions"]))]


def _leading(trailing: int) -> Rule:
    """Return a rule for operations on the last axes, batched over all other axes."""

    def rule(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
        out = meet(outs)
        return [keep(out, range(len(v.aval.shape) - trailing)) for v in eqn.invars]

    return rule


def _fft(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
    rank = len(eqn.invars[0].aval.shape) - len(eqn.params["fft_lengths"])
    return [keep(outs[0], range(rank))]


def _same_extent(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
    """Propagate through slices and pads: an axis of unchanged extent keeps its meaning."""
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    whole = [a for a in range(len(before)) if before[a] == after[a]]
    if eqn.primitive.name == "pad":
        whole = [a for a in whole if tuple(eqn.params["padding_config"][a]) == (0, 0, 0)]
    return [keep(outs[0], whole), *[anywhere(outs[0])] * (len(eqn.invars) - 1)]


def _update(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
    """Propagate through `dynamic_update_slice(operand, update, *start)`."""
    shape, update = (v.aval.shape for v in eqn.invars[:2])
    whole = [a for a in range(len(shape)) if shape[a] == update[a]]
    rest = [anywhere(outs[0])] * (len(eqn.invars) - 2)
    return [outs[0], keep(outs[0], whole), *rest]


def _together(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
    """Propagate through operations that return each of their inputs."""
    return list(outs)


def _split(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
    rank = len(eqn.invars[0].aval.shape)
    return [keep(meet(outs), (a for a in range(rank) if a != eqn.params["axis"]))]


def _dot(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
    contracted, batch = eqn.params["dimension_numbers"]
    found, place = [], len(batch[0])
    for v, gone, kept in zip(eqn.invars, contracted, batch, strict=True):
        axes = dict(enumerate(kept))
        for a in range(len(v.aval.shape)):
            if a not in gone and a not in kept:
                axes[place] = a
                place += 1
        found.append(mapped(outs[0], axes))
    return found


def _convolution(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
    numbers = eqn.params["dimension_numbers"]
    axes = {numbers.out_spec[0]: numbers.lhs_spec[0]}
    if eqn.params["batch_group_count"] != 1:
        axes = {}
    return [mapped(outs[0], axes), anywhere(outs[0])]


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
    out = meet(outs)
    return [keep(out, kept) if v.aval.shape else anywhere(out) for v in eqn.invars]


def _gather(context: Any, eqn: Any, ins: Sequence[Atom], outs: Sequence[Maybe]) -> list[Maybe]:
    (out,) = outs
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    operand, indices = (v.aval.shape for v in eqn.invars)
    rank = len(eqn.outvars[0].aval.shape)
    # The result's axes that are not offsets are those of the indices, except for the last.
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
            # In `x[arange(B), i]` row b of the result comes from row b of x.
            if column is not None and indices[b] == operand[a] and _counts(column, b):
                axes[place] = a
    return [mapped(out, axes), mapped(out, {place: b for b, place in enumerate(batch)})]


def _counts(column: np.ndarray, axis: int) -> bool:
    """Return True if an array (..., 1) of indices counts up from 0 along an axis."""
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
    return [out, mapped(out, to_indices), mapped(out, to_updates)]


RULES: dict[str, Rule] = {
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
    **dict.fromkeys(("cholesky", "lu", "qr", "eigh", "svd", "eig", "schur"), _leading(2)),
    **dict.fromkeys(("hessenberg", "householder_product", "triangular_solve"), _leading(2)),
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
    return [keep(meet(outs), (a for a in range(rank) if a != axis))]


def _stack(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
    new = eqn.params["axis"]
    axes = {a + (a >= new): a for a in range(len(eqn.invars[0].aval.shape))}
    return [mapped(outs[0], axes)] * len(eqn.invars)


def _unstack(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
    gone = eqn.params["axis"]
    axes = {a: a + (a >= gone) for a in range(len(eqn.outvars[0].aval.shape))}
    return [mapped(meet(outs), axes)]


def _tile(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
    (out,), shape, reps = outs, eqn.invars[0].aval.shape, eqn.params["reps"]
    if out is None or len(shape) != len(reps):
        return [anywhere(out)]
    cut = [size for pair in zip(reps, shape, strict=True) for size in pair]
    digits = reshaped(out.digits, eqn.outvars[0].aval.shape, cut)
    return [out._replace(digits=on_axes(digits, {2 * a + 1: a for a in range(len(shape))}))]


def _first_axis(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
    """Propagate through fused attention: the first axis is the batch, except for a shared bias."""
    out, size = meet(outs), eqn.outvars[0].aval.shape[0]
    shapes = [v.aval.shape for v in eqn.invars]
    return [keep(out, [0] if s and s[0] == size else []) for s in shapes]


def _bitcast(_: Any, eqn: Any, __: Any, outs: Sequence[Maybe]) -> list[Maybe]:
    same = eqn.invars[0].aval.shape == eqn.outvars[0].aval.shape
    return [outs[0] if same else anywhere(outs[0])]


RULES |= {
    "top_k": _top_k,
    "approx_top_k": _top_k,
    "stack": _stack,
    "unstack": _unstack,
    "tile": _tile,
    "device_put": _together,
    "bitcast_convert_type": _bitcast,
    **{f"dot_product_attention_{kind}": _first_axis for kind in ("fwd", "fwd_wrapper")},
}
