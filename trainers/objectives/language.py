"""Rewards of language models: the log-likelihood of a text, or a bound on it, in nats per token."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from grlu.errors import UserError
from input_pipeline import Data
from trainers.completions.sampling import log_probs
from trainers.objectives.base import Batch, Better, Objective, Values


class _Text(Objective):
    metrics: ClassVar[tuple[str, ...]] = ("nll", "perplexity", "accuracy")
    better: ClassVar[Better] = ("nll", "min")
    of_text: ClassVar[bool] = True
    causal: ClassVar[bool]

    def require(self, config: ConfigDict, data: Data, model: Any, answered: Any) -> None:
        require_language_model(config, data, answered, causal=self.causal)


@dataclasses.dataclass(frozen=True)
class LanguageModelling(_Text):
    """Rewards a causal model for the mean log-probability of next tokens.

    The tokens are those of `batch["tokens"]` that are `scored`. Values per example are the mean
    negative log-likelihood in nats, its exponential, and the accuracy of the most likely token.
    """

    causal: ClassVar[bool] = True

    def __call__(self, model: Any, batch: Batch) -> tuple[jax.Array, Values]:
        targets = batch["tokens"][:, 1:]
        return _scored(model(batch["tokens"][:, :-1]), targets, batch["scored"])


@dataclasses.dataclass(frozen=True)
class Denoising(_Text):
    """Rewards a model that sees the whole text for the log-probability of masked tokens.

    Between 1 and n, uniformly, of an example's n `scored` tokens are masked. The mean
    log-probability of the masked tokens is then an unbiased estimate of a bound on the text's
    log-likelihood per token: the mean over all orders in which the tokens could be filled in. The
    first token of an example, which is never predicted, is left out. The values are those of
    `LanguageModelling`.

    Source: Uria, Murray, Larochelle (2014), "A Deep and Tractable Density Estimator",
    arXiv:1310.1757; Sahoo et al. (2024), "Simple and Effective Masked Diffusion Language Models",
    arXiv:2406.07524.
    """

    causal: ClassVar[bool] = False

    def __call__(self, model: Any, batch: Batch) -> tuple[jax.Array, Values]:
        targets = batch["tokens"][:, 1:]
        masked = mask(model.rngs(), batch["scored"])
        return _scored(model(jnp.where(masked, model.vocabulary, targets)), targets, masked)


def require_language_model(config: ConfigDict, data: Data, answered: Any, *, causal: bool) -> None:
    """Raise UserError unless a model returns logits at each position, and is causal or not."""
    wanted = (*data.example_shape, data.num_classes)
    if answered.shape[1:] != wanted:
        raise UserError(
            f"trainer.objective={config.trainer.objective} needs a model with a logit for each of "
            f"the {data.num_classes} tokens at each of the {data.example_shape[0]} positions, such "
            f"as gpt; {config.model.name} returns {answered.shape[1:]}"
        )
    if config.model.get("causal", causal) != causal:
        raise UserError(
            f"trainer.objective={config.trainer.objective} needs a model that sees "
            f"{'only preceding tokens' if causal else 'the whole text'}: set "
            f"model.causal={str(causal).lower()}"
        )


def mask(key: jax.Array, scored: jax.Array) -> jax.Array:
    """Return the tokens to mask, (B, T), bool: 1 to n of the n scored ones, uniformly.

    The numbers are stratified over the batch, which keeps each of them uniform.
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
    """Return tokens (B, T), int32, with the masks filled in, the most confident first.

    Each step samples a token for every mask, and keeps those with the highest probability: the same
    number in each step. The function is pure, and may be compiled.

    Source: Chang et al. (2022), "MaskGIT", arXiv:2202.04200, with a constant schedule.

    Args:
        model: not causal, such as `models.GPT(..., causal=False)`, in evaluation mode.
        tokens: shape (B, T), int; `model.vocabulary` is the mask.
        steps: passes of the model.
        key: sampling key.
        temperature: divides the logits.
        greedy: take the most likely token instead of sampling.

    Raises:
        UserError: on a causal model, or steps or temperature that are not positive.
    """
    if model.causal:
        raise UserError("a causal model cannot fill in masks: it needs model.causal=false")
    if steps < 1 or not temperature > 0:
        raise UserError(
            f"steps and temperature must be positive, got {steps!r} and {temperature!r}"
        )
    total = jnp.sum(tokens == model.vocabulary, axis=1)

    def advance(step: jax.Array, tokens: jax.Array) -> jax.Array:
        logits = model(tokens)
        if greedy:
            sampled = jnp.argmax(logits, axis=-1)
        else:
            sampled = jax.random.categorical(jax.random.fold_in(key, step), logits / temperature)
        masked = tokens == model.vocabulary
        sure = jnp.where(masked, log_probs(logits, sampled), -jnp.inf)
        rank = jnp.argsort(jnp.argsort(-sure, axis=1), axis=1)
        left = total * (steps - 1 - step) // steps
        kept = masked & (rank < (jnp.sum(masked, axis=1) - left)[:, None])
        return jnp.where(kept, sampled, tokens).astype(jnp.int32)

    return jax.lax.fori_loop(0, steps, advance, tokens.astype(jnp.int32))


def _scored(logits: jax.Array, targets: jax.Array, scored: jax.Array) -> tuple[jax.Array, Values]:
    """Return rewards and values: means over the scored tokens of each example."""
    weights = scored / jnp.sum(scored, axis=1, keepdims=True)
    rewards = jnp.sum(weights * log_probs(logits, targets), axis=1)
    correct = jnp.argmax(logits, axis=-1) == targets
    accuracy = jnp.sum(weights * correct, axis=1)
    return rewards, {"nll": -rewards, "perplexity": jnp.exp(-rewards), "accuracy": accuracy}
