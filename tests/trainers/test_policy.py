"""Policy trainer: invariants, negative controls and errors."""

import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import input_pipeline
import trainers
from grlu.errors import RunError, UserError
from input_pipeline.text.prompts import bigram_table
from models import GPT
from trainers.completions.evaluation import key_from
from trainers.completions.rewards import COMPLETION_REWARDS
from trainers.policies.policy import PolicyTrainer
from trainers.policies.settings import GRPO, PPO, PolicySettings, Reinforce

KINDS = {"reinforce": Reinforce, "ppo": PPO, "grpo": GRPO}
DIGITS = 2


@functools.cache
def copying():
    """Return prompts such as "\\n21=", whose targets are the two digits."""
    return input_pipeline.load("copy", digits=DIGITS, test=0.2)


@functools.cache
def made(kind="grpo", attention="multi_head", value_head=False, **changes):
    """Return a trainer of a small model, its compiled step, and a state."""
    settings = {"rewards": ("match",), "batch_size": 8, "samples": 4, "optimizer": "adam"}
    settings |= {"learning_rate": 3e-3, **changes}

    def model(rngs):
        return GPT(
            (6,), 12, layers=1, heads=2, width=16, attention=attention,
            value_head=value_head, rngs=rngs,
        )  # fmt: skip

    trainer = PolicyTrainer(KINDS[kind](**settings), model, 10, copying())
    return trainer, jax.jit(trainer.step), jax.jit(trainer.init)(jax.random.key(0))


def batch(i=0, size=8):
    data = copying()
    rows = np.random.default_rng(i).integers(0, data.examples, size)
    return data.preprocess({k: jnp.asarray(v[rows]) for k, v in data.train.items()})


def evaluated(trainer, state):
    found = jax.jit(trainer.evaluate)(state, copying().preprocess(dict(copying().test)))
    return {name: np.asarray(value) for name, value in found.items()}


def run(step, state, count, start=0):
    for i in range(start, start + count):
        state, values = step(state, batch(i))
    return state, {k: np.asarray(v) for k, v in values.items()}


@pytest.mark.parametrize(("kind", "attention"), [("grpo", "multi_head"), ("ppo", "latent")])
def test_the_first_update_is_at_the_policy_that_was_sampled(kind, attention):
    _, step, state = made(kind, attention, reference="start")
    for i in range(2):
        state, values = step(state, batch(i))
        assert values["mismatch"].max() < 1e-5
        np.testing.assert_allclose(values["ratio"], 1.0, atol=1e-6)
        if kind != "ppo":  # One update a rollout.
            assert (values["clip_fraction"] == 0).all()
            np.testing.assert_allclose(values["ratio"], 1.0, atol=2e-7)
    # The reference is the policy of the start.
    assert values["kl"].mean() > 0


def test_zero_std_counts_groups_with_equal_rewards_per_token(monkeypatch):
    def sums(prompts, completions, **columns):  # The total reward is 1 for each.
        first = (completions[:, :1] % 2) * 1.0
        return jnp.concatenate([first, 1 - first], axis=1)

    monkeypatch.setitem(COMPLETION_REWARDS, "sums", sums)
    _, step, state = made(rewards=("sums",), discount=0.0)
    _, values = step(state, batch())
    assert (values["reward"] == 1).all()
    assert values["zero_std"].mean() < 0.5  # An eighth, by chance.
    assert values["gradient"].min() > 0
    trainer, _, _ = made("ppo", samples=1)
    assert "zero_std" not in trainer.metrics


def test_evaluation_samples_depend_on_the_prompts_alone():
    prompts = jnp.array([[1, 2], [3, 4]])
    keys = [key_from(p) for p in (prompts, prompts, prompts[::-1], prompts.at[1, 1].set(5))]
    found = [jax.random.key_data(key).tolist() for key in keys]
    assert found[0] == found[1]
    assert len({tuple(key) for key in found}) == 3


