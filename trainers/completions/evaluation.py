"""Evaluation of policies: metrics of their completions, and examples to read."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from trainers.completions.rollout import RewardSettings, Rollout, Sampled
from trainers.completions.sampling import log_probs
from trainers.loop.trainer import Values


def metrics(rollout: Rollout) -> tuple[str, ...]:
    """Return the names of the values of `evaluate`."""
    right = ("greedy_accuracy", "greedy_exact", "pass_1", "pass_k")
    return (*rollout.metrics, "nll", *(right if rollout.rewards.use_target else ()), "length")


def evaluate(
    rollout: Rollout, settings: RewardSettings, model: Any, batch: Any
) -> tuple[Values, Sampled]:
    """Evaluate a policy on the prompts of a batch, deterministically.

    Returns:
        Values per prompt, each (B,), and the B x `eval_samples` completions. `nll` is in nats per
        token of the target. If a reward compares with the target, `greedy_accuracy` is the fraction
        of correct tokens in greedy decoding, `greedy_exact` that of correct completions; `pass_1`
        is the fraction of correct completions among k samples, `pass_k` 1 if any is correct.
        Rewards that ignore the target define their own success, which `reward` measures.
    """
    columns = rollout.prompts.columns(batch)
    prompt, target, key = columns["prompt"], columns["target"], key_from(columns["prompt"])
    samples, temperature = settings.eval_samples, settings.eval_temperature
    sampled = rollout.run(model, batch, key, samples, temperature=temperature)

    def per_prompt(values: jax.Array) -> jax.Array:
        return values.reshape(len(prompt), samples).astype(jnp.float32)

    found = {**sampled.rewards, "length": sampled.completions.lengths}
    values = {name: per_prompt(value).mean(1) for name, value in found.items()}
    mask = rollout.prompts.target_mask(target)
    if rollout.rewards.use_target:
        right = per_prompt((sampled.completions.tokens == sampled.columns["target"]).all(1))
        values |= {"pass_1": right.mean(1), "pass_k": right.max(1)}
        greedy = rollout.sample(model, prompt, key, greedy=True).tokens
        values["greedy_accuracy"] = ((greedy == target) * mask).sum(1) / mask.sum(1)
        values["greedy_exact"] = (greedy == target).all(1).astype(jnp.float32)
    sequences = jnp.concatenate([prompt, target], axis=1)
    chosen = log_probs(model(sequences[:, :-1], start=prompt.shape[1] - 1), target)
    values["nll"] = -(chosen * mask).sum(1) / mask.sum(1)
    return values, sampled


def key_from(prompts: jax.Array) -> jax.Array:
    """Return the sampling key of a batch: a function of its prompts alone, the same each time."""
    places = 1 + jnp.arange(prompts.size, dtype=jnp.uint32).reshape(prompts.shape)
    return jax.random.fold_in(jax.random.key(0), jnp.sum(places * prompts.astype(jnp.uint32)))


def examples(
    rollout: Rollout, temperature: float, model: Any, key: jax.Array, batch: Any
) -> list[dict[str, Any]]:
    """Return one completion of each prompt of a batch as text, with its target and reward."""
    names, text = ("prompt", "completion", "target"), rollout.prompts.text
    graphdef, state = nnx.split(model)
    traced = state, rollout.judge, key, batch
    arrays = _sample_and_score(rollout, temperature, graphdef, traced)
    *texts, rewards = (a.tolist() for a in arrays)
    return [
        {n: text(tokens) for n, tokens in zip(names, row, strict=True)} | {"reward": reward}
        for *row, reward in zip(*texts, rewards, strict=True)
    ]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _sample_and_score(
    rollout: Rollout, temperature: float, graphdef: Any, traced: Any
) -> tuple[jax.Array, ...]:
    state, judge, key, batch = traced
    rollout = rollout.bind(judge)  # The traced argument, not the static rollout's constant.
    model = nnx.merge(graphdef, state, copy=True)
    found = rollout.run(model, batch, key, temperature=temperature)
    prompts, targets = found.columns["prompt"], found.columns["target"]
    return prompts, found.completions.tokens, targets, found.rewards["reward"]
