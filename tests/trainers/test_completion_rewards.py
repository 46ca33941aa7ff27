"""Reward functions: their values, a user's own, and messages about their faults."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trainers
from grlu.errors import UserError
from input_pipeline.text.prompts import Prompts
from trainers.completions.rewards import COMPLETION_REWARDS, in_python
from trainers.completions.rollout import Rollout
from trainers.completions.scoring import Rewards, rewards_from

PROMPTS = jnp.array([[1, 2], [3, 4]])
COMPLETIONS = jnp.array([[5, 6, 0], [5, 0, 0]])
TARGET = jnp.array([[5, 6, 0], [5, 6, 0]])
MASK = jnp.array([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
COLUMNS = {"mask": MASK, "target": TARGET}


def score(*names, weights=None, wrong=0.0):
    found = jax.jit(rewards_from(names, weights))(PROMPTS, COMPLETIONS, wrong=wrong, **COLUMNS)
    return found.per_completion, found.per_token


def test_built_in_rewards():
    np.testing.assert_array_equal(score("exact")[0], [1, 0])
    np.testing.assert_array_equal(score("exact", wrong=-1.0)[0], [1, -1])
    np.testing.assert_array_equal(score("match")[1], [[1, 1, 1], [1, 0, 0]])
    np.testing.assert_array_equal(score("match", wrong=-1.0)[1], [[1, 1, 1], [1, -1, 0]])
    np.testing.assert_allclose(score("share")[0], [1, 2 / 3])


def test_rewards_are_weighted_and_summed():
    per_completion, per_token = score("exact", "match", "share", weights=(2.0, 10.0, 3.0))
    np.testing.assert_allclose(per_completion, [5, 2])
    np.testing.assert_array_equal(per_token, [[10, 10, 10], [10, 0, 0]])


def test_a_user_reward_is_used(monkeypatch, tmp_path):
    def brief(prompts, completions, *, mask, **columns):
        return -mask.sum(1)

    monkeypatch.setitem(trainers.COMPLETION_REWARDS, "brief", brief)
    np.testing.assert_array_equal(score("brief")[0], [-3, -2])
    path = tmp_path / "mine.py"
    path.write_text("def odd(prompts, completions, **columns):\n    return completions % 2 * 1.0\n")
    np.testing.assert_array_equal(score(f"{path}:odd")[1], [[1, 0, 0], [1, 0, 0]])


def test_a_plain_python_reward_is_used(monkeypatch):
    def slow(prompts, completions, *, target, **columns):
        return [
            float(list(row).count(5) + sum(prompt))
            for prompt, row in zip(prompts, completions, strict=True)
        ]

    monkeypatch.setitem(COMPLETION_REWARDS, "slow", in_python(slow))
    np.testing.assert_array_equal(score("slow")[0], [4, 8])
    with pytest.raises(UserError, match=r"'slow' raised Tracer.* goes through trainers.in_python"):
        jax.jit(Rewards({"slow": slow}, (1.0,)))(PROMPTS, COMPLETIONS, **COLUMNS)


def explain(function):
    """Return the explanation of a step with two rewards, and that without evidence."""
    rewards = Rewards({"good": COMPLETION_REWARDS["share"], "mine": function}, (1.0, 1.0))
    prompts = Prompts(7, 2, 3, 0, lambda tokens: "".join(map(str, tokens)))
    rollout = Rollout(prompts, rewards, 0.0)

    @jax.jit
    def step():
        scores = rewards(PROMPTS, COMPLETIONS, **COLUMNS)
        sequences = jnp.concatenate([PROMPTS, COMPLETIONS], axis=1)
        return rollout.evidence(sequences, scores, 1)

    evidence = step()
    shapes = rollout.evidence_shapes(2, 1)
    assert {name: (a.shape, a.dtype) for name, a in evidence.items()} == {
        name: (s.shape, s.dtype) for name, s in shapes.items()
    }
    return rollout.explain(evidence), rollout.explain({})


def test_a_non_finite_reward_is_named_with_its_completion():
    found, without = explain(lambda p, c, **columns: jnp.array([1.0, jnp.nan]))
    assert (
        found == "the reward 'mine' gave a value that is not finite for the completion '50' of '34'"
    )
    assert without is None
    outside = lambda p, c, mask, **columns: jnp.where(mask > 0, 1.0, jnp.nan)  # noqa: E731
    assert explain(outside) == (None, None)


def test_the_exception_of_a_reward_in_python_is_named():
    def broken(prompts, completions, **columns):
        raise KeyError("no such word")

    found, without = explain(in_python(broken))
    assert without == "the reward 'mine' raised KeyError: 'no such word'"
    assert found == f"{without} for the completion '560' of '12'"
    found, _ = explain(in_python(lambda prompts, completions, **columns: [1.0]))
    assert "ValueError: returned shape (1,), expected (2,)" in found


def test_errors_in_tracing_are_one_sentence():
    with pytest.raises(
        UserError, match=r"'mine' must return .*, shape \(2,\), or one per token, \(2, 3\)"
    ):
        explain(lambda p, c, **columns: jnp.ones((3,)))
    with pytest.raises(
        UserError, match=r"'mine' raised KeyError: 'length' for completions of shape"
    ):
        explain(lambda p, c, **columns: columns["length"])


@pytest.mark.parametrize(
    ("names", "weights", "said"),
    [
        ([], None, "trainer.rewards is empty"),
        (["exakt"], None, "no reward 'exakt'; did you mean 'exact'"),
        (["exact"], [1.0, 2.0], "a weight for each of the 1 rewards, got 2"),
        (["nowhere.py:f"], None, "there is no file nowhere.py"),
        (["exact", "share", "exact"], None, "names 'exact' twice"),
        (["a.py:f", "b.py:f"], None, "names 'f' twice"),
    ],
)
def test_unknown_rewards_are_refused(names, weights, said):
    with pytest.raises(UserError, match=said):
        rewards_from(names, weights)


def test_an_unchanged_file_is_run_once(tmp_path):
    path, count = tmp_path / "mine.py", tmp_path / "count"
    count.write_text("")
    text = f"import pathlib\ncount = pathlib.Path({str(count)!r})\n"
    text += "count.write_text(count.read_text() + 'x')\ndef f(*given, **columns): pass\n"
    path.write_text(text)
    one, two = (rewards_from([f"{path}:f"], None).functions[f"{path}:f"] for _ in range(2))
    assert one is two
    assert count.read_text() == "x"
    path.write_text(text + "\n")
    os.utime(path, ns=(0, 0))
    rewards_from([f"{path}:f"], None)
    assert count.read_text() == "xx"


def test_a_new_run_forgets_the_exceptions_of_the_last(monkeypatch):
    def broken(prompts, completions, **columns):
        raise KeyError("no such word")

    mine = in_python(broken)
    monkeypatch.setitem(COMPLETION_REWARDS, "mine", mine)
    explain(mine)
    assert rewards_from(["mine"], None).raised == {}


def test_a_wrong_file_is_refused(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("1 / 0")
    with pytest.raises(UserError, match="can't be run: ZeroDivisionError"):
        rewards_from([f"{path}:f"], None)
    path.write_text("")
    with pytest.raises(UserError, match="defines no function 'f'"):
        rewards_from([f"{path}:f"], None)


def test_old_names_of_rewards_are_accepted():
    assert COMPLETION_REWARDS["taste"] is COMPLETION_REWARDS["preference_score"]


def test_rewards_that_name_the_target_use_it():
    assert [n for n in COMPLETION_REWARDS if rewards_from([n], None).use_target] == [
        "exact",
        "match",
        "share",
    ]

    def like_target(prompts, completions, target, **columns):
        return (completions == target).mean(1)

    assert Rewards({"mine": in_python(like_target)}, (1.0,)).use_target
    assert not Rewards({"mine": in_python(len)}, (1.0,)).use_target
