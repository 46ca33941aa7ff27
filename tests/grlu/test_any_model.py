"""Learning rules on models of all kinds: credit points uphill, and the local update is exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import grlu
import models


class TanhMLP(nnx.Module):
    def __init__(self, rngs):
        self.a, self.b = nnx.Linear(36, 16, rngs=rngs), nnx.Linear(16, 5, rngs=rngs)

    def __call__(self, x):
        return self.b(jnp.tanh(self.a(x.reshape(x.shape[0], -1))))


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


class Dropouts(nnx.Module):
    def __init__(self, rngs):
        self.a, self.b = nnx.Linear(36, 16, rngs=rngs), nnx.Linear(16, 5, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, x):
        return self.b(self.dropout(nnx.tanh(self.a(x.reshape(x.shape[0], -1)))))


class Attention(nnx.Module):
    def __init__(self, rngs):
        self.attend = nnx.MultiHeadAttention(2, 6, decode=False, rngs=rngs)
        self.head = nnx.Linear(36, 5, rngs=rngs)

    def __call__(self, x):
        x = x[..., 0]
        return self.head((x + self.attend(x)).reshape(x.shape[0], -1))


class UnderTransforms(nnx.Module):
    """Model with layers inside nnx.jit and jax.checkpoint."""

    def __init__(self, rngs):
        self.a, self.b = nnx.Linear(36, 8, rngs=rngs), nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x):
        h = nnx.jit(lambda layer, x: nnx.tanh(layer(x)))(self.a, x.reshape(x.shape[0], -1))
        return nnx.remat(lambda layer, h: layer(h))(self.b, h)


class BatchNormEval(nnx.Module):
    def __init__(self, rngs):
        self.a, self.b = nnx.Linear(36, 8, rngs=rngs), nnx.Linear(8, 5, rngs=rngs)
        self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)

    def __call__(self, x):
        return self.b(nnx.tanh(self.norm(self.a(x.reshape(x.shape[0], -1)))))


def zoo_mlp(rngs):
    return nnx.Sequential(
        lambda x: x.reshape(x.shape[0], -1),
        models.MLP((36,), 5, hidden=(12, 8), activation="gelu", rngs=rngs),
    )


def topk_mlp(rngs):
    return nnx.Sequential(
        lambda x: x.reshape(x.shape[0], -1),
        models.MLP((36,), 5, hidden=(12,), activation="topk", topk=0.5, rngs=rngs),
    )


def sequential(rngs):
    return nnx.Sequential(
        lambda x: x.reshape(x.shape[0], -1),
        nnx.Linear(36, 8, rngs=rngs),
        nnx.tanh,
        nnx.Linear(8, 5, rngs=rngs),
    )


SMOOTH = [
    TanhMLP,
    ConvNet,
    SharedModule,
    EmbedEinsum,
    RawParameters,
    Dropouts,
    Attention,
    UnderTransforms,
    BatchNormEval,
    zoo_mlp,
    sequential,
]
NETS = [*SMOOTH, topk_mlp]


def log_likelihood(model, batch):
    logits = nnx.log_softmax(model(batch["x"]))
    return jnp.take_along_axis(logits, batch["y"][:, None], axis=1)[:, 0]


@pytest.fixture
def batch():
    # Six examples of 6 x 6: the batch size equals that of other axes.
    return {
        "x": jax.random.normal(jax.random.key(1), (6, 6, 6, 1)),
        "y": jnp.array([0, 1, 2, 3, 4, 0]),
    }


@pytest.mark.parametrize("make", NETS)
def test_the_local_update_of_exact_credit_is_the_gradient(make, batch):
    model, key = make(nnx.Rngs(0)), jax.random.key(2)
    reward, local = nnx.jit(grlu.ExactCredit()(log_likelihood))(model, batch, key)
    expected, exact = nnx.jit(grlu.Backprop()(log_likelihood))(model, batch, key)
    np.testing.assert_allclose(reward, expected, rtol=1e-6)
    assert jax.tree.structure(local) == jax.tree.structure(nnx.state(model, nnx.Param))
    for a, b in zip(jax.tree.leaves(local), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, float(jnp.abs(b).max())))


@pytest.mark.parametrize("make", NETS)
def test_low_rank_noise_moves_a_model_as_its_materialised_twin_does(make, batch, low_rank_noise):
    low_rank_noise(make(nnx.Rngs(0)), log_likelihood, batch)


def test_low_rank_noise_reaches_a_stop_at_a_pre_activation(low_rank_noise):
    def reward(model, x):
        z = model(x)
        return (jnp.tanh(z) * (1 + jax.lax.stop_gradient(z))).sum(-1)

    x = jax.random.normal(jax.random.key(0), (5, 3))
    names = low_rank_noise(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), reward, x)
    assert names == {"kernel"}


@pytest.mark.parametrize("make", SMOOTH)
def test_orthogonal_perturbation_finds_the_gradient_of_every_parameter(make, batch):
    model = make(nnx.Rngs(0))
    rule = grlu.NodePerturbation(samples=1024, sigma=0.02, noise="orthogonal")
    found = grlu.alignment(rule, log_likelihood, model, batch, jax.random.key(3))
    assert found.cosine > 0.995, str(found)
    for name, (cosine, ratio) in found.parameters.items():
        if name == "attend.key.bias":
            continue  # It does not affect a softmax: its gradient is zero up to rounding.
        assert cosine > 0.9, f"{make.__name__}: {name}\n{found}"
        assert 0.7 < ratio < 1.3, f"{make.__name__}: {name}\n{found}"


@pytest.mark.parametrize("make", [TanhMLP, ConvNet, SharedModule])
def test_20000_samples_reach_a_cosine_of_99_percent(make, batch):
    model = make(nnx.Rngs(0))
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
    model = topk_mlp(nnx.Rngs(0))
    rule = grlu.NodePerturbation(samples=1024, sigma=0.02, site="active", noise="orthogonal")
    found = grlu.alignment(rule, log_likelihood, model, batch, jax.random.key(6))
    assert found.cosine > 0.999, str(found)


@pytest.mark.parametrize("make", NETS)
def test_step_compiles_once_and_leaves_the_model_unchanged(make, batch):
    model = make(nnx.Rngs(0))
    before = jax.tree.map(jnp.copy, nnx.state(model))
    estimate = grlu.NodePerturbation(samples=2, sigma=0.1)(log_likelihood)
    traces = []

    @nnx.jit
    def step(model, batch, key):
        traces.append(1)
        return estimate(model, batch, key)

    first, _ = step(model, batch, jax.random.key(0))
    second, grads = step(model, batch, jax.random.key(0))
    step(model, batch, jax.random.key(1))
    assert len(traces) == 1
    assert first == second
    assert all(jnp.any(g != 0) for g in jax.tree.leaves(grads))
    after = nnx.state(model)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert jnp.array_equal(
            *(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
              for x in (a, b))
        )  # fmt: skip


@pytest.mark.parametrize("make", NETS)
def test_a_tiny_task_improves(make, batch):
    import optax

    model = make(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(0.02), wrt=nnx.Param)
    estimate = grlu.NodePerturbation(samples=16, sigma=0.1)(log_likelihood)

    @nnx.jit
    def step(model, optimizer, key):
        reward, grads = estimate(model, batch, key)
        optimizer.update(model, grads)
        return reward

    rewards = [step(model, optimizer, jax.random.key(i)) for i in range(60)]
    assert np.mean(rewards[-10:]) > np.mean(rewards[:5]) + 0.3
