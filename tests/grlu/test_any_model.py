"""Learning rules on models of all kinds: credit points uphill, and the local update is exact."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import grlu
import models


class ConvNet(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 3, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.LayerNorm(3, rngs=rngs)
        self.head = nnx.Linear(27, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.tanh(self.norm(self.conv(x)))
        return self.head(x.reshape(x.shape[0], -1))


class SharedModule(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(36, 8, rngs=rngs)
        self.twice = nnx.Linear(8, 8, rngs=rngs)
        self.head = nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x):
        h = nnx.tanh(self.first(x.reshape(x.shape[0], -1)))
        h = nnx.tanh(self.twice(h))
        return self.head(nnx.tanh(self.twice(h)))


class EmbedEinsum(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(7, 6, rngs=rngs)
        self.mix = nnx.Einsum("btd,de->bte", (6, 8), (8,), rngs=rngs)
        self.norm = nnx.RMSNorm(8, rngs=rngs)
        self.place = nnx.Param(jax.random.normal(rngs.params(), (6, 6)))
        self.head = nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x):
        ids = (jnp.abs(x[:, 0, 0, 0]) * 3).astype(jnp.int32)[:, None] + jnp.arange(6)[None]
        h = self.embed(ids % 7) + self.place[...][None]
        return self.head(self.norm(nnx.gelu(self.mix(h))).mean(1))


class RawParameters(nnx.Module):
    """Model of raw parameters, one of them tied, one used only through a function of itself."""

    def __init__(self, rngs):
        self.w = nnx.Param(jax.random.normal(rngs.params(), (36, 6)) / 6)
        self.tied = nnx.Param(jax.random.normal(rngs.params(), (6, 6)) / 2)
        self.log_scale = nnx.Param(jnp.full((6,), 0.3))
        self.out = nnx.Param(jax.random.normal(rngs.params(), (6, 5)) / 2)

    def __call__(self, x):
        h = jnp.tanh(x.reshape(x.shape[0], -1) @ self.w)
        h = nnx.sigmoid(h @ self.tied) * jnp.exp(self.log_scale[...])[None]
        return jnp.tanh(h @ self.tied[...].T) @ self.out


class Attention(nnx.Module):
    def __init__(self, rngs):
        self.attend = nnx.MultiHeadAttention(2, 6, decode=False, rngs=rngs)
        self.head = nnx.Linear(36, 5, rngs=rngs)

    def __call__(self, x):
        x = x[..., 0]
        return self.head((x + self.attend(x)).reshape(x.shape[0], -1))


class Regularised(nnx.Module):
    """Model with dropout and stored batch statistics, its layers in nnx.jit and jax.checkpoint."""

    def __init__(self, rngs):
        self.a, self.b = nnx.Linear(36, 8, rngs=rngs), nnx.Linear(8, 5, rngs=rngs)
        self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, x):
        h = nnx.jit(lambda layer, x: layer(x))(self.a, x.reshape(x.shape[0], -1))
        h = self.dropout(nnx.tanh(self.norm(h)))
        return nnx.remat(lambda layer, h: layer(h))(self.b, h)


def zoo_mlp(rngs):
    return nnx.Sequential(
        lambda x: x.reshape(x.shape[0], -1),
        models.MLP((36,), 5, hidden=(12, 8), activation="gelu", rngs=rngs),
    )


def topk_mlp(rngs):
    return nnx.Sequential(
        lambda x: x.reshape(x.shape[0], -1),
        # The threshold of 8 units compiles in a tenth of the time of that of 9.
        models.MLP((36,), 5, hidden=(8,), activation="topk", topk=0.5, rngs=rngs),
    )


SMOOTH = [ConvNet, SharedModule, EmbedEinsum, RawParameters, Attention, Regularised, zoo_mlp]
NETS = [*SMOOTH, topk_mlp]


def log_likelihood(model, batch):
    logits = nnx.log_softmax(model(batch["x"]))
    return jnp.take_along_axis(logits, batch["y"][:, None], axis=1)[:, 0]


@functools.cache
def split(make):
    """Return a network as a graph definition and a state; one program initialises it."""
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    return graphdef, jax.jit(lambda: nnx.state(make(nnx.Rngs(0))))()


def made(make):
    """Return a new copy of a network."""
    graphdef, state = split(make)
    return nnx.merge(graphdef, state, copy=True)


def raw(model):
    """Return a copy of a model's state as NumPy arrays, its keys as integers."""

    def array(x):
        key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.array(jax.random.key_data(x) if key else x)

    return jax.tree.map(array, nnx.state(model))


@pytest.fixture
def batch():
    # Six examples of 6 x 6: the batch size equals that of other axes.
    return {
        "x": jax.random.normal(jax.random.key(1), (6, 6, 6, 1)),
        "y": jnp.array([0, 1, 2, 3, 4, 0]),
    }


