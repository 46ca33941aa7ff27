"""Many updates at once: the steps of the gradient trainer on one example each, but faster.

First layers are learned by exact chunked online learning (`grlu.online`), and the random numbers of
all updates are drawn together (`grlu.ahead`).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from grlu.ahead import drawn_ahead
from grlu.online import Chunk
from trainers.state import TrainState

Fold = Callable[[Any, jax.Array, dict[str, jax.Array]], Any]


def taken(
    trainer: Any,
    state: TrainState,
    batches: Mapping[str, jax.Array],
    count: jax.Array,
    fold: Fold,
    start: Any,
) -> tuple[TrainState, Any]:
    """The first `count` of a block's T updates, as `trainer.step` would take them one by one.

    Args:
        trainer: a `trainers.gradient.Trainer`, whose optimizer is plain SGD.
        state: before the block.
        batches: T batches, leaves (T, B, ...), T = `trainer.block`.
        count: how many of them to use.
        fold: `fold(carried, step, values)`, called after every update.
        start: what it carries at first.

    Returns:
        The state after them, and what `fold` has carried.
    """
    chunk = Chunk(trainer.pure(state.step), state.params, state.rest, batches)
    shifted, grams = chunk.shifted(), chunk.gram()

    def body(t: jax.Array, carry: Any) -> Any:
        kept, us, rest, opt_state, average, folded = carry
        batch = jax.tree.map(lambda b: b[t], batches)
        # The changes of later examples are still zero.
        zs = [
            z[t] + jnp.einsum("bsc,sco->bo", gram[t], u)
            for z, gram, u in zip(chunk.zs, grams, us, strict=True)
        ]
        params = chunk.joined(kept, [jnp.zeros_like(z) for z in zs])
        step = state.step + t
        key, rule = jax.random.fold_in(state.key, step), trainer.settings.rule(trainer.sigma(step))
        _, (values, changed), ascent, monitored = rule.estimate(
            shifted, params, rest, (batch, zs), key
        )
        grads = jax.tree.map(jnp.negative, ascent)
        updates, opt_state = trainer.optimizer.update(grads, opt_state)
        of_kept, of_shifts = chunk.parted(updates)
        kept = optax.apply_updates(kept, of_kept)
        us = [u.at[t].set(new) for u, new in zip(us, of_shifts, strict=True)]
        if average is not None:
            average = averaged(average, kept, trainer.decay(step))
        rest = nnx.merge_state(rest, changed)
        return kept, us, rest, opt_state, average, fold(folded, step, values | monitored)

    us = [jnp.zeros_like(z) for z in chunk.zs]
    average = None if state.average is None else chunk.split(state.average)
    carry = (chunk.kept, us, state.rest, state.opt_state, average, start)
    kept, us, rest, opt_state, average, folded = jax.lax.fori_loop(
        0, count, drawn_ahead(body, trainer.block, carry), carry
    )
    if average is not None:
        average = _averaged_block(trainer, state, chunk, average, us, count)
    state = state.replace(
        step=state.step + count,
        params=chunk.absorbed(state.params, kept, us),
        rest=rest,
        opt_state=opt_state,
        average=average,
    )
    return state, folded


def averaged(average: Any, params: Any, decay: jax.Array) -> Any:
    """One step of a running average."""
    return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)


def _averaged_block(
    trainer: Any, state: TrainState, chunk: Chunk, kept: Any, us: list[jax.Array], count: jax.Array
) -> Any:
    """The running average after a block, of whose first layers only the changes are known.

    With the decays d of its steps, an average a of weights w that change by Δ_s becomes
    P a + (1 - P) w + sum over s of (1 - P_s) Δ_s, P_s being the product of d from s on, P of
    all.
    """
    t = jnp.arange(trainer.block)
    decays = jnp.where(t < count, trainer.decay(state.step + t), 1.0)
    left = jnp.cumprod(decays[::-1])[::-1]
    before = averaged(state.average, state.params, left[0])
    return chunk.absorbed(before, kept, [(1 - left)[:, None, None] * u for u in us])
