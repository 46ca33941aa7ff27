"""Evaluation of variational autoencoders beyond the metrics of their objective."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from input_pipeline.images.corruptions import CORRUPTIONS
from models.vae import VAE, Posterior
from trainers.gradient.settings import SVI
from trainers.loop.experiment import Experiment
from trainers.loop.state import TrainState
from trainers.objectives.elbo import log_weights, terms
from trainers.objectives.refinement import Refinement
from trainers.objectives.registry import trait

# Variance over the data above which a latent's posterior mean is active (Burda 2016).
ACTIVE = 0.01

_log = logging.getLogger("grlu")
# Images at once and samples of each at once, which bound the memory.
_IMAGES, _SAMPLES = 100, 50
_VALUES = 2**27  # Largest number of pixels to encode: 170,000 images of MNIST.
_PROBED, _REFINED, _CORRUPTED, _DRAWS = 5000, 500, 128, 20


@dataclasses.dataclass(frozen=True)
class Effort:
    """Effort of an evaluation.

    Attributes:
        samples: k of the importance-weighted bound; use 5,000 for a figure to publish.
        images: number of test images for the bound, spread over the split.
        refined: always sample from refined posteriors.
    """

    samples: int = 500
    images: int = 1000
    refined: bool = False


def is_generative(config: Mapping[str, Any]) -> bool:
    """Return True if a run of this config trains a variational autoencoder by a bound."""
    name = config["trainer"].get("objective")
    return name is not None and trait(name, "generative")


def measured(experiment: Experiment, state: TrainState, effort: Effort) -> dict[str, Any]:
    """Return metrics of a trained model on the test split; with several seeds, for the first.

    Returns:
        "test_nll": minus the bound of `effort.samples` importance weights, in nats per example,
        with samples of the posterior that the trainer learns from, the encoder's or the refined
        one; "test_active_units"; "test_amortisation_gap": nats that long refinement adds to the
        encoder's ELBO, and "test_gap_closed": the fraction that the trainer's own inner loop, or
        `SHORT`, adds; "test_probe_accuracy": accuracy of a linear classifier on the posterior
        means; "iterative" and "out_of_distribution": results of `corrupted` on the original
        images and on all corruptions.
    """
    trainer: Any = experiment.trainer
    train, test = experiment.train, experiment.test
    if experiment.run.seeds > 1:
        state = jax.tree.map(lambda leaf: leaf[0], state)
    if experiment.by_seed:
        train, test = ({k: v[0] for k, v in each.items()} for each in (train, test))
    model: VAE = trainer.model(state)

    def images(arrays: Mapping[str, Any], count: int) -> tuple[jax.Array, np.ndarray]:
        rows = np.unique(np.linspace(0, len(arrays["label"]) - 1, count).astype(int))
        batch = experiment.preprocess({k: a[rows] for k, a in arrays.items()})
        return jnp.asarray(batch["image"]), np.asarray(arrays["label"])[rows]

    x, _ = images(test, effort.images)
    settings = trainer.settings
    own = settings.refinement() if isinstance(settings, SVI) else None
    proposals = own or (SHORT if effort.refined else None)
    nll = -float(np.mean(bound(model, x, effort.samples, proposals)))
    encodable = max(1, _VALUES // test["image"][0].size)
    everything, labels = images(test, min(len(test["label"]), encodable))
    codes = _encoded(model, everything)
    seen, seen_labels = images(train, min(_PROBED, encodable))
    x, _ = images(test, _REFINED)
    gap = amortisation_gap(model, x)
    found: dict[str, Any] = {
        "test_nll": nll,
        "test_active_units": active_units(codes),
        "test_probe_accuracy": probe(_encoded(model, seen), seen_labels, codes, labels),
        "test_amortisation_gap": gap,
        "test_gap_closed": amortisation_gap(model, x, own or SHORT) / gap,
    }
    x, _ = images(test, _CORRUPTED)
    shape = tuple(test["image"].shape[1:])
    if len(shape) == 3 and int(np.prod(shape)) == int(np.prod(x.shape[1:])):
        found["out_of_distribution"] = corrupted(model, x, shape, own or SHORT)
        found["iterative"] = found["out_of_distribution"]["identity"]
    _warn(found, model.latent)
    return found


# SHORT: inner loop for models trained without one; LONG: refinement to convergence.
SHORT = Refinement(steps=20, learning_rate=0.3, natural=True, draws=8, schedule="linear")
LONG = dataclasses.replace(SHORT, steps=200)


def bound(model: VAE, x: jax.Array, samples: int, refine: Refinement | None = None) -> np.ndarray:
    """Return the importance-weighted bound of each image, in chunks of images and samples.

    The proposal is the encoder's posterior, refined by `refine` if given.
    """
    chunks = -(-samples // _SAMPLES)

    def of(copy: Callable[[], VAE], x: jax.Array, key: jax.Array) -> jax.Array:
        posterior = copy().posterior(x)
        if refine is not None:
            loop, key = jax.random.split(key)
            posterior, _ = refine(copy(), x, posterior, loop)

        def more(total: jax.Array, chunk: jax.Array) -> tuple[jax.Array, None]:
            z = posterior.draw(jax.random.fold_in(key, chunk), _SAMPLES)
            weights = log_weights(copy(), x, posterior, z)
            counted = chunk * _SAMPLES + jnp.arange(_SAMPLES) < samples
            weights = jnp.where(counted[None], weights, -jnp.inf)
            return jnp.logaddexp(total, jax.nn.logsumexp(weights, -1)), None

        start = jnp.full(len(x), -jnp.inf)
        return jax.lax.scan(more, start, jnp.arange(chunks))[0] - jnp.log(samples)

    return _in_parts(model, of, x)


def active_units(codes: np.ndarray) -> int:
    """Return the number of latents that vary with the data, for means (images, latent)."""
    return int((codes.var(0) > ACTIVE).sum())


def probe(codes: np.ndarray, labels: Any, test_codes: np.ndarray, test_labels: Any) -> float:
    """Return the test accuracy of logistic regression on standardised codes."""
    from sklearn.linear_model import LogisticRegression

    mean, sd = codes.mean(0), codes.std(0) + 1e-8
    classifier = LogisticRegression(max_iter=300).fit((codes - mean) / sd, labels)
    return float(classifier.score((test_codes - mean) / sd, test_labels))


def amortisation_gap(model: VAE, x: jax.Array, refine: Refinement = LONG) -> float:
    """Return the ELBO gained by refining the encoder's posterior, in nats per example."""

    def gap(copy: Callable[[], VAE], x: jax.Array, key: jax.Array) -> jax.Array:
        model = copy()
        guess, (loop, judge) = model.posterior(x), jax.random.split(key)
        refined, _ = refine(model, x, guess, loop)
        return _elbo(model, x, refined, judge) - _elbo(model, x, guess, judge)

    return float(np.mean(_in_parts(model, gap, x)))


