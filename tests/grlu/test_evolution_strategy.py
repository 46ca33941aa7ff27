"""Evolution strategies against theory, brute force, and hand-computed weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import grlu
import models
import trainers
from grlu.errors import RunError
from grlu.network import trace
from grlu.noise.parameters import Factors, ParameterNoise, dense_kernels
from grlu.rules.rule import pure_objective


def log_likelihood(model, batch):
    logits = nnx.log_softmax(model(batch[0]))
    return jnp.take_along_axis(logits, batch[1][:, None], axis=1)[:, 0]


def pure(model, reward_fn=log_likelihood):
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    return pure_objective(graphdef, reward_fn), params, rest


@pytest.fixture
def batch():
    x = np.random.default_rng(1).standard_normal((8, 12), np.float32)
    return x, np.array([0, 1, 2, 3, 4, 0, 1, 2])


@pytest.fixture
def model():
    return models.MLP((12,), 5, hidden=(8,), activation="tanh", rngs=nnx.Rngs(0))


@pytest.fixture
def linear():
    """Return a model of one kernel and one bias, whose noise compiles in half the time."""
    return nnx.Linear(12, 5, rngs=nnx.Rngs(0))


def ascent(rule, model, batch, key=0, reward_fn=log_likelihood):
    return ascents([rule], model, batch, key, reward_fn)[0]


def ascents(rules, model, batch, key=0, reward_fn=log_likelihood):
    """Return the estimates of several rules, by one program."""
    objective, params, rest = pure(model, reward_fn)
    learn = jax.jit(lambda *args: [rule.gradient(objective, *args)[2] for rule in rules])
    return learn(params, rest, batch, jax.random.key(key))


def close(a, b, atol=1e-5):
    for one, two in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(one, two, atol=atol)


def whole(direction):
    """Return a direction with matrices instead of factors."""
    return [e.a @ e.b.T / np.sqrt(e.a.shape[1]) if isinstance(e, Factors) else e for e in direction]


def members(rule, model, batch, key=0):
    """Return each pair's materialised direction and its two mean rewards."""
    objective, params, rest = pure(model)
    leaves, tree = jax.tree.flatten(params)
    parts = rule.pairs if rule.batches == "own" else 1
    noise_key, _ = jax.random.split(jax.random.key(key))

    @jax.jit
    def member(seen, key):
        noise = ParameterNoise(objective, params, rest, seen, rule.rank)
        direction = whole(noise.draw(key))
        moved = (
            [p + step * e for p, e in zip(leaves, direction, strict=True)]
            for step in (rule.sigma, -rule.sigma)
        )
        rewards = [objective(jax.tree.unflatten(tree, m), rest, seen)[0].mean() for m in moved]
        return direction, rewards

    seen = [[np.split(leaf, parts)[pair % parts] for leaf in batch] for pair in range(rule.pairs)]
    keys = [jax.random.fold_in(noise_key, pair) for pair in range(rule.pairs)]
    directions, rewards = zip(*map(member, seen, keys), strict=True)
    return directions, np.array(rewards)


@pytest.mark.parametrize(("rank", "batches"), [(None, "own"), (1, "same"), (3, "own")])
def test_estimate_equals_the_materialised_twin(rank, batches, model, batch):
    rule = grlu.EvolutionStrategy(8, 0.1, rank=rank, shaping="none", batches=batches)
    directions, rewards = members(rule, model, batch)
    slopes = (rewards[:, 0] - rewards[:, 1]) / (2 * 0.1)
    expected = [
        np.mean([s * e for s, e in zip(slopes, es, strict=True)], 0)
        for es in zip(*directions, strict=True)
    ]
    close(ascent(rule, model, batch), expected)


