"""Completions rewarded under any rule: moved weights sample anew, other rules respond to noise."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

import grlu
import input_pipeline
import trainers
from grlu.errors import RunError, UserError
from grlu.noise.parameters import ParameterNoise
from grlu.rules.rule import pure_objective
from models import GPT
from trainers.completions.rewards import COMPLETION_REWARDS
from trainers.config.schema import build


@functools.cache
def copying():
    return input_pipeline.load("copy", digits=2, test=0.2)


def gpt(width):
    return GPT((6,), 12, layers=1, heads=2, width=width, rngs=nnx.Rngs(0))


def made(trainer, width=8, **options):
    """Return a trainer's objective as a pure function, a model's variables, and a batch."""
    options = {"objective": "completion_reward", "rewards": ("match",), **options}
    settings = build(trainers.TRAINERS[trainer].settings, options, "trainer")
    model = gpt(width)
    # At the initial weights all tokens are about as likely.
    nnx.update(model, jax.tree.map(lambda p: 5 * p if p.ndim > 1 else p, nnx.state(model)))
    objective = settings.make_objective(copying())
    objective.prepare(model)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    batch = copying().preprocess({k: jnp.asarray(v[:4]) for k, v in copying().train.items()})
    return pure_objective(graphdef, objective, has_aux=True), params, rest, batch


def compiled(function):
    """Compile in half the time: such small programs need not be fast."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def gradient(rule, objective, *given):
    rewards, _, ascent = compiled(functools.partial(rule.gradient, objective))(
        *given, jax.random.key(2)
    )
    return rewards, ascent


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0])


def cosine(one, two):
    one, two = flat(one), flat(two)
    return one @ two / np.linalg.norm(one) / np.linalg.norm(two)


def test_the_mean_slope_is_the_gradient_of_the_expected_reward():
    objective, params, rest, batch = made("backprop", completions=2000, horizon=1)
    graphdef = nnx.graphdef(gpt(8))

    def expected(params):
        """Use one token, so that all answers can be enumerated."""
        model = nnx.merge(graphdef, params, nnx.State({}), copy=True)
        prompts, target = batch["tokens"][:, :4], batch["tokens"][:, 4]
        chosen = nnx.softmax(model(prompts)[:, -1])
        return jnp.take_along_axis(chosen, target[:, None], 1).mean()

    rewards, ascent = gradient(grlu.Backprop(), objective, params, rest, batch)
    value, exact = compiled(jax.value_and_grad(expected))(params)
    np.testing.assert_allclose(rewards.mean(), value, atol=0.02)
    assert cosine(ascent, exact) > 0.97
    assert 0.8 < np.linalg.norm(flat(ascent)) / np.linalg.norm(flat(exact)) < 1.2


def test_node_perturbation_estimates_the_slope_of_the_samples():
    """The model is so small that the directions of all units can be orthogonal."""
    objective, params, rest, batch = made("grlu", width=4, horizon=1, reward_mode="±1")
    rule = grlu.NodePerturbation(samples=256, sigma=0.01, noise="orthogonal")
    rewards, found = gradient(rule, objective, params, rest, batch)
    clean, exact = gradient(grlu.Backprop(), objective, params, rest, batch)
    np.testing.assert_array_equal(rewards, clean)  # The same completions.
    assert np.abs(flat(exact)).max() > 0.01
    assert cosine(found, exact) > 0.97