@pytest.mark.slow
def test_micro_batches_change_nothing():
    options = {"aggregation": "token", "beta_kl": 0.1, "entropy": 0.01, "reference": "bigram"}
    options |= {"end": "0", "optimizer": "sgd", "learning_rate": 0.1, "critic": "apart"}
    found = []
    for parts in (1, 4):
        _, step, state = made("ppo", micro_batches=parts, **options)
        found.append(step(state, batch()))
    for one, two in zip(*(jax.tree.leaves((s.params, s.critic, v)) for s, v in found), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_policy_learns_from_reward_alone(kind):
    _, step, state = made(kind, discount=0.0, samples=8, rewards=("token:5",))
    state, first = run(step, state, 1)
    assert first["reward"].mean() < 0.5  # 1/6 by chance, of 2
    state, last = run(step, state, 60)
    assert last["reward"].mean() > 1.9


def rolled(prompts, completions, **columns):
    """Return the rewards of the next prompt's samples."""
    earned = (completions == 5).astype(jnp.float32)
    return jnp.roll(earned.reshape(-1, 8, DIGITS), 1, axis=1).reshape(earned.shape)


@pytest.mark.slow
def test_shuffled_rewards_do_not_learn(monkeypatch):
    monkeypatch.setitem(COMPLETION_REWARDS, "shuffled", rolled)
    _, step, state = made(rewards=("shuffled",), discount=0.0, samples=8)
    _, last = run(step, state, 60)
    assert last["reward"].mean() < 1


@pytest.mark.parametrize(
    ("kind", "advantage"), [("reinforce", "leave_one_out"), ("grpo", "group_mean_std")]
)
def test_equal_rewards_give_no_gradient(kind, advantage, monkeypatch):
    monkeypatch.setitem(COMPLETION_REWARDS, "same", lambda p, c, **columns: jnp.full(len(c), 0.7))
    _, step, state = made(kind, rewards=("same",), advantage=advantage)
    after, values = step(state, batch())
    assert (values["gradient"] == 0).all()
    assert (values["zero_std"] == 1).all()
    for one, two in zip(jax.tree.leaves(state.params), jax.tree.leaves(after.params), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "place"), [("exact", "loss"), ("exact", "reward"), ("k1", "reward")]
)
def test_a_large_beta_pulls_to_the_reference(estimator, place):
    options = {"beta_kl": 10.0, "reference": "bigram", "learning_rate": 1e-2, "batch_size": 16}
    _, step, state = made("reinforce", kl=estimator, kl_in=place, **options)
    _, before = step(state, batch(size=16))
    for i in range(80):
        state, after = step(state, batch(i, 16))
    assert before["kl"].mean() > 0.25
    assert after["kl"].mean() < 0.35 * before["kl"].mean()


@pytest.mark.slow
def test_the_kl_penalty_warms_up_over_the_sampled_tokens():
    options = {"beta_kl": 1.0, "reference": "random", "optimizer": "sgd", "learning_rate": 0.1}
    per_step = 8 * 4 * DIGITS
    _, warm, state = made(kl_warmup_tokens=4 * per_step, rewards=("exact",), **options)
    _, half, _ = made(rewards=("exact",), **(options | {"beta_kl": 0.5}))
    after, _ = warm(state, batch())
    assert after.tokens == per_step

    def moved(step, tokens):
        found, _ = step(state.replace(tokens=jnp.asarray(tokens, state.tokens.dtype)), batch())
        return np.concatenate([np.ravel(p) for p in jax.tree.leaves(found.params)])

    none, middle, whole, later = (moved(warm, i * per_step) for i in (0, 2, 4, 5))
    np.testing.assert_array_equal(middle, moved(half, 0))
    np.testing.assert_array_equal(whole, later)
    # Without momentum, the update is affine in the weight, so `none` has weight 0.
    np.testing.assert_allclose(whole - middle, middle - none, atol=1e-6)
    assert np.abs(whole - none).max() > 1e-4


def test_the_reference_is_the_initial_policy_and_stays_fixed():
    trainer, step, state = made(reference="start")
    other = trainer.init(jax.random.key(7))
    begun = state.begun_from(other)
    after, _ = step(begun, batch())
    for tree in (begun.reference[0], after.reference[0]):
        for one, two in zip(jax.tree.leaves(other.params), jax.tree.leaves(tree), strict=True):
            np.testing.assert_array_equal(one, two)
    _, _, random = made(reference="random")
    kept = random.begun_from(other)
    assert kept.reference is random.reference


