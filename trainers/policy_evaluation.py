"""How good a policy is, and what it writes, whatever it is trained by."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from trainers.completing import Completing, PaidSettings, repeated
from trainers.sampling import Completions, log_probs

Values = dict[str, jax.Array]


def metrics(asked: Completing) -> tuple[str, ...]:
    """Names of the values that `evaluated` gives."""
    more = ("nll", "greedy_accuracy", "greedy_exact", "pass_1", "pass_k", "length")
    return (*asked.metrics, *more)


def evaluated(
    asked: Completing, settings: PaidSettings, model: Any, batch: Any
) -> tuple[Values, Completions]:
    """Values per prompt of a policy, deterministic, and the completions on which they are.

    `greedy_accuracy` is by token, `greedy_exact` by completion, `nll` in nats per token of the
    target; `pass_1` and `pass_k` are of k drawn completions the share that is exact, and whether
    one is.
    """
    key = key_of(batch["prompt"])
    prompts, count, samples = asked.prompts, len(batch["prompt"]), settings.eval_samples
    temperature = settings.eval_temperature
    found = asked.sampled(model, batch["prompt"], key, samples, temperature=temperature)
    rows = repeated(batch, samples)
    paid = asked.paid(rows, found)

    def per_prompt(values: jax.Array) -> jax.Array:
        return values.reshape(count, samples).astype(jnp.float32)

    drawn = {"reward": paid.total, "length": found.lengths}
    drawn |= asked.singles(paid)
    values = {name: per_prompt(value).mean(1) for name, value in drawn.items()}
    target, counted = batch["target"], prompts.counted(batch["target"])
    right = per_prompt((found.tokens == rows["target"]).all(1))
    values |= {"pass_1": right.mean(1), "pass_k": right.max(1)}
    greedy = asked.sampled(model, batch["prompt"], key, greedy=True).tokens
    values["greedy_accuracy"] = ((greedy == target) * counted).sum(1) / counted.sum(1)
    values["greedy_exact"] = (greedy == target).all(1).astype(jnp.float32)
    told = jnp.concatenate([batch["prompt"], target], axis=1)
    chosen = log_probs(model(told[:, :-1], start=prompts.length - 1), target)
    values["nll"] = -(chosen * counted).sum(1) / counted.sum(1)
    return values, found


def key_of(prompts: jax.Array) -> jax.Array:
    """The key of a batch's draws: another one for other prompts, and no other in another pass."""
    places = 1 + jnp.arange(prompts.size, dtype=jnp.uint32).reshape(prompts.shape)
    return jax.random.fold_in(jax.random.key(0), jnp.sum(places * prompts.astype(jnp.uint32)))


def written(
    asked: Completing, temperature: float, model: Any, key: jax.Array, batch: Any
) -> list[dict[str, Any]]:
    """A completion of each prompt of a batch, to its end, with its target and reward."""
    names, text = ("prompt", "completion", "target"), asked.prompts.text
    *texts, rewards = (
        a.tolist() for a in _write(asked, temperature, *nnx.split(model), key, batch)
    )
    return [
        {n: text(tokens) for n, tokens in zip(names, row, strict=True)} | {"reward": reward}
        for *row, reward in zip(*texts, rewards, strict=True)
    ]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _write(
    asked: Completing, temperature: float, graphdef: Any, state: Any, key: jax.Array, batch: Any
) -> tuple[jax.Array, ...]:
    batch, model = asked.prompts.columns(batch), nnx.merge(graphdef, state, copy=True)
    found = asked.sampled(model, batch["prompt"], key, temperature=temperature)
    return batch["prompt"], found.tokens, batch["target"], asked.paid(batch, found).total
