"""Interpreter of jaxprs in NumPy, for networks too small to be worth compiling.

`evaluate(fn, *args)` traces a function and interprets its jaxpr, loops and branches included. The
few missing operations are JAX's own, each compiled a single time.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

# Parameters with the wrapped jaxpr of calls.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
}


def evaluate(fn: Callable[..., Any], *args: Any) -> Any:
    """Return the result of `fn(*args)` as NumPy arrays."""
    closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
    values = [_numpy(x) for x in jax.tree.leaves(args)]
    with np.errstate(all="ignore"):
        outs = _run(closed.jaxpr, closed.consts, values)
    return jax.tree.unflatten(jax.tree.structure(shapes), outs)


def _numpy(x: Any) -> Any:
    """Convert to a NumPy array, except for PRNG keys."""
    return x if isinstance(x, jax.Array) and _is_key(x) else np.asarray(x)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.extended)


def _run(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, map(_numpy, consts), strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Any:
        if isinstance(atom, jex.Literal):
            return np.asarray(atom.val, atom.aval.dtype)
        return env[atom]

    for eqn in _needed(jaxpr):
        outs = _equation(eqn, [read(v) for v in eqn.invars])
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _needed(jaxpr: Any) -> list[Any]:
    """Return the equations on which the outputs depend."""
    wanted, kept = {v for v in jaxpr.outvars if not isinstance(v, jex.Literal)}, []
    for eqn in reversed(jaxpr.eqns):
        if not wanted.isdisjoint(eqn.outvars):
            wanted.update(v for v in eqn.invars if not isinstance(v, jex.Literal))
            kept.append(eqn)
    return kept[::-1]


def _equation(eqn: Any, values: list[Any]) -> Sequence[Any]:
    name, params = eqn.primitive.name, eqn.params
    if name in _CALLS:
        return _body(params[_CALLS[name]], values)
    if name in _CONTROL:
        return _CONTROL[name](params, values)
    known = _OPERATIONS.get(name)
    plain = all(isinstance(v, np.ndarray | np.generic) for v in values)
    if known is None or not plain or any(_is_key(v.aval) for v in eqn.outvars):
        return _by_jax(eqn, values)
    out = known(params, eqn.outvars[0].aval, *map(_raised, values))
    if not eqn.primitive.multiple_results:
        out = [out]
    return [
        o if o.dtype == v.aval.dtype else o.astype(v.aval.dtype)
        for o, v in zip(map(np.asarray, out), eqn.outvars, strict=True)
    ]


def _raised(x: Any) -> Any:
    """Raise low precision to float32, in which NumPy computes; the result is rounded once."""
    return x.astype(np.float32) if x.dtype in _LOW else x


_LOW = (np.dtype(jnp.bfloat16), np.dtype(np.float16))


def _by_jax(eqn: Any, values: list[Any]) -> list[Any]:
    values = [jnp.asarray(v) if isinstance(v, np.ndarray | np.generic) else v for v in values]
    out = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
    return [_numpy(o) for o in (out if eqn.primitive.multiple_results else [out])]


# Loops and branches.


def _body(wrapped: Any, values: Sequence[Any]) -> list[Any]:
    return _run(getattr(wrapped, "jaxpr", wrapped), getattr(wrapped, "consts", ()), values)


def _scan(params: dict[str, Any], values: list[Any]) -> list[Any]:
    if "ft_in" in params:  # From JAX 0.11 on.
        first, second, _ = (len(list(part)) for part in params["ft_in"].unpack())
    else:
        first, second = params["num_consts"], params["num_carry"]
    consts, carry, xs = values[:first], values[first : first + second], values[first + second :]
    steps = range(params["length"])
    rows: list[Any] = [None for _ in steps]
    for i in reversed(steps) if params["reverse"] else steps:
        outs = _body(params["jaxpr"], [*consts, *carry, *(x[i] for x in xs)])
        carry, rows[i] = outs[: len(carry)], outs[len(carry) :]
    return [*carry, *(_stacked(column) for column in zip(*rows, strict=True))]


def _stacked(column: Sequence[Any]) -> Any:
    return np.stack(column) if isinstance(column[0], np.ndarray | np.generic) else jnp.stack(column)


def _while(params: dict[str, Any], values: list[Any]) -> list[Any]:
    first = params["cond_nconsts"]
    last = first + params["body_nconsts"]
    asked, run, state = values[:first], values[first:last], values[last:]
    while bool(_body(params["cond_jaxpr"], [*asked, *state])[0]):
        state = _body(params["body_jaxpr"], [*run, *state])
    return state


def _cond(params: dict[str, Any], values: list[Any]) -> list[Any]:
    branches = params["branches"]
    return _body(branches[min(max(int(values[0]), 0), len(branches) - 1)], values[1:])


_CONTROL: dict[str, Callable[[dict[str, Any], list[Any]], list[Any]]] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "debug_callback": lambda params, values: [],
}


# Operations: functions of the equation's parameters, its first output's type, and values.


def _broadcast_in_dim(p: Any, out: Any, x: Any, *_: Any) -> Any:
    shape = [1] * len(p["shape"])
    for axis, size in zip(p["broadcast_dimensions"], np.shape(x), strict=True):
        shape[axis] = size
    return np.broadcast_to(np.reshape(x, shape), p["shape"])


def _dot_general(p: Any, out: Any, x: Any, y: Any) -> Any:
    (x_sum, y_sum), (x_batch, y_batch) = p["dimension_numbers"]

    def matrices(v: Any, batch: Any, summed: Any, summed_last: bool) -> tuple[Any, list[int]]:
        free = [d for d in range(v.ndim) if d not in batch and d not in summed]
        sizes = [int(np.prod([v.shape[d] for d in dims])) for dims in (free, summed)]
        order = [*batch, *free, *summed] if summed_last else [*batch, *summed, *free]
        lead = [v.shape[d] for d in batch]
        shape = sizes if summed_last else sizes[::-1]
        return v.transpose(order).reshape(*lead, *shape), free

    left, _ = matrices(x, x_batch, x_sum, True)
    right, _ = matrices(y, y_batch, y_sum, False)
    return np.matmul(left, right).reshape(out.shape)


def _pad(p: Any, out: Any, x: Any, value: Any) -> Any:
    for axis, (low, high, between) in enumerate(p["padding_config"]):
        size = x.shape[axis]
        full = size + max(0, size - 1) * between
        shape = (*x.shape[:axis], max(0, low) + full + max(0, high), *x.shape[axis + 1 :])
        padded = np.full(shape, value, x.dtype)
        where: list[Any] = [slice(None)] * x.ndim
        where[axis] = slice(max(0, low), max(0, low) + full, between + 1)
        padded[tuple(where)] = x
        where[axis] = slice(max(0, -low), shape[axis] - max(0, -high))
        x = padded[tuple(where)]
    return x


def _slice(p: Any, out: Any, x: Any) -> Any:
    strides = p["strides"] or [1] * x.ndim
    limits = zip(p["start_indices"], p["limit_indices"], strides, strict=True)
    return x[tuple(slice(*s) for s in limits)]


def _dynamic_slice(p: Any, out: Any, x: Any, *starts: Any) -> Any:
    return x[_window(x.shape, p["slice_sizes"], starts)]


def _dynamic_update_slice(p: Any, out: Any, x: Any, update: Any, *starts: Any) -> Any:
    x = np.array(x)
    x[_window(x.shape, update.shape, starts)] = update
    return x


def _window(shape: Any, sizes: Any, starts: Any) -> tuple[slice, ...]:
    clamped = (
        min(max(int(start), 0), whole - size)
        for whole, size, start in zip(shape, sizes, starts, strict=True)
    )
    return tuple(slice(s, s + size) for s, size in zip(clamped, sizes, strict=True))


def _indices(
    indices: Any,
    operand: Sequence[int],
    window: Sequence[int],
    shape: Sequence[int],
    offset_dims: Sequence[int],
    dropped: Sequence[int],
    mapped: Sequence[int],
    batching: Sequence[int],
    indices_batching: Sequence[int],
) -> tuple[tuple[Any, ...], Any]:
    """Find the places in the operand of a gather's outputs or a scatter's updates.

    Returns:
        One array of indices per axis of the operand, and a mask of those within bounds.
    """
    rest = [d for d in range(len(shape)) if d not in offset_dims]

    def along(v: Any) -> Any:
        spread = [1] * len(shape)
        for axis, size in zip(rest, v.shape, strict=True):
            spread[axis] = size
        return v.reshape(spread)

    free = [d for d in range(len(operand)) if d not in dropped and d not in batching]
    found, inside = [], np.ones((1,) * len(shape), bool)
    for d, size in enumerate(operand):
        index: Any = np.zeros((1,) * len(shape), np.int64)
        if d in mapped:
            start = indices[..., list(mapped).index(d)].astype(np.int64)
            inside = inside & along((start >= 0) & (start <= size - window[d]))
            index = index + along(np.clip(start, 0, size - window[d]))
        if d in batching:
            axis = indices_batching[list(batching).index(d)]
            numbers = np.indices(indices.shape[:-1])[axis]
            index = index + along(numbers)
        if d in free:
            spread = [1] * len(shape)
            spread[offset_dims[free.index(d)]] = window[d]
            index = index + np.arange(window[d]).reshape(spread)
        found.append(np.broadcast_to(index, shape))
    return tuple(found), np.broadcast_to(inside, shape)


def _gather(p: Any, out: Any, x: Any, indices: Any) -> Any:
    d = p["dimension_numbers"]
    where, inside = _indices(
        indices, x.shape, p["slice_sizes"], out.shape, d.offset_dims, d.collapsed_slice_dims,
        d.start_index_map, d.operand_batching_dims, d.start_indices_batching_dims,
    )  # fmt: skip
    gathered = x[where]
    if "FILL" not in str(p["mode"]).upper():
        return gathered
    fill = p["fill_value"]
    if fill is None:
        fill = np.nan if np.issubdtype(out.dtype, np.inexact) else _filler(out.dtype)
    return np.where(inside, gathered, np.asarray(fill, x.dtype))


def _filler(dtype: Any) -> Any:
    if dtype == np.bool_:
        return True
    return np.iinfo(dtype).min if np.issubdtype(dtype, np.signedinteger) else np.iinfo(dtype).max


def _scatter(combine: Any) -> Callable[..., Any]:
    def scatter(p: Any, out: Any, x: Any, indices: Any, updates: Any) -> Any:
        d = p["dimension_numbers"]
        sizes, free = [1] * x.ndim, iter(d.update_window_dims)
        for axis in range(x.ndim):
            if axis not in d.inserted_window_dims and axis not in d.operand_batching_dims:
                sizes[axis] = updates.shape[next(free)]
        where, inside = _indices(
            indices, x.shape, sizes, updates.shape, d.update_window_dims, d.inserted_window_dims,
            d.scatter_dims_to_operand_dims, d.operand_batching_dims,
            d.scatter_indices_batching_dims,
        )  # fmt: skip
        if "CLIP" in str(p["mode"]).upper():
            inside = np.ones_like(inside)
        x = np.array(x)
        chosen = tuple(w[inside] for w in where)
        if combine is None:
            x[chosen] = updates[inside]
        else:
            combine.at(x, chosen, updates[inside])
        return x

    return scatter


def _sort(p: Any, out: Any, *values: Any) -> Any:
    axis = p["dimension"]
    order = np.lexsort(values[: p["num_keys"]][::-1], axis=axis)
    return [np.take_along_axis(v, order, axis) for v in values]


def _fft(p: Any, out: Any, x: Any) -> Any:
    (length,) = p["fft_lengths"]
    kind = str(getattr(p["fft_type"], "name", p["fft_type"])).lower().rsplit(".", 1)[-1]
    return getattr(np.fft, kind)(x, n=length)


def _cumulative(ufunc: Any) -> Callable[..., Any]:
    def cumulative(p: Any, out: Any, x: Any) -> Any:
        axis = p["axis"]
        if p["reverse"]:
            return np.flip(ufunc.accumulate(np.flip(x, axis), axis=axis), axis)
        return ufunc.accumulate(x, axis=axis)

    return cumulative


def _reduced(ufunc: Any) -> Callable[..., Any]:
    return lambda p, out, x: ufunc.reduce(x, axis=tuple(p["axes"]))


def _select(p: Any, out: Any, which: Any, *cases: Any) -> Any:
    if which.dtype == np.bool_:
        return np.where(which, cases[1], cases[0])
    return np.choose(np.broadcast_to(which, cases[0].shape), cases)


def _iota(p: Any, out: Any) -> Any:
    shape = [1] * len(p["shape"])
    shape[p["dimension"]] = -1
    numbers = np.arange(p["shape"][p["dimension"]]).astype(p["dtype"])
    return np.broadcast_to(numbers.reshape(shape), p["shape"])


def _logistic(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def _divided(x: Any, y: Any) -> Any:
    if np.issubdtype(x.dtype, np.integer):
        return np.trunc(x / np.where(y == 0, 1, y))
    return x / y


def _plain(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap an operation that depends only on its values."""
    return lambda p, out, *values: fn(*values)


