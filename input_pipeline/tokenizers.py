"""Tokenizers: conversion between text and token numbers."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from grlu.errors import UserError

TokenizerName = Literal["char", "byte", "gpt2"]

# GPT-2's published pattern for splitting a text before merging pairs.
_GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


class Tokenizer(Protocol):
    """Protocol of tokenizers.

    Attributes:
        size: V, size of the vocabulary: tokens are 0 to V - 1.
        vocabulary: description, equal for two tokenizers that give every text the same tokens.
    """

    size: int
    vocabulary: str

    def encode(self, text: str) -> np.ndarray:
        """Return the tokens of a text, shape (T,), int32."""

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of tokens."""


class Characters:
    """Tokenizer with one token per character, numbered in the order of a string.

    >>> tokenizer = Characters("abc")
    >>> tokenizer.encode("cab").tolist(), tokenizer.decode([2, 0, 1])
    ([2, 0, 1], 'cab')
    """

    def __init__(self, characters: str):
        self.characters, self.size = characters, len(characters)
        self.vocabulary = f"the characters {characters!r}"
        self._numbers = {c: i for i, c in enumerate(characters)}

    def encode(self, text: str) -> np.ndarray:
        """Return the tokens of a text, shape (T,), int32.

        Raises:
            UserError: if a character is not in the vocabulary.
        """
        try:
            return np.fromiter((self._numbers[c] for c in text), np.int32, len(text))
        except KeyError as error:
            known = self.characters if self.size <= 100 else f"{self.characters[:100]}..."
            raise UserError(
                f"the character {error.args[0]!r} at position {text.index(error.args[0])} of the "
                f"text is not in the vocabulary of {self.size}: {known!r}"
            ) from error

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of tokens."""
        return "".join(self.characters[int(token)] for token in tokens)


class Bytes:
    """Tokenizer with one token per UTF-8 byte: 256 tokens for any text.

    >>> Bytes().decode(Bytes().encode("naïve"))
    'naïve'
    """

    size = 256
    vocabulary = "bytes"

    def encode(self, text: str) -> np.ndarray:
        """Return the tokens of a text, shape (T,), int32."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of tokens; invalid UTF-8 bytes become U+FFFD."""
        return bytes(int(token) for token in tokens).decode(errors="replace")


class GPT2:
    """Tokenizer with GPT-2's byte-pair encoding of 50,257 tokens, from its two published files.

    Requires tiktoken.

    Args:
        folder: folder with `vocab.bpe` and `encoder.json`.

    Raises:
        UserError: if a file or tiktoken is missing, or a file is damaged.
    """

    vocabulary = "GPT-2's tokens"

    def __init__(self, folder: str | os.PathLike[str]):
        files = [Path(folder).expanduser() / name for name in ("vocab.bpe", "encoder.json")]
        for file in files:
            if not file.is_file():
                raise UserError(
                    f"{file} is missing: set dataset.bpe to the folder with GPT-2's vocab.bpe and "
                    "encoder.json"
                )
        try:
            import tiktoken
            from tiktoken.load import data_gym_to_mergeable_bpe_ranks
        except ImportError as error:
            raise UserError("GPT-2's tokens need tiktoken: run `pip install grlu[text]`") from error
        # Without the hashes, tiktoken would use its cache of files with the same names.
        hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
        try:
            ranks = data_gym_to_mergeable_bpe_ranks(
                str(files[0]), str(files[1]), hashes[0], hashes[1]
            )
        except (AssertionError, ValueError, KeyError) as error:
            raise UserError(
                f"{files[0]} and {files[1].name} are not GPT-2's: they do not match each other"
            ) from error
        self._encoding: Any = tiktoken.Encoding(
            "gpt2",
            pat_str=_GPT2_PATTERN,
            mergeable_ranks=ranks,
            special_tokens={"<|endoftext|>": len(ranks)},
        )
        self.size = self._encoding.n_vocab

    def encode(self, text: str) -> np.ndarray:
        """Return the tokens of a text, shape (T,), int32, without special tokens."""
        return np.array(self._encoding.encode_ordinary(text), np.int32)

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of tokens."""
        return self._encoding.decode([int(token) for token in tokens])


def tokenizer_for(name: TokenizerName, text: str, bpe: str | os.PathLike[str]) -> Tokenizer:
    """Return the named tokenizer; "char" has the characters of `text` as its vocabulary.

    Raises:
        UserError: if the name is unknown, or the tokenizer's files are missing.
    """
    if name == "char":
        return Characters("".join(sorted(set(text))))
    if name == "byte":
        return Bytes()
    if name == "gpt2":
        return GPT2(bpe)
    raise UserError(f"dataset.tokenizer must be one of char, byte, gpt2; got {name!r}")
