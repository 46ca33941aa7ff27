"""Common properties of all models, and the guarantees of the MLPs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import grlu
import models


def normal(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))


@pytest.mark.parametrize("name", models.MODELS)
def test_shapes_gradients_and_determinism(name):
    shape = (6, 5, 1) if "conv" in name else (12,)
    options = {"latent": 4} if "vae" in name else {}
    options |= {"layers": 2, "heads": 2, "width": 16} if name == "gpt" else {}
    model = nnx.jit(lambda: models.MODELS[name](shape, 5, **options, rngs=nnx.Rngs(0)))()
    x = normal(3, *shape)
    out = x.shape if hasattr(model, "decode") else (3, 5)
    if name == "gpt":
        x, out = jnp.arange(36).reshape(3, 12) * 7 % 5, (3, 12, 5)
    model.eval()
    once, again, first = nnx.jit(lambda model, x: (model(x), model(x), model(x[:1])))(model, x)
    assert once.shape == out
    np.testing.assert_array_equal(once, again)
    np.testing.assert_allclose(once[:1], first, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("hidden", "activation"),
    [((), "relu"), ((), "topk"), ((7,), "tanh"), ((7, 6, 5), "gelu"), ((7, 6, 5), "topk")],
)
def test_any_depth_and_activation(hidden, activation):
    def make():
        return models.MLP((12,), 5, hidden=hidden, activation=activation, rngs=nnx.Rngs(0))

    model = nnx.eval_shape(make)
    assert [layer.kernel.shape for layer in model.layers] == list(
        zip((12, *hidden), (*hidden, 5), strict=True)
    )
    out = jax.jit(lambda: make()(jnp.ones((2, 12))))()
    assert out.shape == (2, 5)
    assert jnp.isfinite(out).all()


def test_layer_norm_is_the_stated_formula():
    x = np.random.default_rng(0).normal(3, 2, (4, 9)).astype(np.float32)
    expected = (x - x.mean(1, keepdims=True)) / (x.std(1, keepdims=True) + 1e-8)
    np.testing.assert_allclose(
        models.layers.layer_norm(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-6
    )


def test_layer_norm_of_a_constant_is_zero_with_zero_gradient():
    slope = jax.jit(jax.value_and_grad(lambda x: models.layers.layer_norm(x).sum()))
    value, grad = slope(jnp.full((4,), 2.0))
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
    make = functools.partial(models.SkipMLP, (12,), 5, width=8, depth=3, skip=skip)
    model = nnx.jit(lambda: make(rngs=nnx.Rngs(0)))()
    for layer in model.layers[1:]:
        layer.kernel[...] = jnp.zeros_like(layer.kernel[...])
    x = normal(3, 12)

    def loss(model):
        return (model(x) ** 2).sum()

    grads = nnx.jit(nnx.grad(loss))(model)
    assert jnp.abs(grads["layers"][0]["kernel"][...]).max() > 1e-3


def test_concatenated_layers_read_all_preceding_layers():
    make = functools.partial(models.SkipMLP, (12,), 5, width=8, depth=4, skip="concat")
    model = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
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
    model = nnx.jit(lambda: models.LocalMLP((12,), 5, width=8, depth=3, rngs=nnx.Rngs(0)))()
    x = normal(3, 12)
    assert nnx.eval_shape(lambda model: model(x), model).shape == (3, 3, 5)

    @nnx.jit
    def gradients(model):
        losses = [lambda model, h=head: jnp.sum(model(x)[:, h] ** 2) for head in range(3)]
        return [nnx.grad(loss)(model) for loss in losses]

    moved = [
        [bool(np.any(grads["layers"][i]["kernel"][...])) for i in range(3)]
        for grads in gradients(model)
    ]
    assert moved == np.eye(3, dtype=bool).tolist()


@pytest.mark.parametrize("option", ["width", "depth"])
def test_wrong_sizes_of_local_blocks_are_refused(option):
    with pytest.raises(grlu.UserError, match="local_mlp needs positive sizes"):
        models.LocalMLP((4,), 3, **{option: 0}, rngs=nnx.Rngs(0))


def test_dropout_acts_only_in_training():
    model = models.MLP((4,), 3, hidden=(64,), dropout=0.5, rngs=nnx.Rngs(0))
    x = jnp.array([[1.0, -2.0, 0.5, 3.0]])
    twice = nnx.jit(lambda model: (model(x), model(x)))
    one, two = twice(model)
    assert (one != two).any()
    model.eval()
    np.testing.assert_array_equal(*twice(model))
