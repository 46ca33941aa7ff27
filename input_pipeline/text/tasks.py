"""Generated tasks with exact answers, tested on questions that are not in the training set.

An example is a line feed, a question, "=", and an answer; all examples of a task have the same
length, and the prompt is everything up to the "=".
"""

import math
from collections.abc import Callable

import numpy as np

from grlu.errors import UserError
from input_pipeline.data import Data
from input_pipeline.splits import carve
from input_pipeline.text.files import token_data
from input_pipeline.tokenizers import Characters

# Digits of a question, shape (digits,) -> (question, answer)
Pose = Callable[[np.ndarray], tuple[str, str]]


def _text(digits: np.ndarray) -> str:
    return "".join(map(str, digits))


def copy(digits: np.ndarray) -> tuple[str, str]:
    """Copy the digits."""
    return _text(digits), _text(digits)


def reverse(digits: np.ndarray) -> tuple[str, str]:
    """Reverse the digits."""
    return _text(digits), _text(digits[::-1])


def sort(digits: np.ndarray) -> tuple[str, str]:
    """Sort the digits in ascending order."""
    return _text(digits), _text(np.sort(digits))


def addition(digits: np.ndarray) -> tuple[str, str]:
    """Add two numbers of equal length; the sum has one more digit."""
    half = len(digits) // 2
    one, two = _text(digits[:half]), _text(digits[half:])
    return f"{one}+{two}", str(int(one) + int(two)).zfill(half + 1)


def parity(digits: np.ndarray) -> tuple[str, str]:
    """Compute the parity of the bits: 1 if the number of ones is odd, else 0."""
    return _text(digits), str(int(digits.sum()) % 2)


def task_set(
    name: str,
    pose: Pose,
    digits: int,
    *,
    base: int = 10,
    numbers: int = 1,
) -> Callable[..., Data]:
    """Return the loader of a task.

    Args:
        name: name of the data set.
        pose: maps digits to question and answer.
        digits: default number of digits of each number.
        base: base of the digits.
        numbers: number of numbers in a question.
    """
    default_digits = digits

    def load(
        *,
        data_dir: str | None = None,
        digits: int = default_digits,
        examples: int = 10_000,
        validation: int | float = 0.05,
        test: int | float = 0.1,
        split_seed: int = 0,
        subset: int | None = None,
    ) -> Data:
        del data_dir  # Accepted for uniformity with other data sets.
        for option, value in {"digits": digits, "examples": examples}.items():
            if isinstance(value, bool) or value < 1:
                raise UserError(f"dataset.{option} must be at least 1, not {value!r}.")
        places = digits * numbers
        if places * math.log2(base) > 62:
            raise UserError(f"dataset.digits={digits} is too large: questions exceed 62 bits.")
        # Questions are distinct random numbers; if too few exist, all are used.
        count = min(examples, base**places)
        chosen = np.random.default_rng(0).choice(base**places, count, replace=False)
        powers = base ** np.arange(places - 1, -1, -1, dtype=np.int64)
        posed = [pose(number // powers % base) for number in chosen]
        tokenizer = Characters("\n=" + "+" * (numbers > 1) + "0123456789"[:base])
        tokens = np.stack([tokenizer.encode(f"\n{q}={a}") for q, a in posed]).astype(np.uint8)
        rest, tested = carve(
            {"tokens": tokens}, validation=test, split_seed=0, subset=None, option="test"
        )
        train, held_out = carve(rest, validation=validation, split_seed=split_seed, subset=subset)
        if tested is None:
            raise UserError("dataset.test must leave some examples for the test split: it is 0.")
        return token_data(name, train, held_out, tested, tokenizer, len(posed[0][0]) + 2)

    load.__doc__ = f"""Task: {(pose.__doc__ or "").strip()}

        {default_digits} digits by default. The test set is the same for every `split_seed`.

        Args:
            data_dir: ignored; tasks are generated.
            digits: number of digits of each number in a question.
            examples: maximum number of questions, all of them different.
            validation: size of the validation set, as a number or a fraction.
            test: size of the test set, as a number or a fraction.
            split_seed: seed of the validation set and of the subset.
            subset: number of training examples, or None for all.
        """
    return load


TASKS = {
    "addition": task_set("addition", addition, 2, numbers=2),
    "copy": task_set("copy", copy, 4),
    "parity": task_set("parity", parity, 8, base=2),
    "reverse": task_set("reverse", reverse, 4),
    "sort": task_set("sort", sort, 4),
}
