"""Micro-batches: an objective that computes a batch in parts, one after the other."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from grlu.errors import UserError
from grlu.tracing.network import Objective


def in_parts(objective: Objective, parts: int, update: Any = None) -> Objective:
    """Return an objective that computes a batch in equal parts, to save memory.

    A rule then holds the values inside the model for one part at a time, and backpropagation
    computes those of each part again. Every rule sees the same network, with each layer in a loop
    over the parts, and draws the same noise for it: but for rounding, its estimate is that of the
    whole batch. Rules of the units, such as node perturbation, go on holding noise and credit of
    the whole batch: what bounds their memory is `chunk`.

    What the model draws itself (dropout, the winners of a Gumbel top-k, samples of a latent) is
    drawn anew for each part, from the part's own streams, so it is not what the whole batch would
    draw. An objective that looks at several examples at once sees those of a part.

    Args:
        objective: `(params, rest, batch) -> (rewards, (aux, changed))`, of `grlu.rule`'s
            `pure_objective`.
        parts: number of parts; the leaves of the batch that have B rows, one per example, are
            split in the order of the examples.
        update: NNX filter of the state in `rest` that the objective changes: each part sees what
            the part before has left.

    Returns:
        The objective. Leaves of aux with one row per example are joined, others averaged over the
        parts.

    Raises:
        UserError: when the objective is called, if B is no multiple of `parts`, or the model has
            batch statistics.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> def rewards(params, rest, batch):
    ...     return -jnp.square(batch @ params), (batch.mean(), None)
    >>> batch = jnp.arange(4.0)[:, None]
    >>> found, (mean, _) = in_parts(rewards, 2)(jnp.ones(1), nnx.State({}), batch)
    >>> print(found, mean)
    [-0. -1. -4. -9.] 1.5
    """
    if parts == 1:
        return objective

    def split_objective(params: Any, rest: Any, batch: Any) -> tuple[jax.Array, Any]:
        _require_separate_examples(rest, parts)
        whole_rewards, (whole_aux, _) = jax.eval_shape(objective, params, rest, batch)
        (size,) = whole_rewards.shape
        if size % parts:
            raise UserError(
                f"micro_batches must divide the batch into equal parts: {size} examples are no "
                f"multiple of {parts}"
            )
        leaves, tree = jax.tree.flatten(batch)
        split = [jnp.ndim(leaf) > 0 and len(leaf) == size for leaf in leaves]
        scanned = [
            jnp.reshape(leaf, (parts, size // parts, *jnp.shape(leaf)[1:]))
            for leaf, divided in zip(leaves, split, strict=True)
            if divided
        ]

        # Without it, the loop would keep the values inside the model for all parts' gradients.
        @jax.checkpoint
        def rewarded(params: Any, rest: Any, micro: list[jax.Array]) -> Any:
            own = iter(micro)
            merged = [next(own) if s else leaf for leaf, s in zip(leaves, split, strict=True)]
            rewards, (aux, changed) = objective(params, rest, jax.tree.unflatten(tree, merged))
            return changed, rewards, aux

        def part(changed: Any, scanned: Any) -> tuple[Any, Any]:
            number, micro = scanned
            state = _own_streams(rest, number)
            if changed is not None:
                state = nnx.merge_state(state, changed)
            changed, *found = rewarded(params, state, micro)
            return changed, found

        def joined(leaf: jax.Array, whole: Any) -> jax.Array:
            # A leaf that the whole batch makes larger has a row per example.
            if leaf.shape[1:] != whole.shape:
                return leaf.reshape(whole.shape)
            return jnp.mean(leaf, axis=0)

        before = None if update is None else nnx.filter_state(rest, update)
        changed, (rewards, aux) = jax.lax.scan(part, before, (jnp.arange(parts), scanned))
        return rewards.reshape(size), (jax.tree.map(joined, aux, whole_aux), changed)

    return split_objective


def _own_streams(rest: Any, number: jax.Array) -> Any:
    """Return the state with the rng streams of a part."""

    def folded(path: Any, variable: Any) -> Any:
        del path
        if not isinstance(variable, nnx.RngKey):
            return variable
        fold: Any = jax.random.fold_in
        for _ in variable[...].shape:
            fold = jax.vmap(fold, in_axes=(0, None))
        return variable.replace(fold(variable[...], number))

    return nnx.map_state(folded, rest)


def _require_separate_examples(rest: Any, parts: int) -> None:
    """Raise UserError if the model's state has statistics of a batch."""
    for path, variable in nnx.to_flat_state(nnx.filter_state(rest, nnx.BatchStat)):
        raise UserError(
            f"micro_batches={parts} would take the batch statistics "
            f"{'.'.join(map(str, path))} over a part of the batch: use micro_batches=1, or a norm "
            f"of each example, such as nnx.LayerNorm, not a {type(variable).__name__}"
        )
