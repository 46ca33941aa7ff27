"""Preference pairs: a chosen and a rejected completion of a prompt."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Tokens = tuple[jax.Array, jax.Array]
"""Token numbers (N, L), and a mask (N, L), 1 at the tokens of the completion."""


class PreferencePairs(NamedTuple):
    """N preference pairs of B prompts.

    Attributes:
        chosen: the preferred completions, with their prompts.
        rejected: the others.
        utility: utility of the completions of each prompt, (B, 2N / B), (B, 0) of recorded pairs.
    """

    chosen: Tokens
    rejected: Tokens
    utility: jax.Array


def recorded_pairs(batch: Any) -> PreferencePairs:
    """Return the pairs of a batch of recorded preferences."""
    chosen, rejected = ((batch[n], batch[f"{n}_mask"]) for n in ("chosen", "rejected"))
    return PreferencePairs(chosen, rejected, jnp.zeros((len(chosen[0]), 0)))


def preferred_pairs(
    sequences: jax.Array, mask: jax.Array, utility: jax.Array, doubt: float, key: jax.Array
) -> PreferencePairs:
    """Pair neighbouring completions and prefer the one with the higher utility.

    Args:
        sequences: prompts and completions, (2N, P + T), those of a prompt next to each other.
        mask: 1 at the tokens of the completions, (2N, T).
        utility: utility of the completions of each prompt, (B, 2N / B).
        doubt: temperature of the choice: with a lead of d in utility the first is preferred with
            probability sigmoid(d / doubt), and always with 0.
        key: PRNG key of the choice.
    """
    pairs = utility.reshape(-1, 2)
    lead = pairs[:, 0] - pairs[:, 1]
    first = lead >= 0
    if doubt:
        first = lead + doubt * jax.random.logistic(key, lead.shape) >= 0
    order = jnp.where(first[:, None], jnp.array([[0, 1]]), jnp.array([[1, 0]]))
    rows = 2 * jnp.arange(len(order))[:, None] + order
    prompt = sequences.shape[1] - mask.shape[1]
    masks = jnp.pad(mask.astype(jnp.float32), ((0, 0), (prompt, 0)))
    chosen, rejected = ((sequences[i], masks[i]) for i in (rows[:, 0], rows[:, 1]))
    return PreferencePairs(chosen, rejected, utility)
