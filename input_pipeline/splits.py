"""Split of the training examples into a validation set and a training subset."""

from numbers import Integral, Real

import numpy as np

from grlu.errors import UserError

Examples = dict[str, np.ndarray]


def carve(
    examples: Examples,
    *,
    validation: int | float,
    split_seed: int,
    subset: int | None,
    option: str = "validation",
) -> tuple[Examples, Examples | None]:
    """Split examples into (train, validation): disjoint, each in the stored order.

    One permutation by `split_seed` determines both: its first `validation` entries are the
    validation set and the next `subset` entries the training set, so that a smaller subset lies
    within every larger one. With `validation=0` and no subset the arrays are returned unchanged.
    `option` names the size of the held-out part in errors.

    Raises:
        UserError: if a size or seed has the wrong type, is negative, or exceeds the data.
    """
    total = len(next(iter(examples.values())))
    held_out = _held_out_size(validation, total, option)
    kept = _subset_size(subset, total - held_out)
    if isinstance(split_seed, bool) or not isinstance(split_seed, Integral) or split_seed < 0:
        raise UserError(f"dataset.split_seed must be an integer of at least 0, not {split_seed!r}.")
    if kept == total:
        return examples, None
    order = np.random.default_rng(int(split_seed)).permutation(total)
    train = _take(examples, order[held_out : held_out + kept])
    return train, _take(examples, order[:held_out]) if held_out else None


def _take(examples: Examples, indices: np.ndarray) -> Examples:
    indices = np.sort(indices)
    return {key: array[indices] for key, array in examples.items()}


def _held_out_size(validation: int | float, total: int, option: str) -> int:
    whole = isinstance(validation, Integral) or (
        isinstance(validation, Real) and float(validation).is_integer()
    )
    fraction = isinstance(validation, Real) and 0 < validation < 1
    if isinstance(validation, bool) or not (whole or fraction) or validation < 0:
        raise UserError(
            f"dataset.{option} must be a number of examples (0 trains on all of them) or a"
            f" fraction between 0 and 1, not {validation!r}."
        )
    size = round(validation * total) if fraction else int(validation)
    if size >= total:
        raise UserError(
            f"dataset.{option}={validation!r} leaves nothing to train on: it must be smaller than"
            f" the {total} examples of the training set."
        )
    if fraction and size == 0:
        raise UserError(
            f"dataset.{option}={validation!r} of {total} examples selects none: use a larger"
            " fraction, or 0 to train on all of them."
        )
    return size


def _subset_size(subset: int | None, available: int) -> int:
    if subset is None:
        return available
    if isinstance(subset, bool) or not isinstance(subset, Integral) or subset < 1:
        raise UserError(
            "dataset.subset must be a number of training examples of at least 1, or none for all of"
            f" them, not {subset!r}."
        )
    if subset > available:
        raise UserError(
            f"dataset.subset={subset} is more than the {available} training examples that the"
            " validation set leaves."
        )
    return int(subset)
