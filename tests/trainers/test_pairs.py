"""Learning from preferences with a known utility."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import input_pipeline
import trainers
from grlu.errors import RunError, UserError
from models import GPT
from trainers.completions.rewards import COMPLETION_REWARDS
from trainers.loop.compiled import compile_chunk
from trainers.policies.policy import PolicyTrainer
from trainers.policies.preference import PreferenceTrainer, preferred_pairs
from trainers.policies.settings import DPO, GRPO, RewardModel

KINDS = {"dpo": DPO, "reward_model": RewardModel}


@functools.cache
def copying():
    return input_pipeline.load("copy", digits=3, test=0.2, examples=300)


@functools.cache
def made(kind, **changes):
    settings = {"batch_size": 32, "optimizer": "adam", "learning_rate": 3e-3, **changes}

    def model(rngs):
        return GPT((8,), 12, layers=1, heads=2, width=16, rngs=rngs)

    trainer = PreferenceTrainer(KINDS[kind](**settings), model, 10, copying())
    return trainer, jax.jit(trainer.step), jax.jit(trainer.init)(jax.random.key(0))


def batch(i):
    rows = np.random.default_rng(i).integers(0, copying().examples, 32)
    return copying().preprocess({k: jnp.asarray(v[rows]) for k, v in copying().train.items()})


def paired(trainer, state):
    pairs = jax.jit(functools.partial(trainer._pairs, doubt=0.0))
    return pairs(state, batch(0), jax.random.key(1))


def test_a_reward_model_learns_the_preferences():
    _, step, state = made("reward_model", horizon=3)
    _, first = step(state, batch(0))
    np.testing.assert_allclose(first["loss"], np.log(2), rtol=1e-5)  # It starts at zero.
    for i in range(150):
        state, values = step(state, batch(i))
    assert values["pair_accuracy"].mean() > 0.9
    assert values["loss"].mean() < 0.3


def test_several_pairs_per_prompt_count_as_one_example():
    trainer, _, state = made("reward_model", horizon=3, pairs=3)
    pairs, _ = paired(trainer, state)
    prompts = np.asarray(trainer.rollout.prompts.columns(batch(0))["prompt"])
    length = prompts.shape[1]
    worth = []
    for sequences, mask in (pairs.chosen, pairs.rejected):
        np.testing.assert_array_equal(sequences[:, :length], np.repeat(prompts, 3, axis=0))
        assert not np.asarray(mask)[:, :length].any()
        found = COMPLETION_REWARDS["preference_score"](
            None, sequences[:, length:], mask=mask[:, length:]
        )
        worth.append(np.asarray(found))
    assert (worth[0] >= worth[1]).all()
    np.testing.assert_allclose(
        np.sort(np.asarray(pairs.utility), axis=1),
        np.sort(np.concatenate(worth).reshape(2, 32, 3).swapaxes(0, 1).reshape(32, 6), axis=1),
        rtol=1e-5,
    )
    values = jax.jit(trainer.evaluate)(state, batch(0))
    assert {v.shape for v in values.values()} == {(32,)}
    assert np.asarray(values["worth_spread"]).mean() > 0.5


def test_dpo_starts_at_the_sampling_policy_and_learns_the_preferences():
    _, step, state = made("dpo", beta=0.5)
    _, first = step(state, batch(0))
    np.testing.assert_allclose(first["margin"], 0, atol=1e-5)
    np.testing.assert_allclose(first["loss"], np.log(2), rtol=1e-5)
    for i in range(60):
        state, values = step(state, batch(i))
    assert values["pair_accuracy"].mean() > 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_both_start_from_the_weights_of_another_run(kind):
    horizon = {"horizon": 3}
    trainer, _, state = made(kind, **(horizon if kind == "reward_model" else {"beta": 0.5}))
    other = trainer.init(jax.random.key(9))
    begun = state.begun_from(other.replace(params=other.drawn_from[0]))
    body = begun.params["body"] if kind == "reward_model" else begun.params
    for tree in (body, begun.drawn_from[0]):
        pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other.drawn_from[0]), strict=True)
        for one, two in pairs:
            np.testing.assert_array_equal(one, two)
    assert jax.tree.structure(begun) == jax.tree.structure(state)


@pytest.mark.parametrize("dataset", ["copy", "sonnets"])
def test_policy_and_reward_model_fit_the_block_by_default(dataset):
    data = input_pipeline.load(dataset)

    def model(rngs):
        return GPT(data.example_shape, data.num_classes, layers=1, heads=1, width=8, rngs=rngs)

    judge = PreferenceTrainer(RewardModel(batch_size=4), model, 10, data)
    scorer = judge.judge(judge.init(jax.random.key(0)))
    policy = PolicyTrainer(GRPO(rewards=("judge",), batch_size=4), model, 10, data, scorer)
    rows = data.preprocess({k: jnp.asarray(v[:4]) for k, v in data.train.items()})
    for trainer in (judge, policy):
        prompts = trainer.rollout.prompts
        assert prompts.length + prompts.horizon == data.example_shape[0]
        state = jax.eval_shape(trainer.init, jax.random.key(0))
        jax.eval_shape(trainer.step, state, rows)
    with pytest.raises(UserError, match="all of which a reward model sees, don't fit"):
        PreferenceTrainer(RewardModel(batch_size=4, horizon=prompts.horizon + 1), model, 10, data)
    wide = GRPO(rewards=("judge",), batch_size=4, horizon=prompts.horizon + 1)
    policy = PolicyTrainer(wide, model, 10, data, scorer)
    state = jax.eval_shape(policy.init, jax.random.key(0))
    with pytest.raises(UserError, match="are more than the"):
        jax.eval_shape(policy.step, state, rows)


def test_the_weights_of_a_judge_are_arguments_of_the_compiled_programs():
    """As constants, they would be part of the programs' text."""
    config = {
        "dataset": {"name": "copy", "digits": 2},
        "model": {"name": "gpt", "layers": 1, "heads": 2, "width": 128, "block": 6},
        "trainer": {"name": "reward_model", "batch_size": 8, "horizon": 2},
    }
    judge = trainers.make_experiment(trainers.resolve(config))
    model = judge.trainer.judge(judge.init())
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(model.variables[0]))
    policy = {"name": "grpo", "batch_size": 8, "horizon": 2, "rewards": ["judge"]}
    config["model"]["width"] = 8
    experiment = trainers.make_experiment(
        trainers.resolve(config | {"trainer": policy}), judge=model
    )
    state, arrays = experiment.init(), dict(experiment.train)
    chunk = compile_chunk(experiment)
    text = chunk.func.lower(*chunk.args, state, arrays, experiment.order(0)[:2], 2).as_text()
    assert size > 800_000
    assert len(text) < size / 2
    assert not any(leaf.shape == (128, 512) for leaf in jax.tree.leaves(state) if leaf.ndim)
    chunk(state, arrays, experiment.order(0)[:2], 2)


