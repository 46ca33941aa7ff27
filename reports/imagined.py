"""Images from a variational autoencoder: samples, traversals, interpolation, inference by step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trainers.evaluation import generative
from trainers.gradient.settings import SVI

SAMPLES, TRAVERSED, LINES, FILMED, POINTS = (5, 10), 6, 5, 5, 9


@dataclasses.dataclass(frozen=True, eq=False)
class Imagined:
    """Grids of images, each (rows, columns, height, width, depth).

    Attributes:
        samples: expected images at samples of the prior.
        traversals: one row per latent, the most active first, from -3 to 3; all other latents keep
            the values of one image.
        units: indices of these latents.
        lines: one row per pair of test images: the first, points between their codes, the second.
        films: one row per test image: the image, then expected images before and during inference.
        moments: steps of inference that the films show.
        curves: inference on corrupted images, from `trainers.evaluation.generative.corrupted`.
    """

    samples: np.ndarray
    traversals: np.ndarray
    units: tuple[int, ...]
    lines: np.ndarray
    films: np.ndarray
    moments: tuple[int, ...]
    curves: dict[str, dict[str, list[float]]]


def imagined(model: Any, settings: Any, x: jax.Array, shape: tuple[int, ...]) -> Imagined:
    """Return images from a `models.VAE`.

    Args:
        model: the model, in evaluation mode.
        settings: settings of its trainer.
        x: preprocessed test images, at least one.
        shape: shape of an image, (height, width, depth).
    """
    refine = settings.refinement() if isinstance(settings, SVI) else generative.SHORT
    rows, columns = SAMPLES
    samples = model.sample(jax.random.key(0), rows * columns)

    codes = model.encode(x)
    order = np.argsort(-np.asarray(jnp.var(codes, axis=0)), kind="stable")[:TRAVERSED]
    at = jnp.broadcast_to(codes[:1, None], (len(order), POINTS, model.latent))
    swept = jnp.linspace(-3, 3, POINTS)
    for row, unit in enumerate(order):
        at = at.at[row, :, int(unit)].set(swept)
    traversals = model.expected(model.decode(at))

    pairs = min(LINES, len(x) // 2) or 1
    one, other = x[:pairs], x[-pairs:]
    between = model.interpolate(one, other, POINTS)
    lines = jnp.concatenate([one[:, None], between, other[:, None]], axis=1)

    few = x[:FILMED]
    guess = model.posterior(few)
    last, path = refine(model, few, guess, jax.random.key(1))
    whole = jnp.concatenate([path["mean"], last.mean[None]])
    moments = tuple(sorted({round(m) for m in np.geomspace(1, refine.steps, 6)} | {0}))
    shown = model.expected(model.decode(whole[np.array(moments)])).swapaxes(0, 1)
    films = jnp.concatenate([few[:, None], shown], axis=1)

    def grid(images: jax.Array, *lead: int) -> np.ndarray:
        return np.asarray(images).reshape(*lead, *shape)

    return Imagined(
        grid(samples, rows, columns),
        grid(traversals, len(order), POINTS),
        tuple(int(unit) for unit in order),
        grid(lines, pairs, POINTS + 2),
        grid(films, len(few), len(moments) + 1),
        moments,
        generative.corrupted(model, x, shape, refine),
    )
