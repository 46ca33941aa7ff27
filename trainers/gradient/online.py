"""Blocks of updates: the steps of the gradient trainer on few examples each, but faster.

First layers learn by exact chunked online learning (`grlu.rules.online`), and the random numbers of
all updates are sampled together (`grlu.noise.ahead`).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from grlu.noise.ahead import drawn_ahead
from grlu.rules.online import Chunk
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
    chunk = Chunk(trainer.pure(state.step), state.params, state.rest, batches)
    shifted, grams = chunk.shifted(), chunk.gram()

    def body(t: jax.Array, carry: Any) -> Any:
        kept, us, folded = carry
        batch = jax.tree.map(lambda b: b[t], batches)
        # The changes of later examples are still zero.
        zs = [
            z[t] + jnp.einsum("bsc,sco->bo", gram[t], u)
            for z, gram, u in zip(chunk.zs, grams, us, strict=True)
        ]
        params = chunk.joined(kept.params, [jnp.zeros_like(z) for z in zs])
        # Random numbers are sampled ahead if their keys do not depend on the carry.
        step = state.step + t
        at = kept.replace(step=step, key=state.key)
        updates, at, values = trainer.updates(shifted, params, at, (batch, zs))
        of_kept, of_shifts = chunk.parted(updates)
        at = trainer.moved(at, optax.apply_updates(kept.params, of_kept), step)
        us = [u.at[t].set(new) for u, new in zip(us, of_shifts, strict=True)]
        return at, us, fold(folded, step, values)

    average = None if state.average is None else chunk.split(state.average)
    kept = state.replace(params=chunk.kept, average=average)
    carry = kept, [jnp.zeros_like(z) for z in chunk.zs], start
    ahead = drawn_ahead(body, trainer.block, carry)
    kept, us, folded = jax.lax.fori_loop(0, count, ahead, carry)
    average = kept.average
    if average is not None:
        average = _averaged_block(trainer, state, chunk, average, us, count)
    params = chunk.absorbed(state.params, kept.params, us)
    return kept.replace(params=params, average=average), folded


def averaged(average: Any, params: Any, decay: jax.Array) -> Any:
    """Take one step of a running average."""
    return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)


def _averaged_block(
    trainer: Any, state: TrainState, chunk: Chunk, kept: Any, us: list[jax.Array], count: jax.Array
) -> Any:
    """Return the running average after a block that knows only the changes of its first layers.

    With decays d, an average a of weights w that change by Δ_s becomes
    P a + (1 - P) w + Σ_s (1 - P_s) Δ_s, where P_s is the product of d from s on, and P of all d.
    """
    t = jnp.arange(trainer.block)
    decays = jnp.where(t < count, trainer.decay(state.step + t), 1.0)
    left = jnp.cumprod(decays[::-1])[::-1]
    before = averaged(state.average, state.params, left[0])
    return chunk.absorbed(before, kept, [(1 - left)[:, None, None] * u for u in us])