def test_factors_have_the_requested_rank(model, batch):
    objective, params, rest = pure(model)
    drawn = ParameterNoise(objective, params, rest, batch, 2).draw(jax.random.key(0))
    kernels = [np.asarray(e) for e in whole(drawn) if e.ndim == 2]
    assert [np.linalg.matrix_rank(e) for e in kernels] == [2, 2]

    @jax.vmap
    def entries(key):
        drawn = ParameterNoise(objective, params, rest, batch, 2).draw(key)
        return jnp.concatenate([e.ravel()[:20] for e in whole(drawn)])

    found = jax.jit(entries)(jax.random.split(jax.random.key(1), 4000))
    covariance = np.cov(np.asarray(found).T)
    np.testing.assert_allclose(covariance, np.eye(len(covariance)), atol=0.2)


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "population"), [(None, 32), (1, 256)])
def test_the_cosine_rises_with_the_population_as_theory_says(rank, population, model, batch):
    """Check that cos² is about n / (n + d + 1) for n pairs and d parameters."""
    objective, params, rest = pure(model)
    exact = ascent(grlu.Backprop(), model, batch)
    exact = np.concatenate([g.ravel() for g in jax.tree.leaves(exact)])
    d, keys = len(exact), jax.random.split(jax.random.key(2), 30)
    rule = grlu.EvolutionStrategy(population, 0.01, rank=rank, shaping="none")

    @jax.vmap
    def learn(key):
        return rule.gradient(objective, params, rest, batch, key)[2]

    found = jax.jit(learn)(keys)
    found = np.concatenate([np.reshape(g, (30, -1)) for g in jax.tree.leaves(found)], 1)
    size = np.linalg.norm(exact)
    cosines = found @ exact / np.linalg.norm(found, axis=1) / size
    n = population // 2
    assert np.mean(cosines**2) == pytest.approx(n / (n + d + 1), rel=0.2)
    np.testing.assert_allclose(found.mean(0), exact, atol=4.5 * size / np.sqrt(30 * n))


@pytest.mark.parametrize(("rank", "chunk"), [(None, 10), (1, 2)])
def test_the_chunk_does_not_change_the_estimate(rank, chunk, linear, batch):
    rules = [grlu.EvolutionStrategy(14, 0.1, rank=rank, chunk=c) for c in (14, chunk)]
    close(*ascents(rules, linear, batch))


@functools.cache
def weighting(pairs, **options):
    return jax.jit(grlu.EvolutionStrategy(2 * pairs, 0.5, **options).weights)


def weights(rewards, **options):
    found = weighting(len(rewards), **options)(np.float32(rewards))
    return np.asarray(found)  # (f₊ - f₋) / pairs, because 2σ is 1


def test_ranks_are_centred_over_the_whole_population_and_ties_share_theirs():
    rewards = [[10.0, -3.0], [0.5, 0.5], [0.5, 9.0]]
    ranks = np.array([[5, 0], [2, 2], [2, 4]]) / 5 - 0.5
    np.testing.assert_allclose(weights(rewards), (ranks[:, 0] - ranks[:, 1]) / 3, rtol=1e-6)


def test_zscores_and_raw_rewards():
    rewards = np.array([[1.0, 2.0], [4.0, 9.0]])
    z = (rewards - rewards.mean()) / rewards.std()
    np.testing.assert_allclose(
        weights(rewards, shaping="zscore"), (z[:, 0] - z[:, 1]) / 2, rtol=1e-6
    )
    np.testing.assert_allclose(weights(rewards, shaping="none"), [-0.5, -2.5])


def test_constant_reward_gives_zero_gradient(linear, batch):
    shapings = "centered_rank", "zscore", "none"
    rules = [grlu.EvolutionStrategy(6, 0.1, shaping=shaping) for shaping in shapings]
    found = ascents(rules, linear, batch, reward_fn=lambda m, b: 0.0 * m(b[0])[:, 0] + 0.1)
    assert all(not g.any() for g in jax.tree.leaves(found))


