"""Reference policies for the KL penalty: a frozen model, or a table of bigrams.

A reference consists of arrays in the run's state, and a function that maps them to
log-probabilities.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from grlu.errors import UserError
from input_pipeline.text.prompts import Prompts, bigram_table
from trainers.policies.base import variables
from trainers.policies.settings import PolicySettings

# Values of `trainer.reference` other than the folder of a run.
NAMED = ("start", "random", "bigram", "none")
# (arrays, sequences (N, P + T), P) -> log-probabilities before each new token, (N, T, V).
LogProbs = Callable[[Any, jax.Array, int], jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """A frozen distribution over the next token.

    Attributes:
        init: `init(key, params, rest)` returns the arrays to store, given the policy's variables at
            the start of the run.
        log_probs: log-probabilities before each token of the completions.
        follows: True if the arrays are the initial weights of the run.
    """

    init: Callable[[jax.Array, Any, Any], Any]
    log_probs: LogProbs
    follows: bool = False


def frozen(graphdef: Any, temperature: float, make: Callable[[jax.Array], Any] | None) -> Reference:
    """Return a frozen model as the reference, with its distribution at a temperature.

    `make` maps a key to the model's (params, rest); with None, they are the initial policy's.
    """

    def log_probs(stored: Any, sequences: jax.Array, prompt: int) -> jax.Array:
        model = nnx.merge(graphdef, *stored, copy=True)
        logits = model(sequences[:, :-1], start=prompt - 1)
        return jax.lax.stop_gradient(nnx.log_softmax(logits / temperature))

    def init(key: jax.Array, params: Any, rest: Any) -> Any:
        return jax.tree.map(jnp.copy, (params, rest)) if make is None else make(key)

    return Reference(init, log_probs, follows=make is None)


def named_reference(
    settings: PolicySettings, data: Any, prompts: Prompts, graphdef: Any, make_policy: Any
) -> Reference | None:
    """Return the reference "start", "random" or "bigram", or None for "none".

    Raises:
        UserError: on another name.
    """
    name = settings.reference or ("start" if settings.beta_kl else "none")
    temperature = settings.temperature
    if name == "none":
        return None
    if name == "start":
        return frozen(graphdef, temperature, None)
    if name == "random":
        return frozen(graphdef, temperature, lambda key: variables(make_policy(nnx.Rngs(key))))
    if name != "bigram":
        raise UserError(
            f"trainer.reference must be start, random, bigram, none or the folder of a run, got "
            f"{name!r}: a run is opened by trainers.train, or given as `reference`"
        )
    table = bigram_table(prompts.sequences(data), prompts.vocabulary)

    def log_probs(stored: jax.Array, sequences: jax.Array, prompt: int) -> jax.Array:
        found = stored[sequences[:, prompt - 1 : -1]]
        return found if temperature == 1 else nnx.log_softmax(found / temperature)

    return Reference(lambda key, params, rest: jnp.asarray(table), log_probs)
