"""Preprocessing of stored pixels: scaling, standardisation, flattening."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from grlu.errors import UserError

NORMALIZATIONS = ("standard", "centered", "unit", "none")

# Mean and standard deviation of each channel, for pixels scaled to [0, 1].
Moments = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Preprocess:
    """Affine map `(pixel / maximum - mean) / std` in float32; hashable, and pure under `jit`.

    Attributes:
        maximum: largest pixel value.
        mean: one number per channel, or per pixel and channel (row by row).
        std: one number per channel.
        flatten: flatten each image.
    """

    maximum: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flatten: bool

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return `batch` with `image` (B, H, W, C) as float32, or (B, H*W*C) if flattened."""
        import jax.numpy as jnp

        image = jnp.asarray(batch["image"], jnp.float32)
        std = jnp.asarray(self.std, jnp.float32).reshape(1, 1, 1, -1)
        mean = jnp.asarray(self.mean, jnp.float32)
        by_channel = len(self.mean) == len(self.std)
        mean = mean.reshape(std.shape if by_channel else (1, *image.shape[1:]))
        image = (image / self.maximum - mean) / std
        return {**batch, "image": image.reshape(len(image), -1) if self.flatten else image}


def preprocess_for(
    images: np.ndarray,
    *,
    normalize: str,
    flatten: bool,
    maximum: float = 255.0,
    moments: Moments | None = None,
) -> Preprocess:
    """Return the preprocessing of a data set with training images `images` (N, H, W, C).

    `standard` uses the published `moments`, or else those of `images`; `centered` subtracts the
    mean image instead of the mean pixel, which removes what all images share; `unit` scales to
    [0, 1]; `none` keeps the stored values.

    Raises:
        UserError: if `normalize` is unknown, or `flatten` is not true or false.
    """
    if normalize not in NORMALIZATIONS:
        raise UserError(
            f"dataset.normalize must be one of {', '.join(NORMALIZATIONS)}, not {normalize!r}."
        )
    if not isinstance(flatten, bool):
        raise UserError(f"dataset.flatten must be true or false, not {flatten!r}.")
    if normalize in ("standard", "centered"):
        mean, std = moments or channel_moments(images, maximum)
        mean = mean_image(images, maximum) if normalize == "centered" else mean
        return Preprocess(maximum, mean, std, flatten)
    return Preprocess(maximum if normalize == "unit" else 1.0, (0.0,), (1.0,), flatten)


def mean_image(images: np.ndarray, maximum: float) -> tuple[float, ...]:
    """Return the mean image of `images / maximum` (N, H, W, C), flat, summed as integers."""
    total = np.zeros(images.shape[1:], np.int64)
    for start in range(0, len(images), 1000):
        total += images[start : start + 1000].sum(0, dtype=np.int64)
    return tuple((total / (len(images) * maximum)).ravel().tolist())


def channel_moments(images: np.ndarray, maximum: float) -> Moments:
    """Return the mean and standard deviation of each channel of `images / maximum`.

    Sums integers, a thousand images at a time: exact, without a float copy of the data set.
    """
    channels = images.shape[-1]
    total, squares = np.zeros(channels, np.int64), np.zeros(channels, np.int64)
    for start in range(0, len(images), 1000):
        pixels = images[start : start + 1000].reshape(-1, channels).astype(np.int64)
        total += pixels.sum(0)
        squares += (pixels**2).sum(0)
    count = images.size // channels
    mean = [int(t) / count for t in total]
    # For a constant channel, a std of 1 after scaling gives zeros instead of nan.
    std = [
        math.sqrt(int(s) * count - int(t) ** 2) / count or maximum
        for s, t in zip(squares, total, strict=True)
    ]
    return tuple(m / maximum for m in mean), tuple(s / maximum for s in std)
