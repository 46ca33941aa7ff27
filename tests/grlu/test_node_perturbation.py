"""Node perturbation against independent oracles: brute force, theory, the published step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import grlu
import models
from grlu.influence.rows import Rows, every_example
from grlu.noise.directions import directions


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def log_likelihood(model, batch):
    logits = nnx.log_softmax(model(batch[0]))
    return jnp.take_along_axis(logits, batch[1][:, None], axis=1)[:, 0]


def published_reward(model, batch):
    return jnp.log(jnp.take_along_axis(nnx.softmax(model(batch[0])), batch[1][:, None], 1) + 1e-10)[
        :, 0
    ]


def oracle_step(weights, x, label, noises, activation):
    """Compute the published update for one example in plain NumPy, following the specification.

    `noises[layer][n]` is the noise of pair n, of standard deviation sigma; returns the ΔW, Δb that
    are added at rate 1.
    """
    deltas = [(np.zeros_like(w), np.zeros_like(b)) for w, b in weights]
    pairs = len(noises[0])
    for n in range(pairs):
        rewards, inputs = [], []
        for sign in (+1, -1):
            h, seen = x, []
            for i, (w, b) in enumerate(weights):
                normed = (h - h.mean()) / (h.std() + 1e-8)
                seen.append(normed)
                z = normed @ w + b
                if i < len(weights) - 1:
                    z = activation(z)
                h = z + sign * noises[i][n]
            p = np.exp(h - h.max())
            rewards.append(np.log(p[label] / p.sum() + 1e-10))
            inputs.append(seen)
        d = (rewards[0] - rewards[1]) / 2
        for i, (dw, db) in enumerate(deltas):
            credit = noises[i][n] * d / pairs
            dw += np.outer((inputs[0][i] + inputs[1][i]) / 2, credit)
            db += credit
    return deltas


def keep_top(k):
    return lambda z: np.where(z >= np.sort(z)[-k], z, 0.0)


@pytest.mark.parametrize(
    ("options", "activation"),
    [
        ({"activation": "relu"}, lambda z: np.maximum(z, 0)),
        ({"activation": "topk", "topk": 0.5, "topk_mode": "hard"}, keep_top(4)),
    ],
)
def test_one_step_equals_the_published_algorithm(options, activation):
    """Compare on fixed weights and noise; a batch is the sum over its examples."""
    model = models.MLP((12,), 4, hidden=(8, 8), rngs=nnx.Rngs(0), **options)
    x = normal(1, 3, 12)
    y = jnp.array([0, 2, 3])
    pairs, sigma, key = 5, 0.1, jax.random.key(2)
    rule = grlu.NodePerturbation.published(pairs, sigma)
    _, grads = nnx.jit(rule(published_reward))(model, (x, y), key)

    shapes = [(3, 8), (3, 8), (3, 4)]
    rows = [Rows(shape, every_example(shape[0]), shape[0]) for shape in shapes]
    drawn = jax.jit(lambda key: directions(key, "gaussian", pairs, rows))(jax.random.split(key)[1])
    noises = [sigma * np.asarray(xi, np.float64) for xi in drawn]
    weights = [
        (np.asarray(layer.kernel[...], np.float64), np.asarray(layer.bias[...], np.float64))
        for layer in model.layers
    ]
    expected = [(np.zeros_like(w), np.zeros_like(b)) for w, b in weights]
    for i in range(3):
        step = oracle_step(
            weights,
            np.asarray(x[i], np.float64),
            int(y[i]),
            [n[:, i] for n in noises],
            activation,
        )
        expected = [(w + dw, b + db) for (w, b), (dw, db) in zip(expected, step, strict=True)]
    for i, (dw, db) in enumerate(expected):
        found = grads["layers"][i]
        np.testing.assert_allclose(-found["kernel"][...], dw, rtol=2e-4, atol=2e-7)
        np.testing.assert_allclose(-found["bias"][...], db, rtol=2e-4, atol=2e-7)


@pytest.mark.parametrize("noise", ["rademacher", "gaussian", "orthogonal"])
def test_credit_equals_brute_force_over_the_same_noise(noise):
    """Compare with ĉ = mean ξ (r₊ - r₋) / 2σ, by unit and pair, for a linear layer."""
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    x, key, sigma, pairs = jnp.array([[1.0, -2.0, 0.5]]), jax.random.key(0), 0.1, 4

    def r(z, np=np):
        return np.tanh(z).prod(-1)

    rule = grlu.NodePerturbation(pairs, sigma, noise=noise)
    _, grads = nnx.jit(rule(lambda m, x: r(m(x), jnp)))(model, x, key)
    (xi,) = directions(jax.random.split(key)[1], noise, pairs, [Rows((1, 4), frozenset(), 1)])
    z = np.asarray(model(x))
    xi = np.asarray(xi)
    slopes = [(r(z + sigma * n) - r(z - sigma * n))[:, None] / (2 * sigma) for n in xi]
    credit = np.mean(xi * np.stack(slopes), axis=0)
    np.testing.assert_allclose(-grads["bias"][...], credit[0], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(
        -grads["kernel"][...], np.outer(x[0], credit[0]), rtol=1e-3, atol=1e-6
    )


def test_cosine_follows_theory_and_orthogonal_directions_beat_independent_ones():
    """Check that cos² is N/(N+d+1) for independent noise, N/d for orthogonal noise if N <= d."""
    d, n = 64, 16
    model = nnx.Linear(1, d, rngs=nnx.Rngs(0))
    slope = normal(5, d)

    def reward(model, x):
        return model(x) @ slope

    def mean_square_cosine(noise):
        rule = grlu.NodePerturbation(n, 0.1, noise=noise)
        found = [
            grlu.alignment(rule, reward, model, jnp.ones((1, 1)), jax.random.key(i)).cosine ** 2
            for i in range(40)
        ]
        return np.mean(found)

    assert abs(mean_square_cosine("gaussian") - n / (n + d + 1)) < 0.03
    assert abs(mean_square_cosine("rademacher") - n / (n + d + 1)) < 0.03
    assert abs(mean_square_cosine("orthogonal") - n / d) < 0.03


def test_orthogonal_noise_is_exact_with_as_many_samples_as_units():
    model = nnx.Linear(3, 16, rngs=nnx.Rngs(0))
    rule = grlu.NodePerturbation(16, 0.1, noise="orthogonal")
    found = grlu.alignment(
        rule, lambda m, x: m(x).sum(-1), model, jnp.ones((2, 3)), jax.random.key(0)
    )
    assert found.cosine > 1 - 1e-6
    assert abs(found.norm_ratio - 1) < 1e-3


def test_pair_shares_the_models_randomness():
    """Check via the variance: unshared dropout masks would add theirs / σ to the difference."""
    model = nnx.Sequential(
        nnx.Linear(4, 64, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1)), lambda h: h
    )
    for inputs in ("clean", "noisy"):
        rule = grlu.NodePerturbation(256, 1e-3, inputs=inputs)
        estimate = nnx.jit(rule(lambda m, x: m(x).sum(-1)))
        _, grads = estimate(model, jnp.ones((1, 4)), jax.random.key(0))
        assert jnp.abs(grads["layers"][0]["bias"][...]).max() < 10


def test_statistics_are_written_back_only_on_request():
    model = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    x = normal(0, 8, 3) + 2

    def reward(model, x):
        return model(x).sum(-1)

    nnx.jit(grlu.NodePerturbation(2, 0.1)(reward))(model, x, jax.random.key(0))
    assert not jnp.any(model.mean[...])
    rule = grlu.NodePerturbation(2, 0.1, update=nnx.BatchStat)
    nnx.jit(rule(reward))(model, x, jax.random.key(0))
    np.testing.assert_allclose(model.mean[...], 0.01 * x.mean(0), rtol=1e-4)


def test_batch_gradient_is_the_mean_of_its_examples():
    """Check with exact directions that the batch's gradient is the mean over its examples."""
    model = nnx.Sequential(nnx.Linear(3, 8, rngs=nnx.Rngs(0)), nnx.tanh)
    x = normal(0, 4, 3)
    rule = grlu.NodePerturbation(64, 0.01, noise="orthogonal")
    estimate = nnx.jit(rule(lambda m, x: m(x).sum(-1)))
    _, whole = estimate(model, x, jax.random.key(0))
    each = [estimate(model, x[i : i + 1], jax.random.key(i))[1] for i in range(4)]
    mean = jax.tree.map(lambda *g: sum(g) / 4, *each)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(mean), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"samples": 0}, "samples must be a positive integer"),
        ({"samples": 2.5}, "samples must be a positive integer"),
        ({"sigma": 0.0}, "sigma must be positive"),
        ({"sigma": float("nan")}, "sigma must be positive"),
        ({"noise": "white"}, "noise must be one of rademacher"),
        ({"site": "middle"}, "site must be one of pre"),
        ({"noise": "orthogonal", "samples": 10}, "power of two"),
        ({"samples": "auto"}, "covers every perturbed unit"),
        ({"samples": "auto", "noise": "orthogonal", "chunk": 2}, "all pairs at once"),
        ({"site": "active", "inputs": "noisy"}, "use inputs='clean'"),
        ({"inputs": "noisy", "layers": "apart"}, "layers='together'"),
        ({"layers": "alone"}, "layers must be one of together, apart"),
        ({"output_noise": "loud"}, "output_noise must be one of uniform, softmax"),
        ({"ridge": 0.0}, "ridge must be positive"),
        ({"feedback": 0.0, "output": "delta"}, "feedback must be positive"),
        ({"feedback": 1.0}, "use output='delta', layers='apart'"),
        ({"feedback": 1.0, "output": "delta", "site": "post"}, "feedback needs site='pre'"),
    ],
)
def test_wrong_options_are_refused(options, sentence):
    with pytest.raises(grlu.UserError, match=sentence):
        grlu.NodePerturbation(**options)


