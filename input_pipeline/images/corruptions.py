"""Corruptions of images: blur, noise and hidden parts."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

# (images (B, height, width, channels), key) -> images
Corruption = Callable[[jax.Array, jax.Array], jax.Array]


def identity(images: jax.Array, key: jax.Array) -> jax.Array:
    """Return the images themselves, for comparison."""
    return images


def blur(images: jax.Array, key: jax.Array, *, size: int = 5, sd: float = 6.0) -> jax.Array:
    """Blur by a Gaussian of `sd` pixels, cut to `size` pixels; edges are repeated."""
    window = jnp.exp(-0.5 * jnp.square((jnp.arange(size) - size // 2) / sd))
    window = window / jnp.sum(window)
    for axis in (1, 2):
        length, half = images.shape[axis], size // 2
        widths = [(half, half) if a == axis else (0, 0) for a in range(4)]
        wide = jnp.pad(images, widths, mode="edge")
        shifted = (jax.lax.slice_in_dim(wide, i, i + length, axis=axis) for i in range(size))
        first, *others = (weight * image for weight, image in zip(window, shifted, strict=True))
        images = sum(others, first)
    return images


def white_noise(images: jax.Array, key: jax.Array, *, sd: float = 0.6) -> jax.Array:
    """Add Gaussian noise, `sd` in units of the range of values, and clip to that range."""
    low, high = jnp.min(images), jnp.max(images)
    noise = jax.random.normal(key, images.shape)
    return jnp.clip(images + sd * (high - low) * noise, low, high)


def salt_and_pepper(images: jax.Array, key: jax.Array, *, fraction: float = 0.6) -> jax.Array:
    """Set a fraction of the pixels to the lowest or the highest value, half each."""
    which, how = jax.random.split(key)
    pixels = (*images.shape[:3], 1)
    chosen = jax.random.bernoulli(which, fraction, pixels)
    salt = jax.random.bernoulli(how, 0.5, pixels)
    ends = jnp.where(salt, jnp.max(images), jnp.min(images))
    return jnp.where(chosen, ends, images)


def cutout(images: jax.Array, key: jax.Array, *, fraction: float = 0.4) -> jax.Array:
    """Set a random rectangle of `fraction` of the height and width to the lowest value."""
    batch, height, width, _ = images.shape
    down, along = jax.random.split(key)
    inside = []
    for axis, length, own in ((1, height, down), (2, width, along)):
        size = max(1, round(fraction * length))
        start = jax.random.randint(own, (batch, 1), 0, length - size + 1)
        place = jnp.arange(length)[None]
        covered = (place >= start) & (place < start + size)
        inside.append(covered.reshape(batch, *(length if a == axis else 1 for a in (1, 2)), 1))
    return jnp.where(inside[0] & inside[1], jnp.min(images), images)


def occlusion(images: jax.Array, key: jax.Array) -> jax.Array:
    """Set the lower half of the images to the lowest value."""
    height = images.shape[1]
    hidden = (jnp.arange(height) >= height // 2).reshape(1, height, 1, 1)
    return jnp.where(hidden, jnp.min(images), images)


# Add your own; `grlu evaluate` and the report use all of them.
CORRUPTIONS: dict[str, Corruption] = {
    "identity": identity,
    "blur": blur,
    "white_noise": white_noise,
    "salt_and_pepper": salt_and_pepper,
    "cutout": cutout,
    "occlusion": occlusion,
}
