"""Common properties of all models, and the guarantees of the MLPs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import grlu
import models


@pytest.mark.parametrize("name", models.MODELS)
def test_shapes_gradients_and_determinism(name):
    shape = (6, 5, 1) if "conv" in name else (12,)
    options = {"latent": 4} if "vae" in name else {}
    options |= {"layers": 2, "heads": 2, "width": 16} if name == "gpt" else {}
    model = models.MODELS[name](shape, 5, **options, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (3, *shape))
    out = x.shape if hasattr(model, "decode") else (3, 5)
    if name == "gpt":
        x, out = jax.random.randint(jax.random.key(0), (3, 12), 0, 5), (3, 12, 5)
    model.eval()
    assert model(x).shape == out
    np.testing.assert_array_equal(model(x), model(x))
    np.testing.assert_allclose(model(x)[:1], model(x[:1]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "topk"])
@pytest.mark.parametrize("hidden", [(), (7,), (7, 6, 5)])
def test_any_depth_and_activation(hidden, activation):
    model = models.MLP((12,), 5, hidden=hidden, activation=activation, rngs=nnx.Rngs(0))
    assert [layer.kernel.shape for layer in model.layers] == list(
        zip((12, *hidden), (*hidden, 5), strict=True)
    )
    assert model(jnp.ones((2, 12))).shape == (2, 5)


def test_layer_norm_is_the_stated_formula():
    x = np.random.default_rng(0).normal(3, 2, (4, 9)).astype(np.float32)
    expected = (x - x.mean(1, keepdims=True)) / (x.std(1, keepdims=True) + 1e-8)
    np.testing.assert_allclose(
        models.layers.layer_norm(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-6
    )


def test_layer_norm_of_a_constant_is_zero_with_zero_gradient():
    value, grad = jax.value_and_grad(lambda x: models.layers.layer_norm(x).sum())(
        jnp.full((4,), 2.0)
    )
    assert value == 0
    np.testing.assert_array_equal(grad, 0)


def test_weights_are_he_normal():
    kernel = models.MLP((784,), 10, hidden=(256,), rngs=nnx.Rngs(0)).layers[0].kernel[...]
    assert abs(float(kernel.std()) - np.sqrt(2 / 784)) < 1e-3


@pytest.mark.parametrize(
    ("shape", "options", "sentence"),
    [
        ((4, 4, 1), {}, "set dataset.flatten=true"),
        ((4,), {"hidden": (0,)}, "positive layer sizes"),
        ((4,), {"hidden": (-3,)}, "positive layer sizes"),
        ((4,), {"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
        ((4,), {"activation": "swish"}, "activation must be one of relu"),
        ((4,), {"activation": "topk", "topk": 0.0}, r"must lie in \(0, 1\]"),
    ],
)
def test_wrong_sizes_are_refused(shape, options, sentence):
    with pytest.raises(grlu.UserError, match=sentence):
        models.MLP(shape, 3, rngs=nnx.Rngs(0), **options)


@pytest.mark.parametrize("skip", ["add", "concat", "head"])
def test_skips_carry_the_first_layers_credit_past_a_dead_middle(skip):
    """Set later weights to zero, so that a plain network's first layer would learn nothing."""
    model = models.SkipMLP((12,), 5, width=8, depth=3, skip=skip, rngs=nnx.Rngs(0))
    for layer in model.layers[1:]:
        layer.kernel[...] = jnp.zeros_like(layer.kernel[...])
    x = jax.random.normal(jax.random.key(0), (3, 12))

    def loss(model):
        return (model(x) ** 2).sum()

    grads = nnx.grad(loss)(model)
    assert jnp.abs(grads["layers"][0]["kernel"][...]).max() > 1e-3


def test_concatenated_layers_read_all_preceding_layers():
    model = models.SkipMLP((12,), 5, width=8, depth=4, skip="concat", rngs=nnx.Rngs(0))
    assert [layer.kernel.shape[0] for layer in model.layers] == [12, 8, 16, 24]
    assert model.head.kernel.shape[0] == 32


@pytest.mark.parametrize(
    ("shape", "options", "sentence"),
    [
        ((4, 4, 1), {}, "set dataset.flatten=true"),
        ((4,), {"width": 0}, "positive width and depth"),
        ((4,), {"depth": 0}, "positive width and depth"),
        ((4,), {"skip": "jump"}, "skip must be one of"),
    ],
)
def test_wrong_skips_are_refused(shape, options, sentence):
    with pytest.raises(grlu.UserError, match=sentence):
        models.SkipMLP(shape, 3, rngs=nnx.Rngs(0), **options)


def test_local_block_learns_only_from_its_own_head():
    model = models.LocalMLP((12,), 5, width=8, depth=3, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (3, 12))
    assert model(x).shape == (3, 3, 5)

    def moved(head):
        grads = nnx.grad(lambda model: jnp.sum(model(x)[:, head] ** 2))(model)
        return [bool(jnp.any(grads["layers"][i]["kernel"][...])) for i in range(3)]

    assert [moved(head) for head in range(3)] == np.eye(3, dtype=bool).tolist()


@pytest.mark.parametrize("option", ["width", "depth"])
def test_wrong_sizes_of_local_blocks_are_refused(option):
    with pytest.raises(grlu.UserError, match="local_mlp needs positive sizes"):
        models.LocalMLP((4,), 3, **{option: 0}, rngs=nnx.Rngs(0))


def test_dropout_acts_only_in_training():
    model = models.MLP((4,), 3, hidden=(64,), dropout=0.5, rngs=nnx.Rngs(0))
    x = jnp.array([[1.0, -2.0, 0.5, 3.0]])
    assert jnp.any(model(x) != model(x))
    model.eval()
    np.testing.assert_array_equal(model(x), model(x))