def classifier(samples, **options):
    model = models.MLP((12,), 5, hidden=(32,), rngs=nnx.Rngs(0))
    batch = (normal(1, 6, 12), jnp.array([0, 1, 2, 3, 4, 0]))
    rule = grlu.NodePerturbation(samples, 0.02, **options)
    return grlu.alignment(rule, log_likelihood, model, batch, jax.random.key(2))


def test_delta_makes_the_output_layer_exact_and_reduces_hidden_noise():
    found = classifier(32, site="active", noise="orthogonal", output="delta")
    assert found.parameters["layers.1.kernel"][0] > 1 - 1e-5
    assert abs(found.parameters["layers.1.kernel"][1] - 1) < 1e-4
    assert found.parameters["layers.0.kernel"][0] > 0.999


def test_one_sided_differences_find_the_same_gradient():
    assert classifier(4096, antithetic=False).cosine > 0.98
    assert abs(classifier(4096, antithetic=False).norm_ratio - 1) < 0.05


def test_output_rate_scales_only_the_output_layer():
    one, five = (
        classifier(64, noise="orthogonal"),
        classifier(64, noise="orthogonal", output_rate=5.0),
    )
    for name in ("layers.0.kernel", "layers.0.bias"):
        np.testing.assert_allclose(one.parameters[name], five.parameters[name], rtol=1e-5)
    for name in ("layers.1.kernel", "layers.1.bias"):
        np.testing.assert_allclose(5 * one.parameters[name][1], five.parameters[name][1], rtol=1e-5)