@pytest.mark.parametrize("shaping", ["centered_rank", "zscore", "none"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_member_that_is_not_finite_stops_or_is_dropped_with_its_twin(shaping, bad):
    rewards = [[1.0, 2.0], [bad, 7.0], [4.0, -9.0]]
    assert np.isnan(weights(rewards, shaping=shaping)).all()
    dropped = weights(rewards, shaping=shaping, nan="drop")
    expected = weights([rewards[0], rewards[2]], shaping=shaping)
    np.testing.assert_allclose(dropped, [expected[0], 0, expected[1]], rtol=1e-6)
    assert np.isnan(weights([[bad, 0.0]], shaping=shaping, nan="drop")).all()


@pytest.mark.parametrize("nan", ["stop", "drop"])
def test_run_with_overflowing_noise_stops_or_continues(nan, tmp_path):
    """Use noise of 1e36, which makes some members' rewards infinite, but not the clean pass."""
    config = {
        "dataset": {"name": "digits", "subset": 100},
        "model": {"name": "mlp", "hidden": (), "layer_norm": False},
        "trainer": {
            "name": "evolution",
            "population": 16,
            "sigma": 1e36,
            "sigma_end": 1e36,
            "rank": 1,
            "nan": nan,
            "epochs": 1,
            "batch_size": 20,
        },
    }
    if nan == "drop":
        result = trainers.train(config, tmp_path / "run", progress=False)
        assert result.step == 5
        assert 0 < result.metrics["train_dropped"] < 16
    else:
        with pytest.raises(RunError, match="not finite appeared at step 1 "):
            trainers.train(config, tmp_path / "run", progress=False)


class Conv(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 2, (3,), rngs=rngs)
        self.head = nnx.Linear(24, 5, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.conv(x[..., None])).reshape(len(x), -1))


def kernels_of(model, reward_fn, batch):
    objective, params, rest = pure(model, reward_fn)
    network = trace(objective, params, rest, batch)
    return {network.names[i] for i in dense_kernels(network)}


def test_only_kernels_used_in_dense_layers_get_low_rank_noise(model, batch):
    square = nnx.Linear(12, 12, rngs=nnx.Rngs(0))
    for reward_fn, expected in {
        lambda m, b: jnp.tanh(m(b[0])).sum(-1): {"kernel"},
        lambda m, b: nnx.jit(lambda m, x: m(x))(m, b[0]).sum(-1): {"kernel"},
        lambda m, b: m(b[0][:, None]).sum((1, 2)): {"kernel"},  # inputs of any rank
        lambda m, b: m(jnp.tanh(m(b[0]))).sum(-1): {"kernel"},  # called twice
        lambda m, b: (jnp.tanh(m(b[0])) @ m.kernel[...].T).sum(-1): set(),
        lambda m, b: m(b[0]).sum(-1) - (m.kernel[...] ** 2).sum(): set(),
        # Uses outside dense layers.
        lambda m, b: m(b[0]).sum(-1) - (m.kernel[...] > 0).sum().astype(jnp.float32): set(),
        lambda m, b: m(b[0]).sum(-1) * jax.lax.stop_gradient(m.kernel[...]).sum(): set(),
        lambda m, b: (b[0] @ jnp.exp(m.kernel[...])).sum(-1): set(),
    }.items():  # fmt: skip
        assert kernels_of(square, reward_fn, batch) == expected
    assert kernels_of(Conv(nnx.Rngs(0)), log_likelihood, batch) == {"head.kernel"}
    assert kernels_of(model, log_likelihood, batch) == {"layers.0.kernel", "layers.1.kernel"}


def test_unused_parameters_do_not_change(batch):
    model = nnx.Dict(
        used=nnx.Linear(12, 5, rngs=nnx.Rngs(0)), unused=nnx.Linear(12, 5, rngs=nnx.Rngs(1))
    )

    def reward_fn(model, batch):
        return log_likelihood(model["used"], batch) + 0.0 * jnp.ones(8)

    rules = [grlu.EvolutionStrategy(4, rank=rank) for rank in (None, 1)]
    for found in ascents(rules, model, batch, reward_fn=reward_fn):
        assert found["used"]["kernel"][...].any()
        assert not found["unused"]["kernel"][...].any()
    for rule in rules:
        with pytest.raises(grlu.UserError, match="depends on no trainable parameter"):
            ascent(rule, model, batch, reward_fn=lambda m, b: b[0][:, 0])


@pytest.mark.parametrize("rank", [None, 1])
def test_a_kernel_in_a_loop_gets_noise_of_either_rank(rank, batch):
    model = nnx.Linear(12, 12, rngs=nnx.Rngs(0))

    def reward_fn(model, batch):
        def step(h, _):
            return jnp.tanh(h @ model.kernel[...]), None

        return jax.lax.scan(step, batch[0], None, 3)[0].sum(-1)

    rule = grlu.EvolutionStrategy(4096, 0.01, rank=rank, shaping="none")
    assert grlu.alignment(rule, reward_fn, model, batch, jax.random.key(0)).cosine > 0.9


def test_layers_that_only_report_get_no_noise(low_rank_noise):
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.used, self.aside = nnx.Linear(4, 2, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x):
            jax.debug.callback(lambda value: None, self.aside(x))
            return self.used(x).sum(-1)

    x = jax.random.normal(jax.random.key(0), (5, 4))
    assert "used.kernel" in low_rank_noise(Model(nnx.Rngs(0)), lambda m, x: m(x), x)


def test_low_rank_noise_in_loops_equals_materialised_matrices(low_rank_noise):
    """Check a kernel that all steps share, and stacked kernels, one per step."""

    class Model(nnx.Module):
        def __init__(self, rngs):
            @nnx.vmap(in_axes=0, out_axes=0)
            def stacked(rngs):
                return nnx.Linear(4, 4, rngs=rngs)

            self.shared = nnx.Linear(4, 4, rngs=rngs)
            self.stack = stacked(rngs.split(3))

        def __call__(self, x):
            kernel = self.shared.kernel[...]
            x, _ = jax.lax.scan(lambda h, _: (jnp.tanh(h @ kernel), None), x, length=2)
            scanned = nnx.scan(lambda h, layer: nnx.relu(layer(h)) + h, out_axes=nnx.Carry)
            return scanned(x, self.stack)

    x = jax.random.normal(jax.random.key(0), (5, 4))
    low = low_rank_noise(Model(nnx.Rngs(0)), lambda m, x: m(x).sum(-1), x)
    assert low == {"shared.kernel", "stack.kernel"}


def test_nothing_is_differentiated(linear, batch, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a derivative was taken")

    for name in ("grad", "value_and_grad", "vjp", "jvp", "linearize", "jacfwd", "jacrev"):
        monkeypatch.setattr(jax, name, refuse)
    with pytest.raises(AssertionError, match="a derivative was taken"):
        ascent(grlu.Backprop(), linear, batch)
    rules = [grlu.EvolutionStrategy(4, rank=rank) for rank in (None, 1)]
    for found in ascents(rules, linear, batch):
        assert jax.tree.leaves(found)[0].any()


def test_members_of_a_shared_batch_share_dropout_masks(batch):
    """Check with tiny noise, so that only different dropout masks could make rewards differ."""
    model = nnx.Sequential(
        nnx.Linear(12, 5, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(dropout=1))
    )
    found = ascent(grlu.EvolutionStrategy(6, 1e-30), model, batch)
    assert all(not g.any() for g in jax.tree.leaves(found))


def test_indivisible_batch_is_refused(model, batch):
    with pytest.raises(grlu.UserError, match="must be a multiple of 3, got 8"):
        ascent(grlu.EvolutionStrategy(6, batches="own"), model, batch)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"population": 3}, "positive even number"),
        ({"population": 0}, "positive even number"),
        ({"population": True}, "positive even number"),
        ({"sigma": 0.0}, "sigma must be positive"),
        ({"rank": 0}, "rank must be a positive integer or None"),
        ({"chunk": 1}, "chunk must be at least"),
        ({"shaping": "rank"}, "shaping must be one of"),
        ({"batches": "many"}, "batches must be one of"),
        ({"nan": "ignore"}, "nan must be one of"),
    ],
)
def test_wrong_options_are_refused(options, sentence):
    with pytest.raises(grlu.UserError, match=sentence):
        grlu.EvolutionStrategy(**options)
