"""Data sets as arrays on the host, with the preprocessing of a batch to model input."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from grlu.errors import UserError
from input_pipeline.augment import augmentation
from input_pipeline.binarize import (
    Binarization,
    binarize_dynamic,
    binarize_static,
    require_binarization,
)
from input_pipeline.classes import keep, renumbered, take_per_class
from input_pipeline.preprocess import Moments, preprocess_for
from input_pipeline.splits import Examples, carve
from input_pipeline.storage.on_disk import OnDisk
from input_pipeline.tokenizers import Tokenizer


@dataclass(frozen=True, eq=False)
class Data:
    """Splits of one data set, stored as read: arrays with one row per example.

    Images have `image` (N, H, W, C) uint8 and `label` (N,) int32. Text and tasks have `tokens`
    (N, T + 1), one more than the T of `example_shape`: `prompt` tokens of prompt, then the
    completion. For preference pairs see `input_pipeline.text.preferences`.

    Attributes:
        name: name of the data set.
        train: training split.
        validation: validation split, or None if training uses every example.
        test: test split.
        preprocess: maps a batch of any split, in numpy or JAX, also under `jit`, to one with
            `image` as normalised float32 of shape (B, *example_shape), or with `tokens` as int32
            and `scored` (B, T), 1 for each of the last T tokens that belongs to the completion.
        example_shape: shape of one preprocessed example.
        num_classes: number of labels, or size of the tokenizer's vocabulary.
        by_seed: True if all arrays have one more leading axis, with one set per seed of a run, like
            the features of several seeds' models.
        augment: maps a preprocessed training batch and a key to an augmented batch, or None.
        tokenizer: tokenizer of a text, or None.
        prompt: number of prompt tokens.
        pairs: True for preference pairs.
    """

    name: str
    train: Examples
    validation: Examples | None
    test: Examples
    preprocess: Callable[[dict[str, Any]], dict[str, Any]]
    example_shape: tuple[int, ...]
    num_classes: int
    by_seed: bool = False
    augment: Callable[[dict[str, Any], Any], dict[str, Any]] | None = None
    tokenizer: Tokenizer | None = None
    prompt: int = 0
    pairs: bool = False

    @property
    def examples(self) -> int:
        """Return the number of training examples."""
        return next(iter(self.train.values())).shape[1 if self.by_seed else 0]

    @property
    def streamed(self) -> bool:
        """Return True if the data stay on disk and are read in parts."""
        return any(isinstance(array, OnDisk) for array in self.train.values())


def image_data(
    name: str,
    train: Examples,
    test: Examples,
    num_classes: int,
    *,
    validation: int | float,
    split_seed: int = 0,
    subset: int | None = None,
    normalize: str = "standard",
    flatten: bool = True,
    maximum: float = 255.0,
    moments: Moments | None = None,
    classes: tuple[int, ...] | None = None,
    renumber: bool = False,
    per_class: int | None = None,
    binarize: Binarization | None = None,
    crop: int = 0,
    flip: bool = False,
    cutout: int = 0,
) -> Data:
    """Return the `Data` of images with pixels from 0 to `maximum`, with a loader's options.

    Args:
        name: name of the data set.
        train: training examples.
        test: test examples.
        num_classes: number of classes.
        validation: size of the validation set, as a number or a fraction of `train`.
        split_seed: seed of the validation set and of the subset.
        subset: number of training examples, or None for all.
        normalize: "standard", "centered", "unit" or "none". Statistics are those of all of `train`,
            before the validation set and the subset are taken, so that runs on different subsets
            see the same images.
        flatten: flatten each image.
        maximum: largest pixel value.
        moments: published mean and standard deviation per channel, or None to compute them.
        classes: labels to keep in every split, or None for all. They are selected after the
            validation set and the subset, so that no run trains on another run's validation
            examples.
        renumber: renumber the labels 0, 1, ... in the order of `classes`; otherwise labels and
            `num_classes` do not change.
        per_class: number of training examples to keep per class, or None for all.
        binarize: sample black and white pixels with the grey values as probabilities: "static"
            once, "dynamic" anew in each training batch.
        crop: largest random shift of a training image in pixels.
        flip: mirror training images at random.
        cutout: side of a random black square in each training image, in pixels.

    Raises:
        UserError: if an option has the wrong type or size.
    """
    require_binarization(binarize, normalize)
    preprocess = preprocess_for(
        train["image"], normalize=normalize, flatten=flatten, maximum=maximum, moments=moments
    )
    shape = train["image"].shape[1:]
    augment: Any = augmentation(crop, flip, cutout, preprocess, shape)
    if binarize is not None:
        if augment is not None:
            raise UserError(
                "dataset.crop, flip and cutout change grey images: set dataset.binarize=null."
            )
        augment = binarize_dynamic if binarize == "dynamic" else None
    sizes: Any = {"validation": validation, "split_seed": split_seed, "subset": subset}
    grey = train
    if binarize is not None:
        train, test = binarize_static(train, maximum, 0), binarize_static(test, maximum, 1)
    train, held_out = carve(train, **sizes)
    if binarize == "dynamic":
        train, _ = carve(grey, **sizes)
    if classes is not None:
        present = range(num_classes)
        train, test = keep(train, classes, present), keep(test, classes, present)
        if held_out is not None:
            held_out = keep(held_out, classes, present)
    if per_class is not None:
        train = take_per_class(train, per_class, split_seed)
    if renumber and classes is not None:
        num_classes = len(classes)
        train, test = renumbered(train, classes), renumbered(test, classes)
        held_out = None if held_out is None else renumbered(held_out, classes)
    return Data(
        name=name,
        train=train,
        validation=held_out,
        test=test,
        preprocess=preprocess,
        example_shape=(math.prod(shape),) if flatten else shape,
        num_classes=num_classes,
        augment=augment,
    )
