"""Comparison with PyTorch: equal models, and one sentence without torch."""

import importlib.util

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from typer.testing import CliRunner

import models
from benchmarks import pytorch
from trainers.objectives.elbo import divergence
from trainers.objectives.language import LanguageModelling


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def set_linear(theirs, ours, torch):
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(np.asarray(ours.kernel[...]).T))
        theirs.bias.copy_(torch.tensor(np.asarray(ours.bias[...])))


def test_the_autoencoders_are_the_same(torch, monkeypatch):
    from benchmarks.baselines import plain_torch

    ours = models.MODELS["vae_mlp"](
        (784,), 0, latent=3, encoder_hidden=(7, 6), decoder_hidden=(5,), rngs=nnx.Rngs(0)
    )
    theirs = plain_torch.VAE(3, (7, 6), (5,), relu=True)
    set_linear(theirs.encoder[0], ours.encoder.layers[0], torch)
    set_linear(theirs.encoder[2], ours.encoder.layers[1], torch)
    set_linear(theirs.encoder[4], ours.encoder.heads, torch)
    set_linear(theirs.decoder[0], ours.decoder.layers[0], torch)
    set_linear(theirs.decoder[2], ours.decoder.out, torch)
    # Without noise the bound is evaluated at the posterior's mean.
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    x = np.random.default_rng(0).integers(0, 2, (4, 784)).astype(np.float32)
    posterior = ours.posterior(jnp.asarray(x))
    bound = ours.log_likelihood(jnp.asarray(x), posterior.mean) - divergence(posterior)
    np.testing.assert_allclose(theirs.loss(torch.tensor(x)).item(), -bound.mean(), rtol=1e-5)


def test_the_language_models_are_the_same(torch):
    from benchmarks.baselines import plain_torch

    ours = models.GPT((5,), 9, layers=2, heads=2, width=8, rngs=nnx.Rngs(0))
    theirs = plain_torch.GPT(9, 2, 2, 8, 5)
    with torch.no_grad():
        theirs.tokens.weight.copy_(torch.tensor(np.asarray(ours.tokens.embedding[...])))
        theirs.positions.weight.copy_(torch.tensor(np.asarray(ours.positions[...])))
    for block, layer in zip(theirs.blocks, ours.layers, strict=True):
        set_linear(block.project, layer.attention.project, torch)
        set_linear(block.out, layer.attention.out, torch)
        set_linear(block.up, layer.up, torch)
        set_linear(block.down, layer.down, torch)
    rows = np.random.default_rng(0).integers(0, 9, (3, 6))
    batch = {"tokens": jnp.asarray(rows), "scored": jnp.ones((3, 5))}
    reward, _ = LanguageModelling()(ours, batch)
    np.testing.assert_allclose(theirs.loss(torch.tensor(rows)).item(), -reward.mean(), rtol=1e-5)


def test_a_missing_torch_is_one_sentence(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else found(name)
    )
    told = CliRunner().invoke(pytorch.app, [])
    assert told.exit_code == 2
    assert "the comparison needs torch" in told.output
