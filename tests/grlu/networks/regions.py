"""Regions: bodies of steps that run inside a call, a loop, a branch, or on rearranged examples."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tests.grlu.networks.recipes import Size, Step
from tests.grlu.networks.tables import (
    BATCHED,
    FUNCTIONS,
    KINKED,
    LAYERS,
    REGIONS,
    Weights,
    region,
    wide,
)

Values = list[jax.Array]


class Body(nnx.Module):
    """Body of steps with their modules."""

    def __init__(self, steps: tuple[Step, ...], size: Size, w: Weights):
        self.steps = steps
        self.size = size
        self.modules = nnx.List([])
        self.where: tuple[int | None, ...] = ()
        for step in steps:
            module: Any = None
            if step.name in LAYERS:
                module = LAYERS[step.name](size, step.pick, w)
            elif step.name in REGIONS:
                module = REGIONS[step.name](step, size, w)
            at: int | None = None
            if module is not None:
                at = len(self.modules)
                self.modules.append(module)
            elif step.name in AGAIN and self.modules:
                at = step.pick % len(self.modules)
            self.where = (*self.where, at)

    def __call__(self, *values: jax.Array) -> tuple[jax.Array, ...]:
        """Return all values: the given ones and those that the steps append."""
        known = list(values)
        for step, at in zip(self.steps, self.where, strict=True):
            read = [known[-1 - i % len(known)] for i in step.reads]
            module = None if at is None else self.modules[at]
            if step.name in FUNCTIONS:
                known.append(FUNCTIONS[step.name](read[0], read[-1], step.pick))
            elif step.name in AGAIN:
                known.extend(AGAIN[step.name](module, read))
            elif isinstance(module, Region):
                known.extend(module(*read))
            else:
                known.append(module(read[0], read[-1]))
        return tuple(known)

    def run(self, *values: jax.Array) -> tuple[jax.Array, ...]:
        """Return as many values as are given, the latest last."""
        return self(*values)[-len(values) :]


def _once(module: Any, read: Values) -> Values:
    if module is None:
        return [jnp.tanh(read[0])]
    if isinstance(module, Region):
        return list(module(*read))
    return [module(read[0], read[-1])]


# Another use of an earlier layer or region: directly, or in a separate call.
AGAIN: dict[str, Callable[[Any, Values], Values]] = {
    "again": _once,
    "again_in_jit": lambda module, read: (
        _once(module, read) if module is None else nnx.jit(_once)(module, read)
    ),
    "again_in_remat": lambda module, read: (
        _once(module, read) if module is None else nnx.remat(_once)(module, read)
    ),
}


class Region(nnx.Module):
    """Region of bodies and a function of the region and its values.

    Args:
        step: its bodies and its variant.
        sizes: T and W inside, per body if they differ.
        w: initial values.
        fn: `(region, *values) -> values`.
        copies: number of networks for which each body's parameters are stacked; None for one.
    """

    def __init__(
        self,
        step: Step,
        sizes: Size | list[Size],
        w: Weights,
        fn: Callable[..., Any],
        copies: int | None = None,
    ):
        self.fn, self.pick = fn, step.pick
        each = sizes if isinstance(sizes, list) else [sizes] * len(step.bodies)
        self.bodies = nnx.List(
            [_copies(b, size, w, copies) for b, size in zip(step.bodies, each, strict=True)]
        )

    def __call__(self, *values: jax.Array) -> tuple[jax.Array, ...]:
        return self.fn(self, *values)


def _copies(steps: tuple[Step, ...], size: Size, w: Weights, copies: int | None) -> Body:
    if copies is None:
        return Body(steps, size, w)
    made = [nnx.split(Body(steps, size, w)) for _ in range(copies)]
    states = [state for _, state in made]
    return nnx.merge(made[0][0], jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))


def _pure(body: Body) -> tuple[Any, Callable[..., tuple[jax.Array, ...]]]:
    """Return a body's state, and its function of that state and values."""
    graphdef, state = nnx.split(body)
    return state, lambda state, *values: nnx.merge(graphdef, state, copy=True).run(*values)


@region(1)
def call(step: Step, size: Size, w: Weights) -> Region:
    """Call the body through jit, remat or checkpoint, of NNX or of JAX."""

    def fn(m: Region, *values: jax.Array) -> Any:
        state, run = _pure(m.bodies[0])
        kind = step.pick % 6
        if kind == 0:
            return nnx.jit(lambda body, *v: body.run(*v))(m.bodies[0], *values)
        if kind == 1:
            return nnx.remat(lambda body, *v: body.run(*v))(m.bodies[0], *values)
        if kind == 2:
            return jax.jit(run)(state, *values)
        if kind == 3:
            return jax.checkpoint(run)(state, *values)
        if kind == 4:
            return jax.jit(lambda *v: run(state, *v))(*values)
        inner = jax.checkpoint(lambda *v: run(state, *v))
        return jax.jit(lambda *v: tuple(x + y for x, y in zip(inner(*v), v, strict=True)))(*values)

    return Region(step, size, w, fn)


