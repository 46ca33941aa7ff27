"""Sampling, and log-probabilities as in training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import grlu
import models
from trainers.completions import sampling
from trainers.completions.sampling import log_probs

ATTENTIONS = pytest.mark.parametrize("attention", ["multi_head", "latent"])


passed = nnx.jit(lambda model, tokens: model(tokens))


def sample(model, prompts, *, key, **options):
    """Return compiled samples: one program, not one per operation."""
    return program(**options)(model, prompts, key)


@functools.cache
def program(**options):
    return nnx.jit(lambda model, prompts, key: sampling.sample(model, prompts, key=key, **options))


def make(attention="multi_head", **options):
    """Return a model whose next token depends strongly on the preceding ones."""
    return nnx.merge(*initial(attention, **options), copy=True)


@functools.cache
def initial(attention, **options):
    options = {"layers": 2, "heads": 2, "width": 16, "block": 12} | options

    @nnx.jit
    def model():
        model = models.GPT((12,), 7, attention=attention, rngs=nnx.Rngs(0), **options)
        params = nnx.state(model, nnx.Param)
        nnx.update(model, jax.tree.map(lambda p: 8 * p if p.ndim > 1 else p + 0.1, params))
        return model

    return nnx.split(model())


@pytest.fixture
def prompts():
    return jnp.asarray(np.random.default_rng(5).integers(0, 7, (3, 4), np.int32))


def taught(model, prompts, completions, temperature=1.0):
    """Return teacher-forced log-probabilities of a whole pass without a cache."""
    copies = len(completions.tokens) // len(prompts)
    whole = np.concatenate([np.repeat(prompts, copies, axis=0), completions.tokens], 1)

    @nnx.jit
    def found(model, tokens):
        return log_probs(
            model(tokens[:, :-1])[:, prompts.shape[1] - 1 :], tokens[:, 4:], temperature
        )

    return found(model, jnp.asarray(whole))


@pytest.mark.parametrize(("attention", "temperature"), [("multi_head", 1.0), ("latent", 0.7)])
def test_log_probs_are_the_teacher_forced_ones(attention, temperature, prompts):
    model = make(attention)
    found = sample(
        model, prompts, steps=9, key=jax.random.key(0), samples=5, temperature=temperature
    )
    assert found.tokens.shape == (15, 9)
    assert found.mask.all()
    assert (found.log_probs < 0).all()
    expected = taught(model, prompts, found, temperature)
    np.testing.assert_allclose(found.log_probs, expected, rtol=1e-5, atol=1e-5)


@ATTENTIONS
def test_greedy_is_the_argmax_of_the_whole_pass(attention, prompts):
    model, text = make(attention), np.pad(prompts, ((0, 0), (0, 8)))
    found = sample(model, prompts, steps=8, key=jax.random.key(0), greedy=True)
    for t in range(4, 12):  # What lies beyond t - 1 is not seen.
        text[:, t] = np.argmax(np.asarray(passed(model, jnp.asarray(text)))[:, t - 1], axis=-1)
    np.testing.assert_array_equal(found.tokens, text[:, 4:])


def probabilities(model, prompts):
    """Return the probabilities of the first token after the first prompt."""
    found = nnx.jit(lambda model, prompt: nnx.softmax(model(prompt)[0, -1]))
    return np.asarray(found(model, prompts[:1]), np.float64)


def test_samples_follow_the_models_distribution(prompts):
    model = make()
    found = sample(model, prompts[:1], steps=1, key=jax.random.key(0), samples=20_000)
    shares = np.bincount(np.asarray(found.tokens[:, 0]), minlength=7) / 20_000
    expected = probabilities(model, prompts)
    assert np.abs(shares - expected).max() < 4 * 0.5 / np.sqrt(20_000)


def test_samples_of_a_prompt_differ_and_depend_on_the_key(prompts):
    model = make()
    one = sample(model, prompts, steps=8, key=jax.random.key(0), samples=4)
    same = sample(model, prompts, steps=8, key=jax.random.key(0), samples=4)
    other = sample(model, prompts, steps=8, key=jax.random.key(1), samples=4)
    np.testing.assert_array_equal(one.tokens, same.tokens)
    assert (one.tokens != other.tokens).any()
    assert (one.tokens[0] != one.tokens[1]).any()


@pytest.mark.parametrize("option", [{"top_k": 2}, {"top_p": 0.5}, {"top_k": 3, "top_p": 0.6}])
def test_truncation_samples_the_likely_tokens_alone(option, prompts):
    model = make()
    found = sample(model, prompts[:1], steps=1, key=jax.random.key(0), samples=500, **option)
    p = probabilities(model, prompts)
    order = np.argsort(-p)
    if "top_k" in option:
        order = order[: option["top_k"]]
    if "top_p" in option:
        reached = np.cumsum(p[order] / p[order].sum())
        order = order[: 1 + int((reached < option["top_p"]).sum())]
    assert set(np.asarray(found.tokens[:, 0])) == set(order)
    expected = taught(model, prompts[:1], found)  # Those of the whole distribution.
    np.testing.assert_allclose(found.log_probs, expected, rtol=1e-5, atol=1e-5)


def test_the_end_token_ends_a_completion(prompts):
    model = make()
    found = sample(model, prompts, steps=8, key=jax.random.key(0), samples=20, end_token=3)
    ended = 0
    for row, log_prob, length in zip(*map(np.asarray, found), strict=True):
        assert 3 not in row[: length - 1]
        assert (row[length:] == 3).all()
        assert (log_prob[length:] == 0).all()
        assert (log_prob[:length] < 0).all()
        assert length == 8 or row[length - 1] == 3
        ended += length < 8
    assert ended > 0
    free = sample(model, prompts, steps=8, key=jax.random.key(0), samples=20)
    np.testing.assert_array_equal(
        np.where(found.mask, found.tokens, 0), np.where(found.mask, free.tokens, 0)
    )
    np.testing.assert_array_equal(found.mask.sum(1), found.lengths)


def test_dropout_is_off_and_the_model_is_unchanged(prompts):
    model = make(dropout=0.5)
    before = [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model, nnx.RngCount))]
    found = sample(model, prompts, steps=8, key=jax.random.key(0))
    plain = make(dropout=0.5)
    plain.eval()
    expected = taught(plain, prompts, found)
    np.testing.assert_allclose(found.log_probs, expected, rtol=1e-5, atol=1e-5)
    assert not model.dropout.deterministic
    after = [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model, nnx.RngCount))]
    np.testing.assert_array_equal(before, after)


def test_sampling_compiles_once_and_equals_the_eager_result(prompts):
    model, traces = make(), []

    @nnx.jit
    def compiled(model, prompts, key):
        traces.append(1)
        return sampling.sample(model, prompts, steps=8, key=key, samples=2)

    for i in range(2):
        found = compiled(model, prompts, jax.random.key(i))
        expected = sampling.sample(model, prompts, steps=8, key=jax.random.key(i), samples=2)
        np.testing.assert_array_equal(found.tokens, expected.tokens)
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"steps": 10}, "4 tokens and 10 new ones don't fit the model's block of 12"),
        ({"steps": 0}, "steps must be a positive number"),
        ({"samples": 0}, "samples must be a positive number"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"top_k": 0}, "top_k must be a positive number"),
        ({"top_p": 1.5}, r"top_p must lie in \(0, 1\]"),
    ],
)
def test_wrong_values_are_refused(options, sentence, prompts):
    with pytest.raises(grlu.UserError, match=sentence):
        sampling.sample(make(), prompts, **{"steps": 4, "key": jax.random.key(0)} | options)


def test_prompts_must_be_tokens():
    with pytest.raises(grlu.UserError, match="prompts must be tokens"):
        sampling.sample(make(), jnp.zeros((2, 3)), steps=1, key=jax.random.key(0))
    with pytest.raises(grlu.UserError, match="prompts must be tokens"):
        sampling.sample(make(), jnp.zeros((2, 0), jnp.int32), steps=1, key=jax.random.key(0))
