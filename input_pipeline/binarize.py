"""Grey pixels as probabilities of black and white ones, as in the literature on binary MNIST.

Dynamic: training images are drawn anew each time they are seen (Salakhutdinov & Murray 2008; Burda
et al. 2016). Static: they are drawn once (Larochelle & Murray 2011). What a run is validated and
tested on is drawn once in either case, the same for all runs.
"""

from typing import Any, Literal

import numpy as np

from grlu.errors import UserError
from input_pipeline.splits import Examples

Binarization = Literal["dynamic", "static"]


def require_binarization(binarize: Any, normalize: str) -> None:
    """Refuses what is no binarisation, and pixels that are then no probabilities.

    Raises:
        UserError: for another value, or a `normalize` that does not scale to [0, 1].
    """
    if binarize not in (None, "dynamic", "static"):
        raise UserError(f"dataset.binarize must be dynamic, static or null, not {binarize!r}.")
    if binarize is not None and normalize != "unit":
        raise UserError(
            f"dataset.binarize={binarize} needs pixels from 0 to 1: set dataset.normalize=unit."
        )


def drawn_once(examples: Examples, maximum: float, seed: int) -> Examples:
    """Stored images whose pixels are 0 or `maximum`, with their shares of it as probabilities."""
    images = examples["image"]
    generator = np.random.default_rng(seed)
    below = generator.integers(0, int(maximum), images.shape, dtype=np.uint8)
    return {**examples, "image": np.where(below < images, np.uint8(maximum), np.uint8(0))}


def drawn_anew(batch: dict[str, Any], key: Any) -> dict[str, Any]:
    """A batch whose images, of pixels in [0, 1], are drawn as 0 or 1; to 16 bits, under `jit`."""
    import jax
    import jax.numpy as jnp

    image = batch["image"]
    below = jax.random.bits(key, image.shape, jnp.uint16).astype(jnp.float32)
    return {**batch, "image": (below < 2**16 * image).astype(image.dtype)}
