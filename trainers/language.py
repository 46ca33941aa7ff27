"""Rewards of language models: the next token's log-probability, or that of masked tokens.

Both are the log-likelihood that a model gives to a text, or a bound of it, in nats per token: as
rewards per example they train by any rule.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from grlu.errors import UserError
from input_pipeline import Data
from trainers.objective import Objective
from trainers.sampling import log_probs

Batch = Mapping[str, jax.Array]
Values = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class LanguageModelling(Objective):
    """Rewards a causal model for each next token of `batch["tokens"]` that is `scored`.

    The reward is their mean log-probability.

    Attributes:
        metrics: names of the values reported per example: the mean negative log-likelihood of its
            tokens, in nats, its exponential, and how often the most likely token is the right one.
        better: the metric that chooses checkpoints, and its direction.
    """

    metrics: ClassVar[tuple[str, ...]] = ("nll", "perplexity", "accuracy")
    better: ClassVar[tuple[str, Literal["min", "max"]]] = ("nll", "min")
    of_text: ClassVar[bool] = True

    def __call__(self, model: Any, batch: Batch) -> tuple[jax.Array, Values]:
        targets = batch["tokens"][:, 1:]
        return _scored(model(batch["tokens"][:, :-1]), targets, batch["scored"])

    def require(self, config: ConfigDict, data: Data, model: Any, answered: Any) -> None:
        """Raises UserError if it is no causal language model."""
        require_language_model(config, data, answered, causal=True)


@dataclasses.dataclass(frozen=True)
class Denoising(Objective):
    """Rewards a model that sees the whole text for the tokens that are masked, and for no others.

    Of an example's n tokens that are `scored`, a number drawn evenly from 1 to n is masked. The
    mean log-probability of the masked ones is then an unbiased estimate of a bound of the text's
    log-likelihood: its mean, per token, over all orders in which the tokens could be filled in.
    An example's first token, which nothing is to say, is left out: the model sees T tokens.

    Source: Uria, Murray, Larochelle (2014), "A Deep and Tractable Density Estimator",
    arXiv:1310.1757; Sahoo et al. (2024), "Simple and Effective Masked Diffusion Language Models",
    arXiv:2406.07524.

    The attributes are those of `LanguageModelling`.
    """

    metrics: ClassVar[tuple[str, ...]] = ("nll", "perplexity", "accuracy")
    better: ClassVar[tuple[str, Literal["min", "max"]]] = ("nll", "min")
    of_text: ClassVar[bool] = True

    def __call__(self, model: Any, batch: Batch) -> tuple[jax.Array, Values]:
        targets = batch["tokens"][:, 1:]
        masked = mask(model.rngs(), batch["scored"])
        return _scored(model(jnp.where(masked, model.vocabulary, targets)), targets, masked)

    def require(self, config: ConfigDict, data: Data, model: Any, answered: Any) -> None:
        """Raises UserError if it is no language model that sees the whole text."""
        require_language_model(config, data, answered, causal=False)


def require_language_model(config: ConfigDict, data: Data, answered: Any, *, causal: bool) -> None:
    """Raises UserError if a model has not logits at each place, or sees what it must not."""
    wanted = (*data.example_shape, data.num_classes)
    if answered.shape[1:] != wanted:
        raise UserError(
            f"trainer.objective={config.trainer.objective} needs a model with an answer for each of"
            f" the {data.num_classes} tokens at each of the {data.example_shape[0]} places, such as"
            f" gpt, and {config.model.name} gives one of shape {answered.shape[1:]}"
        )
    if config.model.get("causal", causal) != causal:
        raise UserError(
            f"trainer.objective={config.trainer.objective} needs a model that sees "
            f"{'only what comes before' if causal else 'the whole text'}: set "
            f"model.causal={str(causal).lower()}"
        )


def mask(key: jax.Array, scored: jax.Array) -> jax.Array:
    """Which tokens to mask, shape (B, T), bool: of n that are scored, 1 to n, evenly.

    The numbers are spread evenly over the batch, which leaves each of them evenly distributed.
    """
    first, second = jax.random.split(key)
    batch = scored.shape[0]
    ratio = (jax.random.uniform(first) + jnp.arange(batch) / batch) % 1.0
    count = jnp.floor(ratio * jnp.sum(scored, axis=1)) + 1
    order = jnp.where(scored > 0, jax.random.uniform(second, scored.shape), 2.0)
    rank = jnp.argsort(jnp.argsort(order, axis=1), axis=1)
    return (rank < count[:, None]) & (scored > 0)


def unmask(
    model: Any,
    tokens: jax.Array,
    *,
    steps: int,
    key: jax.Array,
    temperature: float = 1.0,
    greedy: bool = False,
) -> jax.Array:
    """Fills in the masks of a text, the surest first. Pure, and may be compiled.

    In each step a token is drawn for every mask that is left, and those that the model gave the
    highest probability stay: as many as to be through, evenly, after all steps.

    Source: Chang et al. (2022), "MaskGIT", arXiv:2202.04200, with as many tokens in every step.

    Args:
        model: not causal, such as `models.GPT(..., causal=False)`, in evaluation mode.
        tokens: shape (B, T), int; `model.vocabulary` is the mask.
        steps: passes of the model.
        key: of the draws.
        temperature: divides the logits.
        greedy: take the most likely token, in place of a draw.

    Returns:
        `tokens` without masks, shape (B, T), int32.

    Raises:
        UserError: on a causal model, or steps or temperature that are not positive.
    """
    if model.causal:
        raise UserError("a causal model fills in no masks: it needs model.causal=false")
    if steps < 1 or not temperature > 0:
        raise UserError(
            f"steps and temperature must be positive, got {steps!r} and {temperature!r}"
        )
    total = jnp.sum(tokens == model.vocabulary, axis=1)

    def advance(step: jax.Array, tokens: jax.Array) -> jax.Array:
        logits = model(tokens)
        if greedy:
            drawn = jnp.argmax(logits, axis=-1)
        else:
            drawn = jax.random.categorical(jax.random.fold_in(key, step), logits / temperature)
        masked = tokens == model.vocabulary
        sure = jnp.where(masked, log_probs(logits, drawn), -jnp.inf)
        rank = jnp.argsort(jnp.argsort(-sure, axis=1), axis=1)
        left = total * (steps - 1 - step) // steps
        kept = masked & (rank < (jnp.sum(masked, axis=1) - left)[:, None])
        return jnp.where(kept, drawn, tokens).astype(jnp.int32)

    return jax.lax.fori_loop(0, steps, advance, tokens.astype(jnp.int32))


def _scored(logits: jax.Array, targets: jax.Array, scored: jax.Array) -> tuple[jax.Array, Values]:
    """Means over the scored tokens of each example."""
    weights = scored / jnp.sum(scored, axis=1, keepdims=True)
    rewards = jnp.sum(weights * log_probs(logits, targets), axis=1)
    right = jnp.argmax(logits, axis=-1) == targets
    accuracy = jnp.sum(weights * right, axis=1)
    return rewards, {"nll": -rewards, "perplexity": jnp.exp(-rewards), "accuracy": accuracy}
