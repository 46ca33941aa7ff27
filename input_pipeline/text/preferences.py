"""Recorded preference pairs: one JSON object per line, with prompt, chosen and rejected completion.

{"prompt": "Shall I ", "chosen": "compare thee", "rejected": "go home"}
"""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from grlu.errors import UserError
from input_pipeline.data import Data
from input_pipeline.splits import carve
from input_pipeline.storage.prepared import data_root
from input_pipeline.text.files import read_text
from input_pipeline.tokenizers import Tokenizer, TokenizerName, tokenizer_for

_KEYS = ("prompt", "chosen", "rejected")


def preferences(path: str, loader: Callable[[str], Callable[..., Data]]) -> Callable[..., Data]:
    """Return the loader of the preference pairs in a file.

    The arrays of a split are `chosen` and `rejected`, (N, L), tokens of prompt and completion,
    padded with token 0; `given`, (N,), length of the prompt; `chosen_ends` and `rejected_ends`,
    (N,), total lengths. `preprocess` maps them to `chosen` and `rejected` as int32, and
    `chosen_mask` and `rejected_mask`, 1 at the tokens of the completion.

    Args:
        path: the file.
        loader: returns the loader of another data set by name.
    """

    def load_pairs(
        *,
        data_dir: str | None = None,
        tokenizer: TokenizerName = "char",
        bpe: str | None = None,
        like: str | None = None,
        length: int | None = None,
        validation: int | float = 0.1,
        test: int | float = 0.1,
        split_seed: int = 0,
        subset: int | None = None,
    ) -> Data:
        lines = read_pairs(Path(path))
        root = data_root(data_dir)
        if like is not None:
            load = loader(like)
            # Only its tokenizer is needed, so any length is fine.
            options = {"data_dir": data_dir, "tokenizer": tokenizer, "bpe": bpe, "length": 1}
            known = inspect.signature(load).parameters
            chosen = load(**{k: v for k, v in options.items() if k in known}).tokenizer
            if chosen is None:
                raise UserError(f"dataset.like must be a data set of text, and {like} is not.")
        else:
            text = "".join(line[key] for line in lines.values() for key in _KEYS)
            chosen = tokenizer_for(tokenizer, text, bpe or root / "gpt2_bpe")
        arrays = encoded(path, lines, chosen, length)
        sizes: Any = {"split_seed": split_seed}
        rest, tested = carve(arrays, validation=test, subset=None, split_seed=0, option="test")
        train, held_out = carve(rest, validation=validation, subset=subset, **sizes)
        if tested is None:
            raise UserError("dataset.test must leave some examples for the test split: it is 0.")
        return Data(
            name=f"preferences:{path}",
            train=train,
            validation=held_out,
            test=tested,
            preprocess=_masked,
            example_shape=(arrays["chosen"].shape[1],),
            num_classes=chosen.size,
            tokenizer=chosen,
            pairs=True,
        )

    load_pairs.__doc__ = f"""The preferences in {path}.

        Args:
            data_dir: folder of the data sets.
            tokenizer: "char" (the characters of the pairs), "byte" or "gpt2".
            bpe: folder of GPT-2's tokenizer files, by default gpt2_bpe in the folder of the data.
            like: text whose tokenizer to use, such as that of the run that this one starts from.
            length: maximum length of prompt and completion, by default that of the longest.
            validation: size of the validation set, as a number or a fraction.
            test: size of the test set, as a number or a fraction.
            split_seed: seed of the validation set and of the subset.
            subset: number of training pairs, or None for all.
        """
    return load_pairs


def read_pairs(path: Path) -> dict[int, dict[str, str]]:
    """Return the preference pairs in a file by line number, from 1, skipping empty lines.

    Raises:
        UserError: if a line is not a preference pair.
    """
    found: dict[int, dict[str, str]] = {}
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            pair = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: not valid JSON: {error.msg}.") from error
        if not isinstance(pair, dict):
            raise UserError(f"{where}: must be an object with {', '.join(_KEYS)}, not {line[:40]}.")
        for key in _KEYS:
            if not isinstance(pair.get(key), str) or not pair[key]:
                what = repr(pair[key]) if key in pair else "missing"
                raise UserError(f"{where}: {key!r} must be a text of at least one token: {what}.")
        if pair["chosen"] == pair["rejected"]:
            raise UserError(f"{where}: chosen and rejected are the same, so neither is preferred.")
        found[number] = {key: pair[key] for key in _KEYS}
    if not found:
        raise UserError(f"{path} holds no preferences: it is empty.")
    return found


def encoded(
    path: str, lines: dict[int, dict[str, str]], tokenizer: Tokenizer, length: int | None
) -> dict[str, np.ndarray]:
    """Return the arrays of preference pairs, as `preferences` describes, in the order of the lines.

    Raises:
        UserError: if a line is too long or has a character outside the vocabulary.
    """
    rows: dict[str, list[Any]] = {key: [] for key in ("given", "chosen", "rejected")}
    for number, line in lines.items():
        try:
            prompt, *completions = (tokenizer.encode(line[key]) for key in _KEYS)
        except UserError as error:
            raise UserError(f"{path}, line {number}: {error}") from error
        longest = len(prompt) + max(map(len, completions))
        if length is not None and longest > length:
            raise UserError(
                f"{path}, line {number}: a prompt and its completion are {longest} tokens, more "
                f"than dataset.length={length}."
            )
        rows["given"].append(len(prompt))
        for key, completion in zip(("chosen", "rejected"), completions, strict=True):
            rows[key].append(np.concatenate([prompt, completion]))
    size = length or max(len(row) for key in ("chosen", "rejected") for row in rows[key])
    dtype = np.min_scalar_type(tokenizer.size - 1)
    arrays = {"given": np.array(rows["given"], np.int32)}
    for key in ("chosen", "rejected"):
        arrays[f"{key}_ends"] = np.array([len(row) for row in rows[key]], np.int32)
        padded = [np.pad(row, (0, size - len(row))) for row in rows[key]]
        arrays[key] = np.stack(padded).astype(dtype)
    return arrays


def _masked(batch: dict[str, Any]) -> dict[str, Any]:
    positions = np.arange(batch["chosen"].shape[1])[None]
    found: dict[str, Any] = {}
    for key in ("chosen", "rejected"):
        mask = (positions >= batch["given"][:, None]) & (positions < batch[f"{key}_ends"][:, None])
        found |= {key: batch[key].astype(np.int32), f"{key}_mask": mask.astype(np.float32)}
    return found