@region(1, BATCHED)
def example_by_example(step: Step, size: Size, w: Weights) -> Region:
    """Map or loop over the examples."""

    def fn(m: Region, *values: jax.Array) -> Any:
        state, run = _pure(m.bodies[0])
        if step.pick % 3 == 1:
            return jax.lax.map(lambda v: run(state, *v), values)
        if step.pick % 3 == 2:
            return jax.vmap(run, in_axes=(None, *(0 for _ in values)))(state, *values)
        return jax.vmap(lambda *v: run(state, *v))(*values)

    return Region(step, dataclasses.replace(size, examples=None), w, fn)


@region(1)
def step_by_step(step: Step, size: Size, w: Weights) -> Region:
    """Map over the steps."""

    def fn(m: Region, *values: jax.Array) -> Any:
        state, run = _pure(m.bodies[0])
        axis = values[0].ndim - 2
        apart = [v[..., None, :] for v in values]
        mapped = jax.vmap(lambda *v: run(state, *v), in_axes=axis, out_axes=axis)
        return tuple(v[..., 0, :] for v in mapped(*apart))

    return Region(step, dataclasses.replace(size, steps=1), w, fn)


@region(1)
def ensemble(step: Step, size: Size, w: Weights) -> Region:
    """Run two networks of one form on the same values, by a vmap over their parameters."""

    def fn(m: Region, *values: jax.Array) -> Any:
        state, run = _pure(m.bodies[0])
        axes = (0, *(None for _ in values))
        if step.pick % 3 == 2:
            mapped = nnx.vmap(lambda body, *v: body.run(*v), in_axes=axes, axis_size=2)
            both = mapped(m.bodies[0], *values)
        else:
            both = jax.vmap(run, in_axes=axes, axis_size=2)(state, *values)
        return tuple(v.mean(0) if step.pick % 2 else v[0] * v[1] + v[1] for v in both)

    return Region(step, size, w, fn, copies=2)


@region(1)
def stacked(step: Step, size: Size, w: Weights) -> Region:
    """Run two layers of one form, one after the other, by a scan over their parameters."""

    def fn(m: Region, *values: jax.Array) -> Any:
        state, run = _pure(m.bodies[0])

        def through(values: Any, state: Any) -> Any:
            return run(state, *values), None

        if step.pick % 3 == 1:
            through = jax.checkpoint(through)
        if step.pick % 3 == 2:
            scanned = nnx.scan(
                lambda body, v: tuple(body.run(*v)),
                length=2,
                in_axes=(0, nnx.Carry),
                out_axes=nnx.Carry,
            )
            return scanned(m.bodies[0], values)
        return jax.lax.scan(through, values, state, length=2)[0]

    return Region(step, size, w, fn, copies=2)


@region(1)
def recurrent(step: Step, size: Size, w: Weights) -> Region:
    """Scan over the steps: the first value is the input, the state starts at the last one.

    The parameters are constants of the loop, or part of its state, or given anew at each step.
    """

    def fn(m: Region, *values: jax.Array) -> Any:
        graphdef, state = nnx.split(m.bodies[0])
        axis = values[0].ndim - 2
        inputs = jnp.moveaxis(values[0][..., None, :], axis, 0)
        start = values[-1][..., :1, :]
        if step.pick % 5 == 4:
            start = jnp.broadcast_to(wide(m.start, start), start.shape)
        kind = step.pick % 3

        def run(state: Any, h: jax.Array, x: jax.Array) -> tuple[Any, jax.Array]:
            body = nnx.merge(graphdef, state, copy=True)
            h, y = body(x, h)[-2:]
            return jnp.tanh(y + h) if step.pick % 2 else y, h

        def constant(h: Any, x: Any) -> Any:
            return run(state, h, x)

        def carried(carry: Any, x: Any) -> Any:
            h, y = run(carry[1], carry[0], x)
            return (h, carry[1]), y

        def anew(h: Any, x: Any) -> Any:
            return run(x[1], h, x[0])

        reverse = step.pick // 3 % 2 == 1
        if kind == 1:
            ys = jax.lax.scan(carried, (start, state), inputs, reverse=reverse)[1]
        elif kind == 2:
            again = jax.tree.map(lambda p: jnp.stack([p] * size.steps), state)
            ys = jax.lax.scan(anew, start, (inputs, again), reverse=reverse)[1]
        else:
            ys = jax.lax.scan(constant, start, inputs, reverse=reverse)[1]
        return (jnp.moveaxis(ys, 0, axis)[..., 0, :],)

    made = Region(step, dataclasses.replace(size, steps=1), w, fn)
    made.start = nnx.Param(w.normal(1, size.width))
    return made