def test_layers_apart_do_not_interfere():
    """Check that credit is exact with as many orthogonal pairs as a layer has units."""
    assert classifier(32, noise="orthogonal").cosine < 0.99
    assert classifier(32, noise="orthogonal", layers="apart").cosine > 0.999


def test_least_squares_is_exact_with_many_directions_and_better_with_few():
    many = classifier(128, noise="gaussian"), classifier(128, noise="gaussian", ridge=1e-4)
    assert many[0].cosine < 0.95 < 0.999 < many[1].cosine
    assert abs(many[1].norm_ratio - 1) < 0.02
    few = classifier(16, noise="gaussian"), classifier(16, noise="gaussian", ridge=0.01)
    assert few[0].cosine < few[1].cosine


def test_least_squares_needs_units_of_one_example():
    class Mean(nnx.Module):
        def __init__(self, rngs):
            self.scale = nnx.Param(jnp.ones((3,)))

        def __call__(self, x):
            return x.sum(-1) + (x.mean(0) * self.scale).sum()

    estimate = grlu.NodePerturbation(8, ridge=0.1)(lambda model, x: model(x))
    with pytest.raises(grlu.UserError, match="scale: least squares needs every unit"):
        estimate(Mean(nnx.Rngs(0)), jnp.ones((2, 3)), jax.random.key(0))