def test_a_run_without_a_penalty_has_a_reference_only_if_it_names_one():
    plain, named, penalised = made(), made(reference="start"), made(beta_kl=0.1)
    assert plain[2].reference is None
    assert "kl" not in (*plain[0].metrics, *plain[0].evaluated)
    for trainer, _, state in (named, penalised):
        assert state.reference is not None
        assert "kl" in trainer.metrics
        assert "kl" in trainer.evaluated
    after, logged = (step(state, batch())[0].params for _, step, state in (plain, named))
    for one, two in zip(jax.tree.leaves(after), jax.tree.leaves(logged), strict=True):
        np.testing.assert_array_equal(one, two)


def test_evaluation_samples_at_its_own_temperature():
    trainer, _, state = made(eval_temperature=1e-4, eval_samples=3)
    values = evaluated(trainer, state)
    for name in ("pass_1", "pass_k"):
        np.testing.assert_array_equal(values[name], values["greedy_exact"])
    warm = evaluated(*(made(eval_samples=3)[i] for i in (0, 2)))
    assert (warm["pass_k"] >= warm["pass_1"]).all()
    assert (warm["reward"] != values["reward"]).any()


def test_whitened_advantages_have_mean_0_and_standard_deviation_1():
    _, step, state = made(whiten=True, advantage="none")
    _, values = step(state, batch())
    np.testing.assert_allclose(values["advantage"], 0, atol=1e-5)
    np.testing.assert_allclose(values["advantage_spread"], 1, rtol=1e-3)


def test_rewards_that_ignore_the_target_report_no_match_with_it():
    own, both = made(rewards=("token:5",)), made(rewards=("token:5", "exact"))
    names = {"greedy_accuracy", "greedy_exact", "pass_1", "pass_k"}
    assert not names & {*own[0].evaluated}
    assert names <= {*both[0].evaluated}
    batch = copying().preprocess(dict(copying().test))
    for trainer, _, state in (own, both):
        assert jax.eval_shape(trainer.evaluate, state, batch).keys() == {*trainer.evaluated}


def test_the_bigram_reference_counts_the_training_split():
    table = bigram_table(np.array([[0, 1, 2], [0, 1, 1]]), 3)
    expected = np.array([[1, 3, 1], [1, 2, 2], [1, 1, 1]]) / np.array([[5], [5], [3]])
    np.testing.assert_allclose(np.exp(table), expected, rtol=1e-6)
    with pytest.raises(UserError, match="at most 8,192: use start"):
        bigram_table(np.zeros((1, 2), int), 50_257)
    _, _, state = made(reference="bigram")
    np.testing.assert_allclose(np.exp(state.reference).sum(1), 1, rtol=1e-5)


