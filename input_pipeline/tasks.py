"""Generated tasks with one right answer each: questions that training has never seen are the test.

An example is a line feed, which begins it, a question, "=", and the answer, of one length each; the
model is given everything up to the "=".
"""

import math
from collections.abc import Callable

import numpy as np

from grlu.errors import UserError
from input_pipeline.data import Data
from input_pipeline.splits import carve
from input_pipeline.text import token_data
from input_pipeline.tokenizers import Characters

# From the digits of a question, (N, digits), to the text of its question and of its answer.
Pose = Callable[[np.ndarray], tuple[str, str]]


def _text(digits: np.ndarray) -> str:
    return "".join(map(str, digits))


def copy(digits: np.ndarray) -> tuple[str, str]:
    """The same digits."""
    return _text(digits), _text(digits)


def reverse(digits: np.ndarray) -> tuple[str, str]:
    """The digits from the last to the first."""
    return _text(digits), _text(digits[::-1])


def sort(digits: np.ndarray) -> tuple[str, str]:
    """The digits from the smallest to the largest."""
    return _text(digits), _text(np.sort(digits))


def addition(digits: np.ndarray) -> tuple[str, str]:
    """The sum of two numbers of equally many digits, with one digit more, from the first on."""
    half = len(digits) // 2
    one, two = _text(digits[:half]), _text(digits[half:])
    return f"{one}+{two}", str(int(one) + int(two)).zfill(half + 1)


def parity(digits: np.ndarray) -> tuple[str, str]:
    """Whether the number of ones among some bits is odd: 1, or 0."""
    return _text(digits), str(int(digits.sum()) % 2)


def task_set(
    name: str,
    pose: Pose,
    digits: int,
    *,
    base: int = 10,
    numbers: int = 1,
) -> Callable[..., Data]:
    """Return the loader of a task on `numbers` numbers of by default `digits` digits in `base`."""
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
        del data_dir  # Accepted, so that one set of options serves every data set.
        for option, value in {"digits": digits, "examples": examples}.items():
            if isinstance(value, bool) or value < 1:
                raise UserError(f"dataset.{option} must be at least 1, not {value!r}.")
        places = digits * numbers
        if places * math.log2(base) > 62:
            raise UserError(f"dataset.digits={digits} makes questions too many to number.")
        # Questions are numbers: as different ones as there are, in the order of the seed.
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
            raise UserError("dataset.test must leave some examples for the test: it is 0.")
        return token_data(name, train, held_out, tested, tokenizer, len(posed[0][0]) + 2)

    load.__doc__ = f"""Task: {(pose.__doc__ or "").strip()}

        {default_digits} digits by default; `examples` is the largest number of questions, all of
        them different, of which the shares or numbers `test` and `validation` are held out. The
        test set is the same for every `split_seed`.
        """
    return load


TASKS = {
    "addition": task_set("addition", addition, 2, numbers=2),
    "copy": task_set("copy", copy, 4),
    "parity": task_set("parity", parity, 8, base=2),
    "reverse": task_set("reverse", reverse, 4),
    "sort": task_set("sort", sort, 4),
}
