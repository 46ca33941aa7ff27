"""A data set as arrays on the host, and the function that makes a batch a model's input."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from input_pipeline.preprocess import Moments, preprocess_for
from input_pipeline.splits import Examples, carve


@dataclass(frozen=True, eq=False)
class Data:
    """The splits of one data set, stored as read: `image` (N, H, W, C) uint8, `label` (N,) int32.

    `preprocess` takes a batch of any split, in numpy or in JAX, inside `jit` or not, and returns it
    with `image` as float32, normalised, of shape `(B, *example_shape)`.
    `validation` is None where training uses every example.
    """

    name: str
    train: Examples
    validation: Examples | None
    test: Examples
    preprocess: Callable[[dict[str, Any]], dict[str, Any]]
    example_shape: tuple[int, ...]
    num_classes: int


def image_data(
    name: str,
    train: Examples,
    test: Examples,
    num_classes: int,
    *,
    validation: int | float,
    split_seed: int,
    subset: int | None,
    normalize: str,
    flatten: bool,
    maximum: float = 255.0,
    moments: Moments | None = None,
) -> Data:
    """Return the `Data` of images with pixels from 0 to `maximum`, under a loader's options.

    What `normalize` computes, it computes from all of `train`, before the validation set
    and the subset are taken: runs on different subsets then see the same images.

    Raises:
        UserError: for an option of the wrong type or size.
    """
    preprocess = preprocess_for(
        train["image"], normalize=normalize, flatten=flatten, maximum=maximum, moments=moments
    )
    shape = train["image"].shape[1:]
    train, held_out = carve(train, validation=validation, split_seed=split_seed, subset=subset)
    return Data(
        name=name,
        train=train,
        validation=held_out,
        test=test,
        preprocess=preprocess,
        example_shape=(math.prod(shape),) if flatten else shape,
        num_classes=num_classes,
    )
