"""Language models and denoisers: rewards, masks and whole runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import grlu
import models
import trainers
from trainers.loop.compiled import gather, means
from trainers.objectives.language import Denoising, LanguageModelling, mask, unmask


def gpt(causal=True, **options):
    sizes = {"layers": 1, "heads": 2, "width": 16} | options
    return nnx.jit(lambda: models.GPT((6,), 5, causal=causal, rngs=nnx.Rngs(0), **sizes))()


@pytest.fixture
def batch():
    tokens = jax.random.randint(jax.random.key(0), (8, 7), 0, 5)
    return {"tokens": tokens, "scored": jnp.ones((8, 6), jnp.int32).at[:, :2].set(0)}


def test_the_reward_is_the_mean_log_probability_of_the_scored_tokens(batch):
    model = gpt()

    @nnx.jit
    def both(model, batch):
        return LanguageModelling()(model, batch), model(batch["tokens"][:, :-1])

    (rewards, values), logits = both(model, batch)
    logits = np.asarray(logits, np.float64)
    for i in range(8):
        chosen = []
        for t in range(2, 6):
            p = np.exp(logits[i, t]) / np.exp(logits[i, t]).sum()
            chosen.append(np.log(p[int(batch["tokens"][i, t + 1])]))
        np.testing.assert_allclose(rewards[i], np.mean(chosen), rtol=1e-5)
    np.testing.assert_allclose(values["nll"], -rewards)
    assert set(values) == set(LanguageModelling().metrics)


def test_the_perplexity_of_a_split_is_exp_of_its_mean_nll():
    nll = jnp.array([0.5, 1.0, 3.0, 9.0])
    values = {"nll": nll, "perplexity": jnp.exp(nll)}
    collection = means(values).empty()
    for half in (slice(2), slice(2, 4)):
        collection = gather(collection, {k: v[half] for k, v in values.items()}, nll[half] < 5)
    found = collection.compute()
    np.testing.assert_allclose(found["nll"], 1.5, rtol=1e-6)
    np.testing.assert_allclose(found["perplexity"], np.exp(1.5), rtol=1e-6)


def test_masks_are_stratified_and_cover_only_scored_tokens():
    scored = jnp.ones((4000, 6), jnp.int32).at[:, :2].set(0)
    masked = mask(jax.random.key(0), scored)
    assert not masked[:, :2].any()
    counts = np.bincount(np.asarray(masked.sum(1)), minlength=5)
    assert counts[0] == 0
    assert np.abs(counts[1:] / 4000 - 0.25).max() < 0.01
    places = np.asarray(masked[:, 2:].mean(0))
    assert np.abs(places - 0.625).max() < 0.04
    assert (mask(jax.random.key(1), scored) != masked).any()


def test_denoising_rewards_only_masked_tokens_and_hides_them(batch):
    class Told:
        """Model that repeats visible tokens, and is uniform on masks."""

        vocabulary = 5

        def __init__(self):
            self.rngs = nnx.Rngs(3)

        def __call__(self, tokens):
            return 100.0 * jax.nn.one_hot(tokens, 6)[..., :5]

    rewards, values = Denoising()(Told(), batch)
    np.testing.assert_allclose(rewards, -np.log(5), rtol=1e-5)
    np.testing.assert_allclose(values["nll"], np.log(5), rtol=1e-5)


def test_evaluation_repeats_its_masks_and_training_samples_new_ones(batch):
    model = gpt(causal=False)
    graphdef, state = nnx.split(model)
    rewards = jax.jit(lambda state: Denoising()(nnx.merge(graphdef, state, copy=True), batch)[0])
    one, two = rewards(state), rewards(state)
    np.testing.assert_array_equal(one, two)
    estimate = nnx.jit(grlu.Backprop()(lambda m, b: Denoising()(m, b)[0]))
    first, _ = estimate(model, batch, jax.random.key(0))
    second, _ = estimate(model, batch, jax.random.key(1))
    assert first != second


def test_unmasking_keeps_given_tokens_and_fills_the_most_confident_first():
    class Sure:
        """Model with known tokens, more confident at smaller positions; counts its passes."""

        vocabulary, causal = 5, False

        def __init__(self):
            self.seen = []

        def __call__(self, tokens):
            places = jnp.arange(tokens.shape[1])
            jax.debug.callback(lambda t: self.seen.append(np.asarray(t)), tokens, ordered=True)
            return (10.0 - places)[None, :, None] * jax.nn.one_hot(places % 5, 5)[None]

    model = Sure()
    given = jnp.full((1, 8), 5).at[0, 0].set(3)
    found = unmask(model, given, steps=3, key=jax.random.key(0), greedy=True)
    jax.effects_barrier()
    assert found.tolist() == [[3, 1, 2, 3, 4, 0, 1, 2]]
    assert [int((seen == 5).sum()) for seen in model.seen] == [7, 4, 2]
    assert model.seen[1].tolist() == [[3, 1, 2, 3, 5, 5, 5, 5]]


@pytest.mark.parametrize("steps", [1, 4, 6])
def test_no_mask_is_left_or_sampled(steps):
    model = gpt(causal=False)
    found = unmask(model, jnp.full((50, 6), 5), steps=steps, key=jax.random.key(0))
    assert found.max() < 5
    assert len({tuple(row) for row in found.tolist()}) > 40
    with pytest.raises(grlu.UserError, match=r"needs model.causal=false"):
        unmask(gpt(), jnp.full((1, 6), 5), steps=1, key=jax.random.key(0))
    with pytest.raises(grlu.UserError, match="steps and temperature must be positive"):
        unmask(model, jnp.full((1, 6), 5), steps=0, key=jax.random.key(0))


def small_config():
    return {
        "dataset": {"name": "sonnets", "length": 16, "stride": 8},
        "model": {"name": "gpt", "layers": 1, "heads": 2, "width": 32},
        "trainer": {
            "name": "backprop",
            "objective": "lm",
            "epochs": 3,
            "batch_size": 16,
            "optimizer": "adam",
            "learning_rate": 5e-3,
        },
        "run": {"rows_per_epoch": 1},
    }


@pytest.fixture
def small():
    return small_config()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a function that returns a trained run with its result, to read."""

    @functools.cache
    def trained(objective):
        config = small_config()
        config["trainer"]["objective"] = objective
        config["model"]["causal"] = objective == "lm"
        path = tmp_path_factory.mktemp(objective) / "run"
        return path, trainers.train(config, path, progress=False)

    return trained


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["lm", "denoising"])
def test_a_run_learns_a_text_and_generates(objective, runs):
    path, result = runs(objective)
    assert result.metrics["test_nll"] < 3.3  # log 55 = 4.0 without knowledge
    np.testing.assert_allclose(
        result.metrics["test_perplexity"], np.exp(result.metrics["test_nll"]), rtol=1e-4
    )
    assert trainers.evaluate(path)["test_nll"] == result.metrics["test_nll"]
    one, two = trainers.generate(path, "Shall I", samples=2)
    assert one != two
    assert {len(one), len(two)} == {17 if objective == "lm" else 16}
    assert one.startswith("Shall I")
    assert trainers.generate(path, "Shall I", samples=2) == [one, two]
    greedy = [trainers.generate(path, greedy=True, seed=s) for s in (0, 1)]
    assert greedy[0] == greedy[1]


