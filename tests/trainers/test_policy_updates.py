"""Losses of a rollout's later updates, where policy and sampling policy differ."""

import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

import input_pipeline
from models import GPT
from trainers.policy import PolicyTrainer
from trainers.policy_settings import GRPO
from trainers.policy_updates import Drawn

V = 12


@functools.cache
def made(estimator, **changes):
    settings = {"kl": estimator, "beta_kl": 0.5, "reference": "random", "horizon": 1, "samples": V}
    settings |= {"batch_size": 2, "aggregation": "constant", "rewards": ("match",), **changes}

    def model(rngs):
        return GPT((6,), V, layers=1, heads=2, width=16, rngs=rngs)

    trainer = PolicyTrainer(GRPO(**settings), model, 10, input_pipeline.load("copy", digits=2))
    return trainer, trainer.init(jax.random.key(0))


def gradient(estimator, **changes):
    """Gradient of the loss on every token once, as if sampled from the uniform policy."""
    trainer, state = made(estimator, **changes)
    prompts = jnp.repeat(jnp.array([[1, 2, 3, 4], [5, 6, 7, 8]]), V, 0)
    tokens = jnp.tile(jnp.arange(V), 2)[:, None]
    zeros = jnp.zeros(tokens.shape)
    drawn = Drawn(
        sequences=jnp.concatenate([prompts, tokens], 1),
        mask=zeros + 1,
        sampled=zeros - np.log(V),
        target=tokens,
        old=zeros - np.log(V),
        advantages=zeros,
        values=zeros,
        value_targets=zeros,
    )
    grads, _ = trainer.learner._gradient(state, (state.params, None), None, drawn, jnp.float32(0.5))
    return jax.flatten_util.ravel_pytree(grads[0])[0]


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_k2_in_the_loss_has_the_exact_gradient_off_policy(micro_batches):
    exact = gradient("exact", updates=2)
    found = gradient("k2", updates=2, micro_batches=micro_batches)
    assert jnp.abs(exact).max() > 1e-3
    np.testing.assert_allclose(found, exact, atol=1e-6)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_a_single_update_is_on_policy_and_has_no_importance_weight(estimator):
    """With one update the sampled tokens are the policy's own, whatever `old` holds."""
    once = gradient(estimator, updates=1)
    assert jnp.abs(once - gradient(estimator, updates=2)).max() > 1e-4
