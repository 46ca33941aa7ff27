"""Augmentation of training images in the compiled step: random crop, flip and cutout."""

import dataclasses
from typing import Any

import numpy as np

from grlu.errors import UserError
from input_pipeline.preprocess import Preprocess


def augmentation(
    crop: int, flip: bool, cutout: int, preprocess: Preprocess, shape: tuple[int, int, int]
) -> "Augmentation | None":
    """Return the augmentation of a data set, or None without any; see `Augmentation`."""
    found = Augmentation(crop, flip, cutout, preprocess, shape)
    return found if crop or flip or cutout else None


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random changes of preprocessed images; pixels from outside an image are black.

    Attributes:
        crop: largest shift p in pixels: images are padded by p on each side, and cropped at a
            random place.
        flip: mirror half of the images from left to right.
        cutout: side of a black square at a random place, in pixels, cut off at the borders
            (DeVries & Taylor 2017, arXiv:1708.04552); 0 for none.
        preprocess: the preprocessing of the images.
        shape: shape (H, W, C) of one image.

    Raises:
        UserError: if an option has the wrong type or size.
    """

    crop: int
    flip: bool
    cutout: int
    preprocess: Preprocess
    shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        side = min(self.shape[:2])
        for name, value in (("crop", self.crop), ("cutout", self.cutout)):
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= side:
                raise UserError(
                    f"dataset.{name} must be a number of pixels from 0 to {side}, not {value!r}."
                )
        if not isinstance(self.flip, bool):
            raise UserError(f"dataset.flip must be true or false, not {self.flip!r}.")

    def __call__(self, batch: dict[str, Any], key: Any) -> dict[str, Any]:
        """Return the batch with its preprocessed `image` (B, ...) augmented."""
        import jax
        import jax.numpy as jnp

        image = batch["image"]
        black = self.preprocess({"image": np.zeros((1, *self.shape))})["image"]
        pixels = (image - black).reshape(-1, *self.shape)
        keys = jax.random.split(key, len(pixels))
        pixels = jax.vmap(self._one)(pixels, keys)
        return {**batch, "image": pixels.reshape(image.shape).astype(jnp.float32) + black}

    def _one(self, image: Any, key: Any) -> Any:
        import jax
        import jax.numpy as jnp

        height, width, _ = self.shape
        for_crop, for_flip, for_cutout = jax.random.split(key, 3)
        if self.crop:
            pad = (self.crop, self.crop)
            row, column = jax.random.randint(for_crop, (2,), 0, 2 * self.crop + 1)
            padded = jnp.pad(image, (pad, pad, (0, 0)))
            image = jax.lax.dynamic_slice(padded, (row, column, 0), self.shape)
        if self.flip:
            image = jnp.where(jax.random.bernoulli(for_flip), image[:, ::-1], image)
        if self.cutout:
            row, column = jax.random.randint(
                for_cutout, (2,), 0, jnp.array([height, width], jnp.int32)
            )
            near = self._near(row, height)[:, None] & self._near(column, width)[None]
            image = jnp.where(near[:, :, None], 0.0, image)
        return image

    def _near(self, centre: Any, size: int) -> Any:
        """Return the mask of the `cutout` positions around a centre."""
        import jax.numpy as jnp

        first = centre - self.cutout // 2
        place = jnp.arange(size)
        return (place >= first) & (place < first + self.cutout)
