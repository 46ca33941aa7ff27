"""Selection of classes and of a number of examples per class."""

from collections.abc import Collection
from numbers import Integral

import numpy as np

from grlu.errors import UserError
from input_pipeline.splits import Examples


def keep(examples: Examples, classes: tuple[int, ...], present: Collection[int]) -> Examples:
    """Return the examples with one of these labels, in the stored order.

    Raises:
        UserError: if a label is not among those of the data set, `present`.
    """
    invalid = isinstance(classes, str) or len(set(classes)) != len(classes) or not classes
    if invalid or any(isinstance(c, bool) or c not in present for c in classes):
        raise UserError(
            f"dataset.classes must be different labels of the data set, from {min(present)} to"
            f" {max(present)}, not {classes!r}."
        )
    chosen = np.isin(examples["label"], classes)
    if not chosen.any():
        raise UserError(f"dataset.classes={classes!r} leaves a split without examples.")
    return {key: array[chosen] for key, array in examples.items()}


def take_per_class(examples: Examples, per_class: int, seed: int) -> Examples:
    """Return `per_class` random examples of each class; smaller selections are subsets of larger.

    Raises:
        UserError: if a class has fewer examples.
    """
    if isinstance(per_class, bool) or not isinstance(per_class, Integral) or per_class < 1:
        raise UserError(
            f"dataset.per_class must be at least 1, or none for all examples, not {per_class!r}."
        )
    labels = examples["label"]
    order = np.random.default_rng(int(seed)).permutation(len(labels))
    chosen = []
    for label in np.unique(labels):
        of_class = order[labels[order] == label][:per_class]
        if len(of_class) < per_class:
            raise UserError(
                f"dataset.per_class={per_class} is more than the {len(of_class)} training examples"
                f" of class {label}."
            )
        chosen.append(of_class)
    rows = np.sort(np.concatenate(chosen))
    return {key: array[rows] for key, array in examples.items()}


def renumbered(examples: Examples, classes: tuple[int, ...]) -> Examples:
    """Return the examples with labels 0, 1, ... in the order of `classes`."""
    places = np.array([classes.index(label) for label in examples["label"].tolist()], np.int32)
    return {**examples, "label": places}
