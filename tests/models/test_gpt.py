"""GPT-2's architecture, both kinds of attention, and the guarantees of a cache."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import grlu
import models

ATTENTIONS = pytest.mark.parametrize("attention", ["multi_head", "latent"])


passed = nnx.jit(lambda model, tokens: model(tokens))
cached = nnx.jit(lambda model, tokens, cache: model.cached(tokens, cache))


def make(attention="multi_head", **options):
    options = {"layers": 2, "heads": 2, "width": 16, "block": 12} | options
    return nnx.merge(*initial(attention, **options), copy=True)


@functools.cache
def initial(attention, **options):
    def make():
        return models.GPT((12,), 7, attention=attention, rngs=nnx.Rngs(0), **options)

    return nnx.split(nnx.jit(make)())


def sharpened(model):
    """Return the model with larger weights: initially all logits are nearly equal."""
    params = jax.tree.map(np.asarray, nnx.state(model, nnx.Param))
    larger = jax.tree.map(lambda p: jnp.asarray(8 * p if p.ndim > 1 else p + 0.1), params)
    nnx.update(model, larger)
    return model


def tokens(rows=3, length=12, key=1):
    return jnp.asarray(np.random.default_rng(key).integers(0, 7, (rows, length)))


def changed(given, j):
    found = np.array(given)
    found[:, j] = (found[:, j] + 1) % 7
    return jnp.asarray(found)


@ATTENTIONS
def test_changing_a_token_leaves_the_logits_before_it_untouched(attention):
    model, given = sharpened(make(attention)), tokens()
    before = np.asarray(passed(model, given))
    for j in (0, 5, 11):
        after = np.asarray(passed(model, changed(given, j)))
        np.testing.assert_array_equal(before[:, :j], after[:, :j])
        assert np.abs(before[:, j:] - after[:, j:]).max(axis=(0, 2)).min() > 1e-4


@ATTENTIONS
def test_noncausal_model_attends_to_all_positions(attention):
    model, given = sharpened(make(attention, causal=False)), tokens()
    before, after = (np.asarray(passed(model, x)) for x in (given, changed(given, 11)))
    assert np.abs(before - after).max(axis=(0, 2)).min() > 1e-5


@ATTENTIONS
@pytest.mark.parametrize("parts", [(12,), (1,) * 12, (5, 1, 1, 3, 2)])
def test_cache_gives_the_logits_of_a_full_pass(attention, parts):
    model, given = sharpened(make(attention)), tokens()
    cache, found = model.empty_cache(3, 12), []
    ends = list(itertools.accumulate(parts))
    for start, end in zip([0, *ends], ends, strict=False):
        logits, cache = cached(model, given[:, start:end], cache)
        found.append(logits)
    assert int(cache.length) == 12
    np.testing.assert_allclose(
        jnp.concatenate(found, 1), passed(model, given), rtol=1e-4, atol=1e-5
    )


@ATTENTIONS
def test_a_repeated_cache_continues_each_copy(attention):
    model, given = sharpened(make(attention)), tokens()
    _, cache = cached(model, given[:, :4], model.empty_cache(3, 8))
    more = tokens(6, 2, key=2)
    logits, _ = cached(model, more, cache.repeated(2))
    whole = passed(model, jnp.concatenate([jnp.repeat(given[:, :4], 2, axis=0), more], 1))
    np.testing.assert_allclose(logits, whole[:, 4:], rtol=1e-4, atol=1e-5)


@ATTENTIONS
def test_tokens_past_the_block_are_refused_if_the_position_is_static(attention):
    model, given = make(attention), tokens()
    _, cache = model.cached(given, model.empty_cache(3, 12))
    with pytest.raises(
        grlu.UserError, match=r"1 tokens after the 12 in the cache.*12 of the model's"
    ):
        model.cached(given[:, :1], cache)
    with pytest.raises(grlu.UserError, match=r"13 tokens are more.*raise model\.block"):
        model.cached(tokens(length=13), model.empty_cache(3, 12))
    _, cache = model.cached(given[:, :4], model.empty_cache(3, 5))
    with pytest.raises(
        grlu.UserError, match=r"positions of the cache: create it with empty_cache.*length=6"
    ):
        model.cached(given[:, 4:6], cache)
    with pytest.raises(grlu.UserError, match="6 tokens are more than the 5 positions of the cache"):
        cached(model, given[:, :6], model.empty_cache(3, 5))


@ATTENTIONS
@pytest.mark.parametrize("length", [12, 5])
def test_logits_past_the_block_are_nan_if_the_position_is_traced(attention, length):
    model, given = make(attention), tokens()
    logits, cache = cached(model, given[:, : length - 1], model.empty_cache(3, length))
    beyond, past = cached(model, given[:, :2], cache)
    within, cache = cached(model, given[:, length - 1 : length], cache)
    assert jnp.isfinite(logits).all()
    assert jnp.isfinite(within).all()
    assert jnp.isnan(beyond).all()
    assert jnp.isnan(cached(model, given[:, :1], past)[0]).all()
    assert jnp.isnan(cached(model, given[:, :1], cache)[0]).all()


def test_latent_cache_holds_only_the_latent():
    def size(attention):
        cache = make(attention).empty_cache(3, 12)
        return sum(leaf.size for leaf in jax.tree.leaves(cache.layers))

    assert size("multi_head") == 2 * 2 * 3 * 12 * 16
    assert size("latent") == size("multi_head") / 4


def test_initial_weights_match_gpt_2():
    model = models.GPT((32,), 500, layers=8, heads=4, width=128, rngs=nnx.Rngs(0))
    for kernel, std in [
        (model.tokens.embedding, 0.02),
        (model.positions, 0.02),
        (model.layers[3].up.kernel, 0.02),
        (model.layers[3].attention.project.kernel, 0.02),
        (model.layers[3].attention.out.kernel, 0.02 / 4),
        (model.layers[3].down.kernel, 0.02 / 4),
    ]:
        assert abs(float(kernel[...].std()) / std - 1) < 0.05
    assert not model.layers[0].up.bias[...].any()
    assert model.block == 32
    # Tied head: 12 width² per layer and the embeddings, except for biases and norms.
    count = sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert count == 8 * (12 * 128**2 + 13 * 128) + (500 + 32) * 128 + 2 * 128


@ATTENTIONS
def test_logits_from_start_equal_the_last_logits(attention):
    model, given = make(attention, value_head=True), tokens()
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)

    @nnx.jit
    def every(model, given, cache):
        late = model.with_values(given, start=8)
        cached = model.cached(given, cache, start=8)
        return model.with_values(given), model(given, start=8), late, cached

    whole, late, both, (found, cache) = every(model, given, model.empty_cache(3, 12))
    close(late, whole[0][:, 8:])
    for one, expected in zip(both, whole, strict=True):
        close(one, expected[:, 8:])
    close(found, whole[0][:, 8:])
    assert cache.length == 12


@ATTENTIONS
def test_new_model_does_not_repeat_its_input(attention):
    """Check the scale of the tied embedding: with N(0, 1) it would repeat its input."""
    sizes = {"layers": 4, "heads": 4, "width": 128, "block": 32}
    model = models.GPT((32,), 65, attention=attention, rngs=nnx.Rngs(0), **sizes)
    given = np.random.default_rng(0).integers(0, 65, (4, 32))
    assert nnx.softmax(passed(model, jnp.asarray(given))).max() < 0.2


def test_mask_token_is_read_but_not_predicted():
    model = make(causal=False)
    found = passed(model, jnp.full((2, 12), 7))
    assert found.shape == (2, 12, 7)
    assert jnp.isfinite(found).all()
    assert make().tokens.embedding.shape[0] == 7


def test_value_head_reads_the_features_of_the_logits():
    model = make(value_head=True)
    both = nnx.jit(lambda model, tokens: (model.with_values(tokens), model(tokens)))
    (logits, values), own = both(model, tokens())
    np.testing.assert_array_equal(logits, own)
    assert values.shape == (3, 12)
    with pytest.raises(grlu.UserError, match="value_head=true"):
        make().with_values(tokens())


@ATTENTIONS
def test_dropout_acts_only_in_training(attention):
    model = make(attention, dropout=0.5)
    twice = nnx.jit(lambda model, tokens: (model(tokens), model(tokens)))
    one, two = twice(model, tokens())
    assert (one != two).any()
    model.eval()
    np.testing.assert_array_equal(*twice(model, tokens()))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"width": 15}, "width must be a multiple of heads"),
        ({"layers": 0}, "positive layers"),
        ({"dropout": 1.0}, "dropout must lie"),
        ({"attention": "local"}, "attention must be one of multi_head, latent"),
        ({"attention": "latent", "latent": 0}, "latent and query_latent must be positive"),
    ],
)
def test_wrong_sizes_are_refused(options, sentence):
    with pytest.raises(grlu.UserError, match=sentence):
        make(**options)


def test_invalid_inputs_are_refused():
    with pytest.raises(grlu.UserError, match="13 tokens are more than the 12"):
        make()(tokens(length=13))
    with pytest.raises(grlu.UserError, match="13 tokens are more than the 12"):
        make().empty_cache(1, 13)
    with pytest.raises(grlu.UserError, match="causal=false has no cache"):
        make(causal=False).empty_cache(1, 12)
    with pytest.raises(grlu.UserError, match="takes sequences of tokens"):
        models.GPT((8, 8, 1), 7, rngs=nnx.Rngs(0))