@pytest.mark.slow
def test_the_critic_learns_the_returns(monkeypatch):
    def promised(prompts, completions, **columns):
        return prompts[:, 1] / 10  # The first digit, whatever is written.

    monkeypatch.setitem(COMPLETION_REWARDS, "promised", promised)
    options = {"learning_rate": 0.0, "value_learning_rate": 1e-2, "rewards": ("promised",)}
    _, step, state = made("ppo", **options)
    _, before = step(state, batch())
    after_state, after = run(step, state, 30)
    assert after["value_loss"].mean() < 0.3 * before["value_loss"].mean()
    for one, two in zip(*map(jax.tree.leaves, (state.params, after_state.params)), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.slow
def test_partial_credit_is_the_targets_token_after_the_sampled_tokens(monkeypatch):
    monkeypatch.setitem(COMPLETION_REWARDS, "none", lambda p, c, **columns: jnp.zeros(len(c)))
    options = {"rewards": ("none",), "partial_logprob": 1.0}
    trainer, step, state = made(**options)
    before = evaluated(trainer, state)["nll"].mean()
    state, _ = run(step, state, 60)
    assert evaluated(trainer, state)["nll"].mean() < before - 0.1


CONFIG = {
    "dataset": {"name": "copy", "digits": 2},
    "model": {"name": "gpt", "layers": 1, "heads": 2, "width": 16},
    "trainer": {"rewards": ["match"], "batch_size": 8, "samples": 4, "beta_kl": 0.01},
    "run": {"rows_per_epoch": 1, "keep_last": 10},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folder of a GRPO run whose completions end at 7, to read or to copy."""
    options = {"name": "grpo", "epochs": 2, "kl_warmup_tokens": 1000, "end": "7"}
    path = tmp_path_factory.mktemp("policy") / "trained"
    config = CONFIG | {"trainer": CONFIG["trainer"] | options}
    assert trainers.train(config, path, progress=False).step == 20
    return path


@pytest.mark.slow
def test_resume_is_bit_identical(trained, tmp_path, same_run):
    """`test_rlhf.py` resumes PPO."""
    half = tmp_path / "half"
    shutil.copytree(trained, half)
    shutil.rmtree(half / "checkpoints" / "20")
    trainers.resume(half, progress=False)
    assert (half / "metrics.csv").read_bytes() == (trained / "metrics.csv").read_bytes()
    same_run(half, trained)
    assert "test_pass_k" in trainers.evaluate(half)


@pytest.mark.slow
def test_a_reference_can_be_a_run(trained, tmp_path):
    config = CONFIG | {"trainer": CONFIG["trainer"] | {"name": "grpo", "epochs": 1}}
    held = config["trainer"] | {"reference": str(trained)}
    untrained = {"objective": "lm", "name": "backprop", "epochs": 0, "batch_size": 8}
    two = config | {"run": {"seeds": 2}, "trainer": untrained}
    trainers.train(two, tmp_path / "two", progress=False)
    other = held | {"reference": str(tmp_path / "two")}
    with pytest.raises(UserError, match="has several seeds, and a reference must be one model"):
        trainers.train(config | {"trainer": other}, tmp_path / "none", progress=False)
    result = trainers.train(config | {"trainer": held}, tmp_path / "second", progress=False)
    assert result.metrics["test_kl"] > 0


def test_a_reference_with_other_characters_is_refused(tmp_path):
    untrained = {"objective": "lm", "name": "backprop", "epochs": 0, "batch_size": 8}
    runs = {}
    for letters in ("abc", "abd"):
        text = tmp_path / f"{letters}.txt"
        text.write_text(letters * 400)
        data = {"name": f"text:{text}", "length": 6}
        runs[letters] = CONFIG | {"dataset": data, "trainer": untrained}
    trainers.train(runs["abc"], tmp_path / "first", progress=False)
    held = {"name": "grpo", "reference": str(tmp_path / "first")}
    said = "trainer.reference: the run in .*first has other tokens, the characters 'abc', .* 'abd'"
    with pytest.raises(UserError, match=said):
        trainers.train(runs["abd"] | {"trainer": held}, tmp_path / "second", progress=False)
    scores = {"name": "reward_model", "epochs": 0, "horizon": 4, "batch_size": 8}
    trainers.train(runs["abc"] | {"trainer": scores}, tmp_path / "judge", progress=False)
    with pytest.raises(UserError, match="judge is a reward model, which scores texts and writes"):
        trainers.generate(tmp_path / "judge")
    held["reference"] = str(tmp_path / "judge")
    with pytest.raises(UserError, match=r"trainer\.reference must be a language model: .* scores"):
        trainers.train(runs["abc"] | {"trainer": held}, tmp_path / "second", progress=False)


def test_a_non_finite_reward_is_named_with_its_completion(tmp_path, monkeypatch):
    def sometimes(prompts, completions, **columns):
        return jnp.where(completions[:, 0] == 5, jnp.nan, 1.0)

    monkeypatch.setitem(COMPLETION_REWARDS, "sometimes", sometimes)
    config = CONFIG | {"trainer": CONFIG["trainer"] | {"name": "grpo", "rewards": ["sometimes"]}}
    said = (
        r"step 1 of .* the reward 'sometimes' gave a value that is not finite for the completion '3"
    )
    with pytest.raises(RunError, match=said):
        trainers.train(config, tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"horizon": 3}, "example of copy has 6 tokens, too few for a trainer.prompt of 4 and"),
        ({"rewards": ["judge"]}, "'judge' needs a reward model: name its stage, or its run"),
        ({"end": "=" + "1"}, "trainer.end must be one token, and '=1' is 2"),
        (
            {"end": "x"},
            "trainer.end='x': the character 'x' at position 0 of the text is not in the vocabulary",
        ),
        ({"end": 7}, "string or null, got 7; as text it is written 'trainer.end=\"7\"'"),
        ({"samples": 1}, "trainer.samples must be at least 2, got 1"),
        ({"minibatches": 3}, "must divide the 32 completions"),
        ({"kl": "k1"}, "zero on average"),
        ({"kl": "k3", "kl_in": "reward"}, "vanishes near the reference: use exact or k1"),
        ({"advantage": "gae", "critic": "shared"}, "model.value_head=true"),
        ({"reference": "none"}, "beta_kl needs a trainer.reference"),
        ({"reference": "nowhere"}, "must be start, random, bigram, none or the folder of a run: n"),
        (
            {"rewards": ["token:12"]},
            "for a token outside the vocabulary: copy has the tokens 0 to 11",
        ),
        ({"rewards": ["exakt"]}, "did you mean 'exact'"),
        ({"loss": "reinforce", "updates": 2}, "use trainer.loss=clip"),
        ({"temperature": 0.0}, "trainer.temperature must be positive"),
    ],
)
def test_wrong_settings_are_refused(change, said, tmp_path):
    config = CONFIG | {"trainer": CONFIG["trainer"] | {"name": "grpo"} | change}
    with pytest.raises(UserError, match=said):
        trainers.train(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"name": "gpt", "block": 4}, "2 new ones don't fit the model's block of 4: set trainer.p"),
        ({"name": "gpt", "causal": False}, "sees only what comes before: set model.causal=true"),
        ({"name": "mlp"}, "needs a model that writes, such as gpt, and model.name is mlp"),
    ],
)
@pytest.mark.parametrize("kind", ["grpo", "reward_model"])
def test_completions_longer_than_the_block_are_refused(kind, model, said, tmp_path):
    trainer = {"name": kind, "batch_size": 8} | ({"horizon": 2} if "block" in model else {})
    config = CONFIG | {"model": model, "trainer": trainer}
    said = said.replace("2 new ones", ".* new ones.*") if kind == "reward_model" else said
    with pytest.raises(UserError, match=said):
        trainers.train(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_reward_that_fails_leaves_no_folder(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def f(prompts, completions, **columns): return completions[:1]\n")
    for name in ("grpo", "evolution"):
        trainer = {"name": name, "rewards": [f"{path}:f"], "batch_size": 8}
        trainer |= {"objective": "completion_reward"} if name == "evolution" else {}
        with pytest.raises(UserError, match="must return one number per completion, shape"):
            trainers.train(CONFIG | {"trainer": trainer}, tmp_path / "run", progress=False)
        assert not (tmp_path / "run").exists()


def test_images_are_refused(tmp_path):
    config = CONFIG | {"trainer": CONFIG["trainer"] | {"name": "grpo"}}
    with pytest.raises(UserError, match="a policy continues text, and digits is not text"):
        trainers.train(config | {"dataset": {"name": "digits"}}, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("when", ["validation", "test"])
def test_a_reward_that_fails_in_evaluation_stops_the_run(when, tmp_path, monkeypatch):
    data = copying()
    asked = {tuple(row) for row in np.asarray(getattr(data, when)["tokens"])[:, :4].tolist()}

    def broken(prompts, completions, **columns):
        if tuple(prompts[0].tolist()) in asked:
            raise ValueError("not here")
        return completions[:, 0] * 1.0

    monkeypatch.setitem(COMPLETION_REWARDS, "broken", trainers.in_python(broken))
    trainer = CONFIG["trainer"] | {"name": "grpo", "rewards": ["broken"], "epochs": 1}
    dataset = CONFIG["dataset"] | {"test": 0.2}
    said = rf"{when}_reward is not a number after step \d+ .*'broken' raised ValueError: not here"
    with pytest.raises(RunError, match=said):
        trainers.train(
            CONFIG | {"trainer": trainer, "dataset": dataset}, tmp_path / "run", progress=False
        )
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))


def test_every_policy_has_settings():
    for name, kind in KINDS.items():
        assert trainers.TRAINERS[name].settings is kind
        assert issubclass(kind, PolicySettings)


@pytest.mark.slow
def test_samples_end_with_the_policys_end_token(trained):
    texts = trainers.generate(trained, "12=", tokens=40, samples=20)
    assert all(len(text) <= 3 + 40 for text in texts)
    ended = [text for text in texts if "7" in text]
    assert len(ended) > 10
    # A prompt as `samples.jsonl` shows it, with the line feed of a task, is the same prompt.
    shown = trainers.generate(trained, "\n12=", tokens=40, samples=20)
    assert [text.removeprefix("\n") for text in shown] == texts
    assert all(text.index("7") == len(text) - 1 for text in ended)
