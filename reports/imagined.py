"""What a variational autoencoder imagines: samples, traversals, lines, and inference in steps."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trainers import generative
from trainers.svi import SVI

SAMPLES, TRAVERSED, LINES, FILMED, POINTS = (5, 10), 6, 5, 5, 9


@dataclasses.dataclass(frozen=True, eq=False)
class Imagined:
    """Images as grids, each (rows, columns, height, width, depth).

    Attributes:
        samples: expected images at draws of the prior.
        traversals: a row a latent, the most active first: from -3 to 3, the others those of an
            image.
        units: the numbers of these latents.
        lines: a row a pair of test images: the first, the points between their codes, the second.
        films: a row a test image: itself, and what is expected before and during inference.
        moments: the steps of inference that the films show.
        curves: what corrupted images become by inference (`trainers.generative.corrupted`).
    """

    samples: np.ndarray
    traversals: np.ndarray
    units: tuple[int, ...]
    lines: np.ndarray
    films: np.ndarray
    moments: tuple[int, ...]
    curves: dict[str, dict[str, list[float]]]


def imagined(model: Any, settings: Any, x: jax.Array, shape: tuple[int, ...]) -> Imagined:
    """Asks a `models.VAE`.

    Args:
        model: in evaluation mode.
        settings: those of its trainer.
        x: test images as the model sees them, at least one.
        shape: of an image, (height, width, depth).
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
