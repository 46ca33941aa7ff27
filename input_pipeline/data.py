"""A data set as arrays on the host, and the function that makes a batch a model's input."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from input_pipeline.binarize import (
    Binarization,
    drawn_anew,
    drawn_once,
    require_binarization,
)
from input_pipeline.classes import few, keep, renumbered
from input_pipeline.on_disk import OnDisk
from input_pipeline.preprocess import Moments, preprocess_for
from input_pipeline.splits import Examples, carve
from input_pipeline.tokenizers import Tokenizer


@dataclass(frozen=True, eq=False)
class Data:
    """The splits of one data set, stored as read: arrays with one row an example.

    Images: `image` (N, H, W, C) uint8 and `label` (N,) int32. Text and tasks: `tokens` (N, T + 1),
    the T of `example_shape` and the one that follows; the first `prompt` of them are given, those
    after are what a model is to say.

    `preprocess` takes a batch of any split, in numpy or in JAX, inside `jit` or not, and returns it
    with `image` as float32, normalised, of shape `(B, *example_shape)`; or with `tokens` as int32
    and `scored` (B, T), 1 for each of the last T tokens that is to be said and 0 for the others.
    Preferences, of which `pairs` tells, are `input_pipeline.preferences`'s.
    `validation` is None where training uses every example.

    `augment` makes a training batch of a preprocessed one, anew each time, from a key; None
    leaves it as it is.

    `num_classes` is the number of labels, or of different tokens, those of `tokenizer`.

    `by_seed`: whether all arrays have a leading axis more, of a set for each seed of a run: the
    features of several seeds' models.
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
        """The number of training examples."""
        return next(iter(self.train.values())).shape[1 if self.by_seed else 0]

    @property
    def streamed(self) -> bool:
        """Whether the data stay on the disk, and come into memory in parts."""
        return any(isinstance(array, OnDisk) for array in self.train.values())


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
    classes: tuple[int, ...] | None = None,
    renumber: bool = False,
    per_class: int | None = None,
    binarize: Binarization | None = None,
) -> Data:
    """Return the `Data` of images with pixels from 0 to `maximum`, under a loader's options.

    What `normalize` computes, it computes from all of `train`, before the validation set
    and the subset are taken: runs on different subsets then see the same images. `classes` are
    the labels to keep in every split, after the validation set and the subset are taken, so that
    no run trains on what another one is validated on; labels stay as they are, and the classes
    as many, unless `renumber` asks for 0, 1, ... in the order of `classes`. `per_class` is the
    number of training examples to keep of each class. `binarize` draws black and white pixels
    with the grey ones as probabilities: "static" once, "dynamic" anew each time in training.

    Raises:
        UserError: for an option of the wrong type or size.
    """
    require_binarization(binarize, normalize)
    preprocess = preprocess_for(
        train["image"], normalize=normalize, flatten=flatten, maximum=maximum, moments=moments
    )
    shape = train["image"].shape[1:]
    sizes: Any = {"validation": validation, "split_seed": split_seed, "subset": subset}
    grey = train
    if binarize is not None:
        train, test = drawn_once(train, maximum, 0), drawn_once(test, maximum, 1)
    train, held_out = carve(train, **sizes)
    if binarize == "dynamic":
        train, _ = carve(grey, **sizes)
    if classes is not None:
        present = range(num_classes)
        train, test = keep(train, classes, present), keep(test, classes, present)
        if held_out is not None:
            held_out = keep(held_out, classes, present)
    if per_class is not None:
        train = few(train, per_class, split_seed)
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
        augment=drawn_anew if binarize == "dynamic" else None,
    )
