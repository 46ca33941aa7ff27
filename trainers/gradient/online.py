"""Blocks of updates: a faster form of the gradient trainer's steps on few examples each.

First layers learn by exact chunked online learning (`grlu.online`), and the random numbers of
all updates are sampled together (`grlu.noise.ahead`).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from grlu.noise.ahead import drawn_ahead
from grlu.online.chunk import Chunk, Moving
from grlu.rules.rule import seeded
from trainers.loop.state import TrainState
from trainers.loop.trainer import Fold


def take_block(
    trainer: Any,
    state: TrainState,
    batches: Mapping[str, jax.Array],
    count: jax.Array,
    fold: Fold,
    start: Any,
) -> tuple[TrainState, Any]:
    """Take the first `count` of a block's T updates, with the results of `trainer.step`.

    Args:
        trainer: a `trainers.gradient.trainer.Trainer` with plain SGD.
        state: the state before the block.
        batches: T batches, leaves (T, B, ...), where T is `trainer.block`.
        count: number of updates.
        fold: `fold(carried, step, values)`, called after every update.
        start: initial value of `carried`; its last value is returned, too.
    """
    # A running average changes in every element, so nothing is sparse.
    sparse = state.average is None
    chunk = Chunk(trainer.pure(state.step), state.params, state.rest, batches, sparse)

    def body(t: jax.Array, carry: Any) -> Any:
        at, folded = carry
        moving, step = at.params, state.step + t
        batch = jax.tree.map(lambda b: b[t], batches)
        # Random numbers are sampled ahead if their keys do not depend on the carry.
        at = at.replace(step=step, key=state.key)
        streams, _ = seeded(at.rest, trainer.key(at))
        taken = chunk.at(t, moving, streams, batch)
        updates, at, values = trainer.updates(chunk.objective, taken.params, at, taken.batch)
        moving = chunk.moved(t, moving, taken, updates)
        at = trainer.moved(at, moving.kept, step).replace(params=moving)
        return at, fold(folded, step, values)

    average = None if state.average is None else chunk.split(state.average)
    carry = state.replace(params=chunk.start, average=average), start
    ahead = drawn_ahead(body, trainer.block, carry)
    state_after, folded = jax.lax.fori_loop(0, count, ahead, carry)
    moving, average = state_after.params, state_after.average
    if average is not None:
        average = _averaged_block(trainer, state, chunk, moving._replace(kept=average), count)
    params = chunk.absorbed(state.params, moving)
    return state_after.replace(params=params, average=average), folded


def averaged(average: Any, params: Any, decay: jax.Array) -> Any:
    """Take one step of a running average."""
    return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)


def _averaged_block(
    trainer: Any, state: TrainState, chunk: Chunk, moving: Moving, count: jax.Array
) -> Any:
    """Return the running average after a block, from that of the leaves kept as a whole.

    With decays d, an average a of weights w that change by Δ_s becomes
    P a + (1 - P) w + Σ_s (1 - P_s) Δ_s, where P_s is the product of d from s on, and P of all d.
    """
    t = jnp.arange(trainer.block)
    decays = jnp.where(t < count, trainer.decay(state.step + t), 1.0)
    left = jnp.cumprod(decays[::-1])[::-1]
    before = averaged(state.average, state.params, left[0])
    us = [(1 - left)[:, None, None] * u for u in moving.us]
    return chunk.absorbed(before, moving._replace(us=us))