@pytest.mark.slow
def test_a_text_may_be_longer_than_the_block(runs):
    path, _ = runs("lm")
    (text,) = trainers.generate(path, "Shall I", tokens=60)
    assert len(text) == 67
    with pytest.raises(
        grlu.UserError, match="the prompt has 19 tokens, and the model's block only"
    ):
        trainers.generate(path, "Shall I compare the")
    with pytest.raises(grlu.UserError, match="'@' at position 2 of the text is not in"):
        trainers.generate(path, "So@")
    with pytest.raises(grlu.UserError, match="tokens and samples must be positive"):
        trainers.generate(path, "So", tokens=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("grlu", {"samples": 8, "noise": "orthogonal", "sigma": 0.02}),
        ("evolution", {"population": 16, "rank": 1, "sigma": 0.02}),
    ],
)
def test_rules_without_gradients_train_language_models(name, options, small, tmp_path):
    small["trainer"] |= options | {"name": name, "epochs": 2}
    result = trainers.train(small, tmp_path / "run", progress=False)
    assert result.metrics["test_nll"] < 3.7


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"trainer": {"objective": "classification"}}, "does not go with sonnets, which is text"),
        ({"dataset": {"name": "digits"}}, "does not go with digits, which is images"),
        ({"model": {"name": "mlp"}}, "such as gpt; mlp returns"),
        ({"model": {"causal": False}}, "needs a model that sees only preceding tokens"),
        ({"trainer": {"objective": "denoising"}}, "needs a model that sees the whole text"),
        ({"model": {"block": 8}}, "16 tokens are more than the 8 of the model's block"),
        ({"trainer": {"batch_size": 1000}}, "has only 552 training examples"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(change, sentence, small, tmp_path):
    for section, values in change.items():
        replaced = "name" in values and section != "trainer"
        small[section] = values if replaced else small[section] | values
    with pytest.raises(grlu.UserError, match=sentence):
        trainers.train(small, tmp_path / "run", progress=False)
    if "dataset" in change:
        small["trainer"]["objective"] = "classification"
        with pytest.raises(grlu.UserError, match="gpt takes tokens, integers of shape"):
            trainers.train(small, tmp_path / "run", progress=False)


def test_a_classifier_generates_no_text(small, tmp_path):
    small |= {"dataset": {"name": "digits", "subset": 50}, "model": {"name": "mlp"}}
    small["trainer"] = {"name": "backprop", "epochs": 1, "batch_size": 50}
    trainers.train(small, tmp_path / "run", progress=False)
    with pytest.raises(grlu.UserError, match="writes no text, it is a classifier of digits"):
        trainers.generate(tmp_path / "run")


@pytest.mark.parametrize(
    ("model", "objective", "said"),
    [
        ({"name": "vae_mlp", "latent": 2}, "elbo", "a variational autoencoder of digits: 'grlu re"),
        ({"name": "autoencoder"}, "reconstruction", "an autoencoder of digits: 'grlu report "),
    ],
)
def test_an_autoencoder_generates_no_text(model, objective, said, tmp_path):
    config = {
        "dataset": {"name": "digits", "subset": 50, "normalize": "unit"},
        "model": model,
        "trainer": {"name": "backprop", "objective": objective, "epochs": 0, "batch_size": 50},
    }
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.json").write_text(trainers.config.load.to_json(trainers.resolve(config)))
    with pytest.raises(grlu.UserError, match=f"writes no text, it is {said}"):
        trainers.generate(path)
