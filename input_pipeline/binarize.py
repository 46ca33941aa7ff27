"""Binarisation of grey pixels by sampling, as in the literature on binary MNIST.

Dynamic: training images are sampled again in each batch (Salakhutdinov & Murray 2008; Burda et al.
2016). Static: they are sampled only once (Larochelle & Murray 2011). Validation and test images
are always static, the same for all runs.
"""

from typing import Any, Literal

import numpy as np

from grlu.errors import UserError
from input_pipeline.splits import Examples

Binarization = Literal["dynamic", "static"]


def require_binarization(binarize: Any, normalize: str) -> None:
    """Check that the binarisation is known and that pixels are probabilities.

    Raises:
        UserError: if `binarize` is unknown, or `normalize` does not scale to [0, 1].
    """
    if binarize not in (None, "dynamic", "static"):
        raise UserError(f"dataset.binarize must be dynamic, static or null, not {binarize!r}.")
    if binarize is not None and normalize != "unit":
        raise UserError(
            f"dataset.binarize={binarize} needs pixels from 0 to 1: set dataset.normalize=unit."
        )


def binarize_static(examples: Examples, maximum: float, seed: int) -> Examples:
    """Sample stored images to pixels 0 or `maximum`, with probability pixel / maximum."""
    images = examples["image"]
    generator = np.random.default_rng(seed)
    noise = generator.integers(0, int(maximum), images.shape, dtype=np.uint8)
    return {**examples, "image": np.where(noise < images, np.uint8(maximum), np.uint8(0))}


def binarize_dynamic(batch: dict[str, Any], key: Any) -> dict[str, Any]:
    """Sample a batch's pixels in [0, 1] to 0 or 1, with 16-bit noise; works under `jit`."""
    import jax
    import jax.numpy as jnp

    image = batch["image"]
    noise = jax.random.bits(key, image.shape, jnp.uint16).astype(jnp.float32)
    return {**batch, "image": (noise < 2**16 * image).astype(image.dtype)}