_OPERATIONS: dict[str, Callable[..., Any]] = {
    **{
        name: _plain(fn)
        for name, fn in {
            "add": np.add, "add_any": np.add, "sub": np.subtract, "mul": np.multiply,
            "div": _divided, "rem": np.fmod, "neg": np.negative, "abs": np.abs, "sign": np.sign,
            "max": np.maximum, "min": np.minimum, "pow": np.power, "exp": np.exp, "log": np.log,
            "log1p": np.log1p, "expm1": np.expm1, "tanh": np.tanh, "logistic": _logistic,
            "sin": np.sin, "cos": np.cos, "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x),
            "square": np.square, "floor": np.floor, "ceil": np.ceil,
            "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal,
            "gt": np.greater, "ge": np.greater_equal, "and": np.bitwise_and, "or": np.bitwise_or,
            "xor": np.bitwise_xor, "not": np.invert, "is_finite": np.isfinite,
            "shift_right_logical": np.right_shift, "shift_left": np.left_shift,
            "real": np.real, "imag": np.imag, "conj": np.conj, "complex": lambda x, y: x + 1j * y,
            "copy": lambda x: x, "copy_p": lambda x: x, "stop_gradient": lambda x: x,
            "optimization_barrier": lambda *x: x,
            "clamp": lambda low, x, high: np.minimum(np.maximum(x, low), high),
        }.items()
    },
    "select_n": _select,
    "broadcast_in_dim": _broadcast_in_dim,
    "reshape": lambda p, out, x: np.reshape(
        x if p["dimensions"] is None else np.transpose(x, p["dimensions"]), out.shape
    ),
    "squeeze": lambda p, out, x: np.reshape(x, out.shape),
    "expand_dims": lambda p, out, x: np.reshape(x, out.shape),
    "transpose": lambda p, out, x: np.transpose(x, p["permutation"]),
    "rev": lambda p, out, x: np.flip(x, p["dimensions"]),
    "concatenate": lambda p, out, *x: np.concatenate(x, p["dimension"]),
    "stack": lambda p, out, *x: np.stack(x, p["axis"]),
    "unstack": lambda p, out, x: [*np.moveaxis(x, p["axis"], 0)],
    "split": lambda p, out, x: np.split(x, np.cumsum(p["sizes"])[:-1], p["axis"]),
    "convert_element_type": lambda p, out, x: x,
    "integer_pow": lambda p, out, x: x ** p["y"] if p["y"] >= 0 else 1 / x ** -p["y"],
    "round": lambda p, out, x: np.round(x) if "EVEN" in str(p["rounding_method"]) else (
        np.sign(x) * np.floor(np.abs(x) + 0.5)
    ),
    "reduce_sum": _reduced(np.add),
    "reduce_max": _reduced(np.maximum),
    "reduce_min": _reduced(np.minimum),
    "reduce_prod": _reduced(np.multiply),
    "reduce_and": _reduced(np.logical_and),
    "reduce_or": _reduced(np.logical_or),
    "argmax": lambda p, out, x: np.argmax(x, p["axes"][0]),
    "argmin": lambda p, out, x: np.argmin(x, p["axes"][0]),
    "cumsum": _cumulative(np.add),
    "cumprod": _cumulative(np.multiply),
    "cummax": _cumulative(np.maximum),
    "cummin": _cumulative(np.minimum),
    "dot_general": _dot_general,
    "pad": _pad,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "gather": _gather,
    "scatter": _scatter(None),
    "scatter-add": _scatter(np.add),
    "scatter-mul": _scatter(np.multiply),
    "sort": _sort,
    "iota": _iota,
    "empty2": lambda p, out: np.zeros(out.shape, out.dtype),
    "fft": _fft,
}  # fmt: skip