def corrupted(
    model: VAE, x: jax.Array, shape: tuple[int, ...], refine: Refinement
) -> dict[str, dict[str, list[float]]]:
    """Run iterative inference on corrupted images.

    Returns:
        For each corruption, means over the images, each a list of `refine.steps` + 1 numbers that
        starts with the encoder's: "elbo" of the corrupted image in nats, always with the same
        samples; "clean" and "corrupted", the mean squared error per feature between the expected
        image at the posterior mean and the original or the corrupted image.
    """
    graphdef, state = nnx.split(model)
    key, loop, judge = jax.random.split(jax.random.key(0), 3)

    @jax.jit
    def of(state: Any, x: jax.Array, shown: jax.Array) -> Any:
        alike = nnx.merge(graphdef, state, copy=True)
        guess = alike.posterior(shown)
        last, path = refine(alike, shown, guess, loop)
        ends = {"mean": last.mean, "log_variance": last.log_variance}
        points = {name: jnp.concatenate([path[name], end[None]]) for name, end in ends.items()}

        def score(where: dict[str, jax.Array]) -> dict[str, jax.Array]:
            model = nnx.merge(graphdef, state, copy=True)
            posterior = Posterior(**where, clamped=guess.clamped)
            expected = model.expected(model.decode(posterior.mean))
            return {
                "elbo": jnp.mean(_elbo(model, shown, posterior, judge)),
                "clean": jnp.mean(jnp.square(expected - x)),
                "corrupted": jnp.mean(jnp.square(expected - shown)),
            }

        return jax.lax.map(score, points)

    found = {}
    for name, corruption in CORRUPTIONS.items():
        shown = corruption(x.reshape(len(x), *shape), key).reshape(x.shape)
        curves = of(state, x, shown)
        found[name] = {k: np.asarray(v, np.float64).tolist() for k, v in curves.items()}
    return found


def _elbo(model: VAE, x: jax.Array, posterior: Posterior, key: jax.Array) -> jax.Array:
    return terms(model, x, posterior, posterior.draw(key, _DRAWS))["elbo"]


def _encoded(model: VAE, x: jax.Array) -> np.ndarray:
    return _in_parts(model, lambda copy, x, key: copy().encode(x), x)


def _in_parts(model: VAE, fn: Callable[..., jax.Array], x: jax.Array) -> np.ndarray:
    """Call `fn(copy, images, key)` on parts of one size, the last padded with the first images.

    `copy()` returns a copy of the model, as NNX requires in each level of tracing.
    """
    graphdef, state = nnx.split(model)

    @jax.jit
    def part(state: Any, x: jax.Array, key: jax.Array) -> jax.Array:
        return fn(lambda: nnx.merge(graphdef, state, copy=True), x, key)

    size = min(_IMAGES, len(x))
    parts = []
    for i, start in enumerate(range(0, len(x), size)):
        rows = np.arange(start, start + size) % len(x)
        parts.append(np.asarray(part(state, x[rows], jax.random.fold_in(jax.random.key(0), i))))
    return np.concatenate(parts)[: len(x)]


def _warn(found: Mapping[str, Any], latent: int) -> None:
    active = found["test_active_units"]
    if active < 0.1 * latent:
        _log.warning(
            f"the posterior has collapsed: only {active} of {latent} latents vary with the data; a "
            "trainer.kl_warmup, trainer.free_bits or a lower trainer.beta may help"
        )
    first, *_, last = curve = found.get("iterative", {}).get("elbo", [0.0, 0.0])
    if not np.isfinite(last) or last < first:
        _log.warning(
            f"the inner loop diverges: in {len(curve) - 1} steps it takes the ELBO from "
            f"{first:.2f} to {last:.2f} nats; a lower trainer.svi_learning_rate or a "
            "trainer.svi_clip may help"
        )
