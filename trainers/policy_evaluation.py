"""How good a policy is, and what it writes, whatever it is trained by."""

from typing import Any

import jax
import jax.numpy as jnp

from grlu import kl
from trainers.policy_state import PolicyState

Values = dict[str, jax.Array]


def evaluated(trainer: Any, state: PolicyState, batch: Any) -> Values:
    """Values per prompt of a `trainers.policy.PolicyTrainer`, deterministic.

    `greedy_accuracy` is by token, `greedy_exact` by completion, `nll` in nats per token of the
    target; `pass_1` and `pass_k` are of k drawn completions the share that is exact, and whether
    one is.
    """
    key = jax.random.key(0)
    settings = trainer.settings
    count, samples = len(batch["prompt"]), settings.eval_samples
    found = trainer.sampled(state, batch["prompt"], key, samples, settings.eval_temperature)
    rows = jax.tree.map(lambda a: jnp.repeat(a, samples, axis=0), batch)
    mask = found.mask.astype(jnp.float32)
    whole, each, singles, _ = trainer.paid(rows, found.tokens, mask, state.fault)

    def per_prompt(values: jax.Array) -> jax.Array:
        return values.reshape(count, samples).astype(jnp.float32)

    values = {
        "reward": per_prompt(whole + each.sum(1)).mean(1),
        "length": per_prompt(found.lengths).mean(1),
    }
    values |= {f"reward_{n}": per_prompt(singles[n]).mean(1) for n in trainer.names()}
    sequences = jnp.concatenate([rows["prompt"], found.tokens], axis=1)
    if trainer.reference is not None:
        log_p, _ = trainer.learner.log_policy(state.params, state.rest, sequences)
        log_q = trainer.reference.log_probs(state.reference, sequences, trainer.prompts.length)
        values["kl"] = per_prompt((kl.exact(log_p, log_q) * mask).sum(1)).mean(1)
    target, counted = batch["target"], trainer.prompts.counted(batch["target"])
    right = per_prompt((found.tokens == rows["target"]).all(1))
    values |= {"pass_1": right.mean(1), "pass_k": right.max(1)}
    greedy = trainer.sampled(state, batch["prompt"], key, 1, 1.0, greedy=True).tokens
    values["greedy_accuracy"] = ((greedy == target) * counted).sum(1) / counted.sum(1)
    values["greedy_exact"] = (greedy == target).all(1).astype(jnp.float32)
    told = jnp.concatenate([batch["prompt"], target], axis=1)
    log_p, _ = trainer.learner.log_policy(state.params, state.rest, told, 1.0)
    chosen = jnp.take_along_axis(log_p, target[..., None], -1)[..., 0]
    values["nll"] = -(chosen * counted).sum(1) / counted.sum(1)
    return values


def written(trainer: Any, state: PolicyState, batch: Any) -> list[dict[str, Any]]:
    """A completion of each prompt of a batch, with its target and reward."""

    def write(state: PolicyState, batch: Any) -> Any:
        batch = trainer.prompts.columns(batch)
        temperature = trainer.settings.eval_temperature
        found = trainer.sampled(state, batch["prompt"], state.key, 1, temperature)
        whole, each, *_ = trainer.paid(batch, found.tokens, found.mask * 1.0, state.fault)
        return batch["prompt"], found.tokens, batch["target"], whole + each.sum(1)

    names, decode = ("prompt", "completion", "target"), trainer.prompts.decode
    *texts, rewards = (a.tolist() for a in jax.jit(write)(state, batch))
    return [
        {n: decode(tokens) for n, tokens in zip(names, row, strict=True)} | {"reward": reward}
        for *row, reward in zip(*texts, rewards, strict=True)
    ]
