"""Text data sets: rows of tokens, split by position."""

import os
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from grlu.errors import UserError
from input_pipeline.data import Data
from input_pipeline.splits import Examples
from input_pipeline.storage.local import local
from input_pipeline.storage.prepared import data_root
from input_pipeline.tokenizers import TokenizerName, tokenizer_for

SHAKESPEARE = "tinyshakespeare.txt"
_SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)


def text_set(
    name: str, description: str, read: Callable[[Path], str], length: int = 128
) -> Callable[..., Data]:
    """Return the loader of a text.

    Args:
        name: name of the data set.
        description: first line of the loader's docstring.
        read: reads the text, given the folder of the data sets.
        length: default length of an example, in tokens.
    """
    default_length = length

    def load(
        *,
        data_dir: str | None = None,
        tokenizer: TokenizerName = "char",
        bpe: str | None = None,
        length: int = default_length,
        stride: int | None = None,
        validation: float = 0.05,
        test: float = 0.05,
    ) -> Data:
        root = data_root(data_dir)
        text = read(root)
        if not text:
            raise UserError(f"the text of the data set {name!r} is empty.")
        chosen = tokenizer_for(tokenizer, text, bpe or root / "gpt2_bpe")
        parts = by_position(chosen.encode(text), validation, test)
        stride = length if stride is None else stride
        for option, value in {"length": length, "stride": stride}.items():
            if isinstance(value, bool) or value < 1:
                raise UserError(
                    f"dataset.{option} must be a number of tokens of at least 1, not {value!r}."
                )
        dtype = np.min_scalar_type(chosen.size - 1)
        train, held_out, tested = (
            rows(part.astype(dtype), length, stride if i == 0 else length, split)
            for i, (split, part) in enumerate(
                zip(("training", "validation", "test"), parts, strict=True)
            )
        )
        if tested is None:
            raise UserError("dataset.test must leave some text for the test split: it is 0.")
        assert train is not None
        return token_data(name, train, held_out, tested, chosen)

    load.__doc__ = f"""{description}

        The text is split by position: training, validation, test.

        Args:
            data_dir: folder of the data sets.
            tokenizer: "char", "byte" or "gpt2".
            bpe: folder of GPT-2's tokenizer files, by default gpt2_bpe in the folder of the data.
            length: number of tokens of an example, besides the next one.
            stride: distance in tokens between training examples, by default `length`, so that an
                epoch is one pass over the text.
            validation: fraction of the text in the validation split.
            test: fraction of the text in the test split.
        """
    return load


def text_file(path: str) -> Callable[..., Data]:
    """Return the loader of the text file `text:PATH`."""
    return text_set(f"text:{path}", f"The text in {path}.", lambda root: read_text(Path(path)))


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        UserError: if it can't be read, or is not UTF-8.
    """
    try:
        return local(path, "the text").read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"the text {path} can't be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text in UTF-8: {error}.") from error


def read_shakespeare(root: Path) -> str:
    """Read tiny-shakespeare from the folder of the data sets.

    Raises:
        UserError: if the file is missing.
    """
    if not (root / SHAKESPEARE).is_file():
        raise UserError(
            f"{SHAKESPEARE} is not in {root}: run `grlu data prepare shakespeare`, or set "
            "dataset.data_dir or TFDS_DATA_DIR to the folder that contains it."
        )
    return read_text(root / SHAKESPEARE)


def prepare_shakespeare(source: str | os.PathLike[str] | None, root: Path) -> bool:
    """Copy tiny-shakespeare to `root`, from a file or its folder, or download it.

    Returns:
        True if the file was written, False if it already existed.

    Raises:
        UserError: if the text can't be read, downloaded or written.
    """
    target = root / SHAKESPEARE
    if target.is_file():
        return False
    if source is None:
        try:
            with urllib.request.urlopen(_SHAKESPEARE_URL, timeout=60) as page:
                text = page.read().decode()
        except OSError as error:
            raise UserError(
                f"the data set 'shakespeare' cannot be downloaded: {error} (without a network: "
                f"`grlu data prepare shakespeare --from DIR`, with {SHAKESPEARE} in it)"
            ) from error
    else:
        path = Path(source).expanduser()
        text = read_text(path / SHAKESPEARE if path.is_dir() else path)
    try:
        root.mkdir(parents=True, exist_ok=True)
        scratch = target.with_suffix(f".{os.getpid()}")
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(target)
    except OSError as error:
        raise UserError(f"{target} can't be written: {error.strerror}.") from error
    return True


def by_position(tokens: np.ndarray, validation: float, test: float) -> list[np.ndarray]:
    """Split tokens by position into training, validation and test, given the last two's fractions.

    Raises:
        UserError: if the fractions are invalid, or leave nothing to train on.
    """
    for option, size in {"validation": validation, "test": test}.items():
        if isinstance(size, bool) or not isinstance(size, int | float) or not 0 <= size < 1:
            raise UserError(
                f"dataset.{option} must be a fraction of the text in [0, 1), not {size}."
            )
    if validation + test >= 1:
        raise UserError(
            f"dataset.validation={validation} and dataset.test={test} leave nothing to train on."
        )
    ends = [round(len(tokens) * (1 - validation - test)), round(len(tokens) * (1 - test))]
    return np.split(tokens, ends)


def rows(part: np.ndarray, length: int, stride: int, split: str) -> Examples | None:
    """Return examples of length + 1 tokens, `stride` tokens apart; None for an empty part.

    Raises:
        UserError: if the part is too short for one example.
    """
    if not len(part):
        return None
    if len(part) < length + 1:
        raise UserError(
            f"the {split} split has {len(part)} tokens, too few for an example of "
            f"dataset.length={length} tokens and the next one."
        )
    windows = np.lib.stride_tricks.sliding_window_view(part, length + 1)[::stride]
    return {"tokens": np.ascontiguousarray(windows)}


def token_data(
    name: str,
    train: Examples,
    validation: Examples | None,
    test: Examples,
    tokenizer: Any,
    prompt: int = 1,
) -> Data:
    """Return the `Data` of rows of tokens, each with a prompt of `prompt` tokens."""
    length = train["tokens"].shape[1] - 1

    def preprocess(batch: dict[str, Any]) -> dict[str, Any]:
        tokens = batch["tokens"].astype(np.int32)
        scored = np.arange(1, length + 1) >= prompt
        return {**batch, "tokens": tokens, "scored": tokens[:, 1:] * 0 + scored[None]}

    return Data(
        name=name,
        train=train,
        validation=validation,
        test=test,
        preprocess=preprocess,
        example_shape=(length,),
        num_classes=tokenizer.size,
        tokenizer=tokenizer,
        prompt=prompt,
    )
