"""Micro-batches: objectives that compute a batch in parts, one after the other."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from grlu.errors import UserError
from grlu.network import Batch, Objective, Params, State


def in_parts(objective: Objective, parts: int, update: Any = None) -> Objective:
    """Return an objective that computes a batch in equal parts, to save memory.

    A rule then holds the model's activations for one part at a time, and backpropagation recomputes
    them. Every rule sees the same network, with each layer in a loop over the parts, and samples
    the same noise for it: its estimate equals that of the full batch up to rounding. Rules that
    perturb units, such as node perturbation, still hold noise and credit for the full batch: use
    `chunk` to bound their memory.

    The model's own randomness (dropout, winners of a Gumbel top-k, latent samples) comes from
    separate PRNG streams for each part, so it differs from that of the full batch. An objective
    that compares examples sees those of one part.

    Args:
        objective: `(params, rest, batch) -> (rewards, (aux, changed))`, from
            `grlu.rules.rule.pure_objective`.
        parts: number of parts; batch leaves with B rows, one per example, are split in the order
            of the examples.
        update: NNX filter of the state in `rest` that the objective changes; each part starts from
            the state that the preceding part left.

    Returns:
        The objective. Leaves of aux with one row per example are concatenated, others averaged over
        the parts.

    Raises:
        UserError: when the objective is called, if `parts` does not divide B or the model has
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

    def split_objective(params: Params, rest: State, batch: Batch) -> tuple[jax.Array, Any]:
        _require_separate_examples(rest, parts)
        whole_rewards, (whole_aux, _) = jax.eval_shape(objective, params, rest, batch)
        (size,) = whole_rewards.shape
        if size % parts:
            raise UserError(
                f"micro_batches must divide the batch into equal parts: {size} examples are not a "
                f"multiple of {parts}"
            )
        leaves, tree = jax.tree.flatten(batch)
        split = [jnp.ndim(leaf) > 0 and len(leaf) == size for leaf in leaves]
        scanned = [
            jnp.reshape(leaf, (parts, size // parts, *jnp.shape(leaf)[1:]))
            for leaf, divided in zip(leaves, split, strict=True)
            if divided
        ]

        # Without it, the loop would keep the activations of all parts for the backward pass.
        @jax.checkpoint
        def rewarded(params: Params, rest: State, micro: list[jax.Array]) -> Any:
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
            # A leaf that grows with the batch has one row per example.
            if leaf.shape[1:] != whole.shape:
                return leaf.reshape(whole.shape)
            return jnp.mean(leaf, axis=0)

        before = None if update is None else nnx.filter_state(rest, update)
        changed, (rewards, aux) = jax.lax.scan(part, before, (jnp.arange(parts), scanned))
        return rewards.reshape(size), (jax.tree.map(joined, aux, whole_aux), changed)

    return split_objective


def _own_streams(rest: State, number: jax.Array) -> Any:
    """Return the state with the PRNG streams of one part."""

    def folded(path: Any, variable: Any) -> Any:
        del path
        if not isinstance(variable, nnx.RngKey):
            return variable
        fold: Any = jax.random.fold_in
        for _ in variable[...].shape:
            fold = jax.vmap(fold, in_axes=(0, None))
        return variable.replace(fold(variable[...], number))

    return nnx.map_state(folded, rest)


def _require_separate_examples(rest: State, parts: int) -> None:
    """Raise UserError if the model's state has batch statistics."""
    for path, variable in nnx.to_flat_state(nnx.filter_state(rest, nnx.BatchStat)):
        raise UserError(
            f"micro_batches={parts} would compute the batch statistics "
            f"{'.'.join(map(str, path))} over a part of the batch: use micro_batches=1, or replace "
            f"the {type(variable).__name__} by a per-example norm such as nnx.LayerNorm"
        )
