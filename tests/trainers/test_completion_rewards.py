"""Rewards: what they pay, a user's own, and what is said of their faults."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trainers
from grlu.errors import UserError
from trainers.completion_rewards import COMPLETION_REWARDS, Rewards, in_python, rewards_of

PROMPTS = jnp.array([[1, 2], [3, 4]])
COMPLETIONS = jnp.array([[5, 6, 0], [5, 0, 0]])
TARGET = jnp.array([[5, 6, 0], [5, 6, 0]])
MASK = jnp.array([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
COLUMNS = {"mask": MASK, "target": TARGET}


def paid(*names, weights=None, wrong=0.0):
    found = jax.jit(rewards_of(names, weights))(PROMPTS, COMPLETIONS, wrong=wrong, **COLUMNS)
    assert (found.fault == -1).all()
    return found.whole, found.each


def test_what_is_paid():
    np.testing.assert_array_equal(paid("exact")[0], [1, 0])
    np.testing.assert_array_equal(paid("exact", wrong=-1.0)[0], [1, -1])
    np.testing.assert_array_equal(paid("match")[1], [[1, 1, 1], [1, 0, 0]])
    np.testing.assert_array_equal(paid("match", wrong=-1.0)[1], [[1, 1, 1], [1, -1, 0]])
    np.testing.assert_allclose(paid("share")[0], [1, 2 / 3])


def test_they_are_weighted_and_summed():
    whole, each = paid("exact", "match", "share", weights=(2.0, 10.0, 3.0))
    np.testing.assert_allclose(whole, [5, 2])
    np.testing.assert_array_equal(each, [[10, 10, 10], [10, 0, 0]])


def test_one_of_the_users_own(monkeypatch, tmp_path):
    def brief(prompts, completions, *, mask, **columns):
        return -mask.sum(1)

    monkeypatch.setitem(trainers.COMPLETION_REWARDS, "brief", brief)
    np.testing.assert_array_equal(paid("brief")[0], [-3, -2])
    path = tmp_path / "mine.py"
    path.write_text("def odd(prompts, completions, **columns):\n    return completions % 2 * 1.0\n")
    np.testing.assert_array_equal(paid(f"{path}:odd")[1], [[1, 0, 0], [1, 0, 0]])


def test_plain_python(monkeypatch):
    def slow(prompts, completions, *, target, **columns):
        return [
            float(list(row).count(5) + sum(prompt))
            for prompt, row in zip(prompts, completions, strict=True)
        ]

    monkeypatch.setitem(COMPLETION_REWARDS, "slow", in_python(slow))
    np.testing.assert_array_equal(paid("slow")[0], [4, 8])
    with pytest.raises(UserError, match=r"'slow' raised Tracer.* goes through trainers.in_python"):
        jax.jit(Rewards({"slow": slow}, (1.0,)))(PROMPTS, COMPLETIONS, **COLUMNS)


def faulty(function, **columns):
    rewards = Rewards({"good": COMPLETION_REWARDS["share"], "mine": function}, (1.0, 1.0))
    fault = jax.jit(rewards)(PROMPTS, COMPLETIONS, **COLUMNS).fault
    return rewards, np.asarray(fault)


def test_what_is_not_finite_is_named():
    rewards, fault = faulty(lambda p, c, **columns: jnp.array([1.0, jnp.nan]))
    np.testing.assert_array_equal(fault, [1, 1])
    said = rewards.why(fault[0], "12", "5")
    assert (
        said == "the reward 'mine' gave a value that is not finite for the completion '5' of '12'"
    )
    # Outside the mask nothing counts.
    _, fault = faulty(lambda p, c, mask, **columns: jnp.where(mask > 0, 1.0, jnp.nan))
    np.testing.assert_array_equal(fault, [-1, -1])


def test_python_that_raises_is_named():
    def broken(prompts, completions, **columns):
        raise KeyError("no such word")

    rewards, fault = faulty(in_python(broken))
    np.testing.assert_array_equal(fault, [1, 0])
    assert "'mine' raised KeyError: 'no such word'" in rewards.why(1, "12", "5")
    rewards, _ = faulty(in_python(lambda prompts, completions, **columns: [1.0]))
    assert "gave the shape (1,) and not (2,)" in rewards.why(1, "12", "5")


def test_faults_that_show_at_once():
    with pytest.raises(
        UserError, match=r"'mine' must give .*, shape \(2,\), or one a token, \(2, 3\)"
    ):
        faulty(lambda p, c, **columns: jnp.ones((3,)))
    with pytest.raises(
        UserError, match=r"'mine' raised KeyError: 'length' for completions of shape"
    ):
        faulty(lambda p, c, **columns: columns["length"])


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
def test_names_that_are_wrong(names, weights, said):
    with pytest.raises(UserError, match=said):
        rewards_of(names, weights)


def test_a_file_is_run_once_as_long_as_it_stays(tmp_path):
    path, count = tmp_path / "mine.py", tmp_path / "count"
    count.write_text("")
    text = f"import pathlib\ncount = pathlib.Path({str(count)!r})\n"
    text += "count.write_text(count.read_text() + 'x')\ndef f(*given, **columns): pass\n"
    path.write_text(text)
    one, two = (rewards_of([f"{path}:f"], None).functions[f"{path}:f"] for _ in range(2))
    assert one is two
    assert count.read_text() == "x"
    path.write_text(text + "\n")
    os.utime(path, ns=(0, 0))
    rewards_of([f"{path}:f"], None)
    assert count.read_text() == "xx"


def test_what_was_raised_in_a_run_before_is_forgotten(monkeypatch):
    def broken(prompts, completions, **columns):
        raise KeyError("no such word")

    mine = in_python(broken)
    monkeypatch.setitem(COMPLETION_REWARDS, "mine", mine)
    faulty(mine)
    assert rewards_of(["mine"], None).raised == {}


def test_a_file_that_is_wrong(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("1 / 0")
    with pytest.raises(UserError, match="can't be run: ZeroDivisionError"):
        rewards_of([f"{path}:f"], None)
    path.write_text("")
    with pytest.raises(UserError, match="defines no function 'f'"):
        rewards_of([f"{path}:f"], None)