@region(1)
def repeated(step: Step, size: Size, w: Weights) -> Region:
    """Loop a fixed number of times, or until a condition holds."""

    def fn(m: Region, *values: jax.Array) -> Any:
        state, run = _pure(m.bodies[0])
        if step.pick % 4 == 3:
            done = jax.lax.while_loop(
                lambda s: s[0] < 2, lambda s: (s[0] + 1, run(state, *s[1])), (0, values)
            )
            return done[1]
        return jax.lax.fori_loop(
            0, 2, lambda i, v: tuple(u + i * 0.1 for u in run(state, *v)), values
        )

    return Region(step, size, w, fn)


@region(2, KINKED)
def branch(step: Step, size: Size, w: Weights) -> Region:
    """Choose between bodies by the values, for all examples at once or per example."""

    def fn(m: Region, *values: jax.Array) -> Any:
        (one, first), (other, second) = (_pure(body) for body in m.bodies)
        yes, no = (lambda *v: first(one, *v)), (lambda *v: second(other, *v))
        if step.pick % 3 == 1:
            index = jnp.int32(jnp.abs(values[0].sum()) * 4 + 0.17) % 3
            return jax.lax.switch(index, [yes, no, lambda *v: v], *values)
        if step.pick % 3 == 2 and size.examples and values[0].ndim > 2:
            # Compiled to a selection between both.
            return jax.vmap(lambda *v: jax.lax.cond(v[0].sum() > 0.017, yes, no, *v))(*values)
        return jax.lax.cond(values[0].sum() > 0.017, yes, no, *values)

    inside = dataclasses.replace(size, examples=None) if step.pick % 3 == 2 else size
    return Region(step, inside, w, fn)


@region(1, BATCHED, KINKED)
def sorted_examples(step: Step, size: Size, w: Weights) -> Region:
    """Sort the rows, and unsort them after the body."""

    def fn(m: Region, *values: jax.Array) -> Any:
        order = jnp.argsort(values[-1].reshape(len(values[-1]), -1)[:, 0])
        inside = m.bodies[0].run(*(v[order] for v in values))
        back = jnp.argsort(order)
        return tuple(v[back] if step.pick % 2 else v.at[order].set(v) for v in inside)

    return Region(step, size, w, fn)


@region(2, BATCHED, KINKED)
def experts(step: Step, size: Size, w: Weights) -> Region:
    """Give each of two bodies half of the rows, sorted by the last value."""

    def fn(m: Region, *values: jax.Array) -> Any:
        order = jnp.argsort(values[-1].reshape(len(values[-1]), -1)[:, 0])
        one = m.bodies[0].run(*(v[order][:half] for v in values))
        other = m.bodies[1].run(*(v[order][half:] for v in values))
        joined = (jnp.concatenate(pair) for pair in zip(one, other, strict=True))
        return tuple(v[jnp.argsort(order)] for v in joined)

    rows = size.examples or 0
    half = (rows + 1) // 2
    sizes = [dataclasses.replace(size, examples=n) for n in (half, rows - half)]
    return Region(step, sizes, w, fn)


@region(1, BATCHED)
def time_major(step: Step, size: Size, w: Weights) -> Region:
    """Swap the axes of examples and steps."""

    def fn(m: Region, *values: jax.Array) -> Any:
        inside = m.bodies[0].run(*(v.swapaxes(0, -2) for v in values))
        return tuple(v.swapaxes(0, -2) for v in inside)

    rows = size.examples or 0
    return Region(step, dataclasses.replace(size, steps=rows, examples=size.steps), w, fn)


@region(1, BATCHED)
def merged(step: Step, size: Size, w: Weights) -> Region:
    """Merge examples and steps into one axis, or split the examples into two."""

    def fn(m: Region, *values: jax.Array) -> Any:
        shape = values[0].shape
        inner = (-1, 1, shape[-1]) if flat else (lead, shape[0] // lead, *shape[1:])
        inside = m.bodies[0].run(*(v.reshape(inner) for v in values))
        return tuple(v.reshape(shape) for v in inside)

    flat, rows = step.pick % 2 == 0, size.examples or 0
    lead = 1 if rows % 2 else 2
    inside = (
        Size(1, size.width, rows * size.steps) if flat else dataclasses.replace(size, examples=lead)
    )
    return Region(step, inside, w, fn)