def test_softmax_noise_scales_the_outputs_credit_by_its_uncertainty():
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    batch = (jnp.array([[1.0, -2.0, 0.5]]), jnp.array([2]))
    rule = grlu.NodePerturbation(4, 1e-2, noise="orthogonal", output_noise="softmax")
    _, grads = nnx.jit(rule(log_likelihood))(model, batch, jax.random.key(0))
    p = np.asarray(nnx.softmax(model(batch[0]))[0])
    expected = 4 * p * (1 - p) * (np.eye(4)[2] - p)
    np.testing.assert_allclose(-grads["bias"][...], expected, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("options", [{"site": "active"}, {"layers": "apart"}])
def test_credit_does_not_pass_a_stop_gradient(options):
    """Check that a block's noise affects only its own head's reward, as in backprop."""
    model = models.LocalMLP((12,), 5, width=16, depth=3, rngs=nnx.Rngs(0))
    batch = (normal(1, 4, 12), jnp.array([0, 1, 2, 3]))

    def reward(model, batch):
        logits = nnx.log_softmax(model(batch[0]))
        return jnp.take_along_axis(logits, batch[1][:, None, None], axis=2).sum((1, 2))

    rule = grlu.NodePerturbation(128, 0.01, noise="orthogonal", **options)
    found = grlu.alignment(rule, reward, model, batch, jax.random.key(2))
    assert found.cosine > 0.99
    assert abs(found.norm_ratio - 1) < 0.02


def test_stopped_values_are_those_of_the_clean_pass():
    """Check that noise before a stop_gradient does not reach the reward, also under jit."""
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))

    def reward(model, x):
        return jax.jit(lambda z: jax.lax.stop_gradient(z).sum(-1))(model(x)) + model(x)[:, 0]

    rule = grlu.NodePerturbation(4, 0.1, noise="orthogonal")
    _, grads = nnx.jit(rule(reward))(model, jnp.ones((1, 3)), jax.random.key(0))
    np.testing.assert_allclose(-grads["bias"][...], [1, 0, 0, 0], atol=1e-4)


def chunked(samples, **options):
    return [grlu.NodePerturbation(samples, 0.1, chunk=c, **options) for c in (None, 4)]


@pytest.mark.parametrize("options", [{}, {"site": "active", "output": "delta"}])
def test_chunks_of_orthogonal_noise_change_nothing(options):
    model = models.MLP((12,), 5, hidden=(8,), rngs=nnx.Rngs(0))
    batch = (normal(1, 4, 12), jnp.array([0, 1, 2, 3]))
    estimates = [rule(log_likelihood) for rule in chunked(32, noise="orthogonal", **options)]
    both = nnx.jit(lambda *args: [estimate(*args)[1] for estimate in estimates])
    whole, parts = both(model, batch, jax.random.key(0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), whole, parts)