def test_doubt_is_the_temperature_of_the_preference():
    pairs = 20_000
    utility = jnp.tile(jnp.array([[1.0, 0.0]]), (pairs, 1))
    sequences, mask = jnp.arange(2 * pairs)[:, None], jnp.ones((2 * pairs, 1))
    for doubt, expected in ((0.0, 1.0), (0.5, jax.nn.sigmoid(2.0))):
        found = preferred_pairs(sequences, mask, utility, doubt, jax.random.key(0))
        np.testing.assert_allclose((found.chosen[0] % 2 == 0).mean(), expected, atol=0.01)
        np.testing.assert_array_equal(found.chosen[0] // 2, found.rejected[0] // 2)


def test_utilities_are_weighted():
    trainer, _, state = made("reward_model", horizon=3, utility=("share",), utility_weights=(-2.0,))
    pairs, evidence = paired(trainer, state)
    np.testing.assert_array_equal(pairs.utility, -2 * evidence["scores"][..., 0])
    assert np.asarray(pairs.utility).min() < 0


def test_tokens_of_all_pairs_are_counted():
    assert made("reward_model", horizon=3, pairs=3)[0].tokens({"train_length": 2.0}) == 12


@pytest.mark.slow
def test_a_constant_or_non_finite_utility_is_reported(tmp_path, monkeypatch):
    monkeypatch.setitem(COMPLETION_REWARDS, "same", lambda p, c, **columns: jnp.ones(len(c)))
    no_fives = lambda p, c, **columns: jnp.where(c[:, 0] == 5, jnp.nan, 1.0)  # noqa: E731
    monkeypatch.setitem(COMPLETION_REWARDS, "no_fives", no_fives)
    config = {
        "dataset": {"name": "copy", "examples": 100},
        "model": {"name": "gpt", "layers": 1, "heads": 1, "width": 8},
        "trainer": {"name": "reward_model", "utility": ["same"], "batch_size": 20, "epochs": 1},
        "run": {"rows_per_epoch": 1},
    }
    trainers.train(config, tmp_path / "same", progress=False)
    assert "the same for every completion?" in (tmp_path / "same" / "log.txt").read_text()
    changes = ["trainer.utility=[no_fives]"]
    with pytest.raises(RunError, match=r"'no_fives' gave a value .* for the completion '3"):
        trainers.train(config, tmp_path / "nan", overrides=changes, progress=False)


@pytest.mark.slow
def test_dpo_writes_samples(tmp_path):
    config = {
        "dataset": {"name": "copy", "examples": 100},
        "model": {"name": "gpt", "layers": 1, "heads": 1, "width": 8},
        "trainer": {"name": "dpo", "utility": ["share"], "batch_size": 20, "epochs": 1, "end": "7"},
    }
    trainers.train(config, tmp_path / "run", progress=False)
    lines = (tmp_path / "run" / "samples.jsonl").read_text().split("\n")[:-1]
    rows = [json.loads(line) for line in lines]
    ends = [row["completion"].find("7") for row in rows]
    assert any(end >= 0 for end in ends)
    assert all(end in (-1, len(row["completion"]) - 1) for row, end in zip(rows, ends, strict=True))


def test_an_unknown_utility_is_refused():
    with pytest.raises(UserError, match="did you mean 'preference_score'"):
        RewardModel(utility=("preference_scor",))
    for name, kind in KINDS.items():
        assert trainers.TRAINERS[name].settings is kind


def recorded(path, count=60):
    """Return preferences for the longer answer."""
    rows = [
        {"prompt": f"{i % 7}?", "chosen": "yes" * (1 + i % 2), "rejected": "no" * (1 + i % 3)}
        for i in range(count)
        if 3 * (1 + i % 2) > 2 * (1 + i % 3)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"preferences:{path}"


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_preferences_are_learned(kind, tmp_path):
    config = {
        "dataset": {"name": recorded(tmp_path / "pairs.jsonl"), "validation": 4, "test": 4},
        "model": {"name": "gpt", "layers": 1, "heads": 1, "width": 8},
        "trainer": {"name": kind, "batch_size": 8, "epochs": 10, "learning_rate": 0.02},
        "run": {"rows_per_epoch": 1},
    }
    result = trainers.train(config, tmp_path / "run", progress=False)
    assert result.metrics["test_pair_accuracy"] > 0.9
    assert result.metrics["test_margin"] > 0.1
    assert "test_utility" not in result.metrics
    with pytest.raises(
        UserError, match=r"holds preferences, from which trainer\.name=reward_model"
    ):
        trainers.train(
            config | {"trainer": {"name": "grpo", "batch_size": 8}},
            tmp_path / "policy",
            progress=False,
        )


def test_the_likelihood_of_recorded_answers_ignores_padding_and_prompt():
    trainer, _, state = made("dpo")
    sequences = jnp.array([[1, 4, 5, 6, 7, 0, 0]])
    mask = jnp.array([[0.0, 0, 1, 1, 0, 0, 0]])

    @jax.jit
    def both(state):
        policy, _ = trainer._policies(state, state.params)
        logits = trainer.model(state)(sequences[:, :3])
        return trainer._log_likelihood(policy, (sequences, mask)), jax.nn.softmax(logits, -1)

    found, p = both(state)
    np.testing.assert_allclose(found[0], np.log(p[0, 1, 5] * p[0, 2, 6]), rtol=1e-5)
