"""Losses of a rollout's later updates, where policy and sampling policy differ."""

import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

import input_pipeline
from grlu import kl
from models import GPT
from trainers.policies.learner import Experience
from trainers.policies.policy import PolicyTrainer
from trainers.policies.settings import GRPO, PPO

V = 12


@functools.cache
def made(estimator, kind=GRPO, **changes):
    settings = {"kl": estimator, "beta_kl": 0.5, "reference": "random", "horizon": 1, "samples": V}
    settings |= {"batch_size": 2, "aggregation": "constant", "rewards": ("match",), **changes}

    def model(rngs):
        return GPT((6,), V, layers=1, heads=2, width=16, rngs=rngs)

    trainer = PolicyTrainer(kind(**settings), model, 10, input_pipeline.load("copy", digits=2))
    differentiate = jax.jit(trainer.learner._gradient)
    return trainer, jax.jit(trainer.init)(jax.random.key(0)), differentiate


def every_token():
    """Every token once after each of two prompts, as if sampled from the uniform policy."""
    prompts = np.repeat([[1, 2, 3, 4], [5, 6, 7, 8]], V, 0)
    tokens = np.tile(np.arange(V), 2)[:, None]
    zeros = np.zeros(tokens.shape, np.float32)
    experience = Experience(
        sequences=np.concatenate([prompts, tokens], 1),
        mask=zeros + 1,
        sampled=zeros - np.log(V),
        target=tokens,
        old=zeros - np.log(V),
        advantages=zeros,
        values=zeros,
        value_targets=zeros,
    )
    return jax.tree.map(lambda x: jnp.asarray(x, x.dtype.name.replace("64", "32")), experience)


def gradient(estimator, **changes):
    """Gradient of the KL penalty on every token."""
    _, state, differentiate = made(estimator, **changes)
    grads, _ = differentiate(state, (state.params, None), every_token(), jnp.float32(0.5))
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


@pytest.mark.parametrize(("ratio", "advantage", "key"), [(1.3, 1, "high"), (0.7, -1, "low")])
@pytest.mark.parametrize("distance", [0.2, 0.4])
def test_a_clipped_ratio_has_no_gradient(ratio, advantage, key, distance):
    trainer, state, differentiate = made("exact", updates=2, **{f"clip_{key}": distance})
    experience = every_token()
    policy = jax.jit(trainer.learner.log_policy)
    log_p, _ = policy(state.params, state.rest, experience.sequences)
    new = kl.chosen(log_p, experience.sequences[:, 4:])
    experience = experience._replace(
        old=new - np.log(ratio), advantages=advantage * experience.mask
    )
    grads, values = differentiate(state, (state.params, None), experience, jnp.float32(0))
    clipped = distance < 0.3
    np.testing.assert_allclose(values["clip_fraction"], float(clipped), rtol=1e-6)
    assert (jnp.abs(jax.flatten_util.ravel_pytree(grads[0])[0]).max() == 0) == clipped


def test_a_clipped_value_has_no_gradient_and_its_weight_scales_the_others():
    """The critic starts at 0; the old value is 1, and the target -1."""
    found = {}
    for clip, weight in ((0.2, 1.0), (None, 1.0), (None, 2.0)):
        changes = {"samples": V, "updates": 1, "minibatches": 1, "value_weight": weight}
        _, state, differentiate = made("exact", PPO, value_clip=clip, **changes)
        experience = every_token()
        ones = experience.mask
        experience = experience._replace(values=ones, value_targets=-ones)
        trained = (state.params, state.critic[0])
        grads, _ = differentiate(state, trained, experience, jnp.float32(0))
        found[clip, weight] = jax.flatten_util.ravel_pytree(grads[1])[0]
    assert jnp.abs(found[0.2, 1.0]).max() == 0
    assert jnp.abs(found[None, 1.0]).max() > 0.1
    np.testing.assert_allclose(found[None, 2.0], 2 * found[None, 1.0], rtol=1e-6)