@pytest.mark.parametrize(
    "options", [{"noise": "gaussian"}, {"noise": "gaussian", "site": "post", "inputs": "noisy"}]
)
def test_chunks_of_other_noise_estimate_the_same(options):
    model = models.MLP((12,), 5, hidden=(8,), rngs=nnx.Rngs(0))
    batch = (normal(1, 4, 12), jnp.array([0, 1, 2, 3]))
    whole, parts = (
        jax.jit(rule(log_likelihood))(model, batch, jax.random.key(0))[1]
        for rule in chunked(4096, **options)
    )
    one, two = (jax.flatten_util.ravel_pytree(g)[0] for g in (whole, parts))
    assert jnp.vdot(one, two) / jnp.linalg.norm(one) / jnp.linalg.norm(two) > 0.98
    assert abs(jnp.linalg.norm(one) / jnp.linalg.norm(two) - 1) < 0.05


@pytest.mark.parametrize("options", [{"noise": "orthogonal"}, {"site": "active"}])
def test_memory_grows_with_the_chunk_only(options):
    graphdef, params = nnx.split(models.MLP((784,), 10, hidden=(256,), rngs=nnx.Rngs(0)))
    batch = (jnp.ones((128, 784)), jnp.zeros(128, jnp.int32))

    def temporary(samples, chunk):
        estimate = grlu.NodePerturbation(samples, 0.1, chunk=chunk, **options)(log_likelihood)
        compiled = jax.jit(lambda p, k: estimate(nnx.merge(graphdef, p), batch, k)[1])
        analysis = compiled.lower(params, jax.random.key(0)).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    assert temporary(1024, 16) <= 2 * temporary(16, None)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"chunk": 0}, "chunk must be a positive integer"),
        ({"chunk": 3}, "chunk must divide the 16 samples"),
        ({"chunk": 4, "ridge": 0.1}, "use chunk=None"),
    ],
)
def test_wrong_chunks_are_refused(options, sentence):
    with pytest.raises(grlu.UserError, match=sentence):
        grlu.NodePerturbation(16, 0.1, **options)


def test_one_step_of_a_loop_at_a_time_needs_fewer_pairs():
    """Check ten units over five steps: two columns are enough for one step's two units."""
    model = nnx.RNN(nnx.SimpleCell(3, 2, rngs=nnx.Rngs(0)))
    x = normal(1, 4, 5, 3)

    def reward(model, x):
        return jnp.sin(model(x)).sum((1, 2))

    def found(layers):
        rule = grlu.NodePerturbation(2, 1e-2, noise="orthogonal", layers=layers)
        return grlu.alignment(rule, reward, model, x, jax.random.key(2))

    assert found("apart").cosine < 0.9
    assert found("steps").cosine > 0.999
    assert abs(found("steps").norm_ratio - 1) < 0.01


def test_published_rule_refuses_a_stop_gradient_outside_softmax():
    model = models.MLP((12,), 5, hidden=(8,), rngs=nnx.Rngs(0))
    batch = (jnp.ones((1, 12)), jnp.array([2]))
    rule = grlu.NodePerturbation.published(2, 0.1)
    nnx.eval_shape(rule(log_likelihood), model, batch, jax.random.key(0))

    def normed(model, batch):
        z = model(batch[0])
        return (z / jax.lax.stop_gradient(jnp.linalg.norm(z))).sum(-1)

    def summed(model, batch):
        return jax.nn.logsumexp(model(batch[0]), axis=-1) + nnx.softmax(model(batch[0]))[:, 0]

    nnx.eval_shape(rule(summed), model, batch, jax.random.key(0))
    with pytest.raises(grlu.UserError, match="use inputs='clean'"):
        rule(normed)(model, batch, jax.random.key(0))


def test_a_site_without_elements_takes_no_column():
    """Check a layer with an empty input."""
    model = models.MLP((12,), 5, hidden=(8,), rngs=nnx.Rngs(0))
    batch = (normal(1, 4, 12), jnp.array([0, 1, 2, 3]))

    def reward(model, batch):
        nothing = model(batch[0][:0]).sum()
        return log_likelihood(model, batch) + nothing

    rule = grlu.NodePerturbation(32, 1e-2, noise="orthogonal", site="active")
    assert grlu.alignment(rule, reward, model, batch, jax.random.key(0)).cosine > 0.99