@pytest.mark.parametrize("make", NETS)
def test_the_local_update_of_exact_credit_is_the_gradient(make, batch):
    model, key = made(make), jax.random.key(2)

    @nnx.jit
    def both(model, batch, key):
        rules = grlu.ExactCredit(), grlu.Backprop()
        return [rule(log_likelihood)(model, batch, key) for rule in rules]

    (reward, local), (expected, exact) = both(model, batch, key)
    np.testing.assert_allclose(reward, expected, rtol=1e-6)
    assert jax.tree.structure(local) == jax.tree.structure(nnx.state(model, nnx.Param))
    for a, b in zip(*(map(np.asarray, jax.tree.leaves(g)) for g in (local, exact)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, np.abs(b).max()))


@pytest.mark.parametrize("make", NETS)
def test_low_rank_noise_moves_a_model_as_its_materialised_twin_does(make, batch, low_rank_noise):
    low_rank_noise(made(make), log_likelihood, batch)


def test_low_rank_noise_reaches_a_stop_at_a_pre_activation(low_rank_noise):
    def reward(model, x):
        z = model(x)
        return (jnp.tanh(z) * (1 + jax.lax.stop_gradient(z))).sum(-1)

    x = jax.random.normal(jax.random.key(0), (5, 3))
    names = low_rank_noise(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), reward, x)
    assert names == {"kernel"}


@pytest.mark.parametrize("make", SMOOTH)
def test_orthogonal_perturbation_finds_the_gradient_of_every_parameter(make, batch):
    model = made(make)
    rule = grlu.NodePerturbation(samples=1024, sigma=0.02, noise="orthogonal")
    found = grlu.alignment(rule, log_likelihood, model, batch, jax.random.key(3))
    assert found.cosine > 0.995, str(found)
    for name, (cosine, ratio) in found.parameters.items():
        if name == "attend.key.bias":
            continue  # It does not affect a softmax: its gradient is zero up to rounding.
        assert cosine > 0.9, f"{make.__name__}: {name}\n{found}"
        assert 0.7 < ratio < 1.3, f"{make.__name__}: {name}\n{found}"


@pytest.mark.parametrize("make", [ConvNet, SharedModule])
def test_20000_samples_reach_a_cosine_of_99_percent(make, batch):
    model = made(make)
    found = grlu.alignment(
        grlu.NodePerturbation(samples=20_000, sigma=0.02),
        log_likelihood,
        model,
        batch,
        jax.random.key(4),
    )
    assert found.cosine >= 0.99, str(found)
    assert abs(found.norm_ratio - 1) < 0.05, str(found)


def test_noise_after_the_activation_is_biased(batch):
    """Check the published placement: more samples don't help, and silent ReLUs get credit."""
    model = nnx.Sequential(
        lambda x: x.reshape(x.shape[0], -1),
        nnx.Linear(36, 16, rngs=nnx.Rngs(0)),
        nnx.relu,
        nnx.Linear(16, 5, rngs=nnx.Rngs(1)),
    )

    def kernel(site, samples):
        rule = grlu.NodePerturbation(samples=samples, sigma=0.02, site=site)
        found = grlu.alignment(rule, log_likelihood, model, batch, jax.random.key(5))
        return found.parameters["layers.1.kernel"][0]

    assert kernel("pre", 8000) > 0.99
    assert kernel("active", 8000) > 0.99
    assert kernel("post", 8000) < 0.9
    assert abs(kernel("post", 32_000) - kernel("post", 8000)) < 0.02


def test_active_perturbs_only_the_winners_of_a_topk(batch):
    model = made(topk_mlp)
    rule = grlu.NodePerturbation(samples=1024, sigma=0.02, site="active", noise="orthogonal")
    found = grlu.alignment(rule, log_likelihood, model, batch, jax.random.key(6))
    assert found.cosine > 0.999, str(found)


@pytest.mark.parametrize("make", NETS)
def test_step_compiles_once_leaves_the_model_unchanged_and_improves_a_tiny_task(make, batch):
    model = made(make)
    estimate = grlu.NodePerturbation(samples=16, sigma=0.1)(log_likelihood)
    traces = []

    @nnx.jit
    def step(model, batch, key):
        traces.append(1)
        return estimate(model, batch, key)

    before = raw(model)
    first, _ = step(model, batch, jax.random.key(0))
    second, grads = step(model, batch, jax.random.key(0))
    step(model, batch, jax.random.key(1))
    assert len(traces) == 1
    assert first == second
    assert all(np.any(np.asarray(g) != 0) for g in jax.tree.leaves(grads))
    after = raw(model)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(a, b)

    # RMSprop in NumPy: a step with an optimizer would be one more program to compile.
    rewards, mean = [], jax.tree.map(lambda g: np.square(g), grads)
    for i in range(60):
        reward, grads = step(model, batch, jax.random.key(i))
        rewards.append(float(reward))
        mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * np.square(g), mean, grads)
        params = jax.tree.map(
            lambda p, g, m: p - 0.02 * np.asarray(g) / (np.sqrt(m) + 1e-8),
            jax.tree.map(np.asarray, nnx.state(model, nnx.Param)),
            grads,
            mean,
        )
        nnx.update(model, jax.tree.map(jnp.asarray, params))
    assert np.mean(rewards[-10:]) > np.mean(rewards[:5]) + 0.3