@pytest.mark.parametrize("greedy", [False, True])
def test_moved_weights_sample_like_a_model_with_these_weights(greedy):
    options = {"greedy": greedy, "completions": 1 if greedy else 2}
    low = made("evolution", rank=1, **options)
    plain, params, rest, batch = made("evolution", **options)
    noise = ParameterNoise(low[0], params, rest, batch, 1)
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
    assert {i for i, p in enumerate(paths) if "kernel" in p} == set(noise.low)
    direction = noise.draw(jax.random.key(1))
    epsilon = noise.restore(noise.weighted(jax.tree.map(lambda e: e[None], direction), jnp.ones(1)))
    written, plain = set(), compiled(plain)
    along = compiled(lambda step: noise.rewards(direction, step, rest, batch))
    for step in (0.0, 0.3, -0.3):
        moved = jax.tree.map(lambda p, e: p + step * e, params, epsilon)  # noqa: B023
        rewards, (values, _) = plain(moved, rest, batch)
        np.testing.assert_array_equal(along(step), rewards)
        np.testing.assert_array_equal(rewards, values["reward"])
        written.add(tuple(rewards.tolist()))
    assert len(written) > 1


CONFIG = {
    "dataset": {"name": "copy", "digits": 2},
    "model": {"name": "gpt", "layers": 1, "heads": 2, "width": 16},
    "trainer": {"objective": "completion_reward", "batch_size": 16, "optimizer": "adam"},
    "run": {"rows_per_epoch": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reward", "options"),
    [
        ("evolution", "fives", {"population": 32, "rank": 1, "sigma": 0.05, "learning_rate": 0.03}),
        ("grlu", "token:5", {"samples": 4, "sigma": 0.02, "completions": 4, "learning_rate": 0.01}),
    ],
)
def test_a_run_learns_from_reward_alone(name, reward, options, monkeypatch, tmp_path):
    """A reward of the user's own, in Python, has no slope."""
    fives = trainers.in_python(lambda prompts, completions, **columns: (completions == 5).mean(1))
    monkeypatch.setitem(COMPLETION_REWARDS, "fives", fives)
    options = {"name": name, "rewards": [reward], "discount": 0.0, "epochs": 8, **options}
    config = CONFIG | {"trainer": CONFIG["trainer"] | options}
    result = trainers.train(config, tmp_path / "run", progress=False)
    assert result.metrics["test_reward"] > 0.4  # 1 / 6 by chance
    assert "test_nll" in result.metrics
    # The reward does not compare with the target.
    assert not {"test_pass_k", "test_greedy_exact"} & set(result.metrics)
    assert trainers.evaluate(tmp_path / "run")["test_reward"] == result.metrics["test_reward"]
    shown = (tmp_path / "run" / "samples.jsonl").read_text().split("\n")[:-1]
    assert {"step", "prompt", "completion", "target", "reward"} == set(json.loads(shown[-1]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "grlu", "greedy": True}, "respond to noise on weights alone"),
        ({"rewards": ["exakt"]}, "did you mean 'exact'"),
        ({"completions": 0}, "trainer.completions must be at least 1"),
        ({"horizon": 3}, "too few for a trainer.prompt of 4 and a trainer.horizon of 3"),
    ],
)
def test_wrong_settings_are_refused(change, said, tmp_path):
    trainer = CONFIG["trainer"] | {"name": "evolution"} | change
    with pytest.raises(UserError, match=said):
        trainers.train(CONFIG | {"trainer": trainer}, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "traced"), [("weight_perturbation", False), ("grlu", True)])
def test_a_non_finite_reward_is_named_with_its_completion(name, traced, monkeypatch, tmp_path):

    def no_sevens(prompts, completions, **columns):
        return jnp.where(completions[:, 0] == 9, jnp.nan, 1.0)

    def broken(prompts, completions, **columns):
        raise ValueError("no verb")

    reward = no_sevens if traced else trainers.in_python(broken)
    monkeypatch.setitem(COMPLETION_REWARDS, "strict", reward)
    options = {"name": name, "rewards": ["exact", "strict"], "epochs": 1, "completions": 4}
    config = CONFIG | {"trainer": CONFIG["trainer"] | options}
    what = "gave a value that is not finite" if traced else "raised ValueError: no verb"
    written = "7." if traced else ".+"
    said = rf"step 1 of .* the reward 'strict' {what} for the completion '{written}' of '.*='"
    with pytest.raises(RunError, match=said):
        trainers.train(config, tmp_path / "run", progress=False)
