"""Table of sites, and check of a rule against the model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import grlu
from grlu.inspection import checks as inspection
from grlu.rules.rule import pure_objective


class Everything(nnx.Module):
    """Model of a layer, a loop, a layer after batch normalisation, and an unused parameter."""

    def __init__(self, rngs):
        self.first = nnx.Linear(4, 3, rngs=rngs)
        self.loop = nnx.Linear(3, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.last = nnx.Linear(3, 2, rngs=rngs)
        self.unused = nnx.Param(jnp.ones(2))

    def __call__(self, x):
        h, _ = jax.lax.scan(lambda h, _: (jnp.tanh(self.loop(h)), None), self.first(x), length=2)
        return self.last(self.norm(h))


def penalised(model, x):
    decay = sum(jnp.sum(p**2) for p in jax.tree.leaves(nnx.state(model.last, nnx.Param)))
    return nnx.log_softmax(model(x))[:, 0] - 1e-3 * decay


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (4, 4))


def test_table_describes_each_site(x):
    table = grlu.sites(penalised, Everything(nnx.Rngs(0)), x)
    rows = {row.name: row for row in table}
    assert list(rows)[:2] == ["first", "loop"]
    assert (rows["first"].kind, rows["first"].first, rows["first"].loops) == ("dense", True, 0)
    assert (rows["loop"].shape, rows["loop"].loops) == ((2, 4, 3), 1)
    assert rows["loop"].examples == 4  # Through batch normalisation, all rewards depend on it.
    assert (rows["last"].output, rows["last"].examples) == (True, 1)
    assert [row.kind for row in table].count("penalty") == 1
    printed = str(table).splitlines()
    assert len(printed) == len(table) + 1
    assert "all 4" in printed[1]
    assert "one, along axis 0" in next(line for line in printed if line.startswith("last"))


def test_check_is_sound_and_lists_unused_and_shared(x):
    rule = grlu.NodePerturbation(256, 1e-2, noise="orthogonal")
    found = grlu.check(rule, penalised, Everything(nnx.Rngs(0)), x, jax.random.key(1))
    assert found.sound
    assert found.untrained == ("unused",)
    assert "loop" in found.shared
    assert "last" not in found.shared
    assert found.cosine > 0.99
    assert "ANOTHER NETWORK" not in str(found)


def test_another_network_is_reported(x, monkeypatch):
    model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    traced = inspection.trace
    other = pure_objective(graphdef, lambda m, x: 2 * m(x).sum(-1))
    monkeypatch.setattr(inspection, "trace", lambda _, *args: traced(other, *args))
    objective = pure_objective(graphdef, lambda m, x: m(x).sum(-1))
    rewards = inspection.traced_and_own(objective, params, rest, x)
    assert inspection.reward_error(*rewards) == pytest.approx(1.0)
    with pytest.raises(grlu.UserError, match="the traced network is not the model"):
        inspection.require_same_rewards(*rewards)
    reward = lambda m, x: m(x).sum(-1)  # noqa: E731
    found = grlu.check(grlu.Backprop(), reward, model, x, jax.random.key(0))
    assert not found.sound
    assert "ANOTHER NETWORK" in str(found)


def test_the_difference_is_relative_to_the_gradient(x):
    model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
    reward = lambda m, x: jnp.tanh(m(x)).sum(-1)  # noqa: E731
    found = grlu.alignment(grlu.FeedbackAlignment(), reward, model, x, jax.random.key(0))
    assert found.difference == pytest.approx(0.0, abs=1e-6)
    noisy = grlu.alignment(grlu.NodePerturbation(2, 0.1), reward, model, x, jax.random.key(0))
    expected = np.sqrt(1 + noisy.norm_ratio**2 - 2 * noisy.cosine * noisy.norm_ratio)
    assert noisy.difference == pytest.approx(expected, rel=1e-4)
