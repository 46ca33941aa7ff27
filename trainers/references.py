"""Reference policies for the KL penalty: a frozen model, or a table of bigrams.

A reference is a pair: arrays stored in the run's state, and a function from these to
log-probabilities.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from grlu.errors import UserError

NAMED = ("start", "random", "bigram", "none")
"""Values of `trainer.reference` that are not the folder of a run."""

BIGRAMS = 8192
"""The most tokens that a table of bigrams is made for: 256 MiB."""
# (stored, sequences (N, P + T), prompt length P) -> log-probabilities of the completion (N, T, V)
LogProbs = Callable[[Any, jax.Array, int], jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """A frozen distribution over the next token.

    Attributes:
        init: `init(key, params, rest)`, the arrays to store, given the policy's at its start.
        log_probs: the distribution before each token of the completions.
        follows: whether what is stored are the weights with which the run begins.
    """

    init: Callable[[jax.Array, Any, Any], Any]
    log_probs: LogProbs
    follows: bool = False


def bigram_table(sequences: np.ndarray, vocabulary: int) -> np.ndarray:
    """log((count + 1) / (row sum + V)) of pairs of neighbours in `sequences` (..., T): (V, V).

    Raises:
        UserError: if so many tokens would make it a table of gigabytes.
    """
    if vocabulary > BIGRAMS:
        raise UserError(
            f"trainer.reference=bigram is a table of {vocabulary:,} x {vocabulary:,} tokens, at "
            f"most {BIGRAMS:,}: use start, random or the folder of a run"
        )
    pairs = np.stack([sequences[..., :-1].reshape(-1), sequences[..., 1:].reshape(-1)])
    counts = np.zeros((vocabulary, vocabulary))
    np.add.at(counts, tuple(pairs), 1)
    return np.log((counts + 1) / (counts.sum(1, keepdims=True) + vocabulary)).astype(np.float32)


def bigram(table: np.ndarray, temperature: float = 1.0) -> Reference:
    """The reference that looks the next token up by the one before."""

    def log_probs(stored: jax.Array, sequences: jax.Array, prompt: int) -> jax.Array:
        found = stored[sequences[:, prompt - 1 : -1]]
        return found if temperature == 1 else nnx.log_softmax(found / temperature)

    return Reference(lambda key, params, rest: jnp.asarray(table), log_probs)


def frozen(graphdef: Any, temperature: float, draw: Callable[[jax.Array], Any] | None) -> Reference:
    """A model as the reference: drawn by `draw(key)`, (params, rest), or None for the policy's."""

    def log_probs(stored: Any, sequences: jax.Array, prompt: int) -> jax.Array:
        model = nnx.merge(graphdef, *stored, copy=True)
        logits = model(sequences[:, :-1], start=prompt - 1)
        return jax.lax.stop_gradient(nnx.log_softmax(logits / temperature))

    def init(key: jax.Array, params: Any, rest: Any) -> Any:
        return jax.tree.map(jnp.copy, (params, rest)) if draw is None else draw(key)

    return Reference(init, log_probs, follows=draw is None)
