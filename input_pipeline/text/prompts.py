"""Prompts of a data set, and their continuations in the data."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grlu.errors import UserError
from input_pipeline.data import Data

BIGRAMS = 8192
"""Largest vocabulary of a bigram table, which then takes 256 MiB."""


@dataclasses.dataclass(frozen=True, eq=False)
class Prompts:
    """View of a text data set in which each example is a prompt and its target.

    Attributes:
        vocabulary: V, number of tokens in the vocabulary.
        length: P, number of tokens of a prompt.
        horizon: T, maximum number of tokens of a completion.
        end_token: end-of-sequence token of completions, or None.
        decode: tokens -> text.
    """

    vocabulary: int
    length: int
    horizon: int
    end_token: int | None
    decode: Callable[[Sequence[int]], str]

    @classmethod
    def from_data(
        cls,
        data: Data,
        prompt: int | None,
        horizon: int | None,
        end: str | None,
        *,
        block: int | None = None,
    ) -> "Prompts":
        """Return the view of a data set.

        Args:
            data: data set of text or of a task.
            prompt: P; by default the data set's.
            horizon: T; by default the rest of an example that fits the block.
            end: text of the end-of-sequence token, or None.
            block: maximum number of tokens that a reward model sees, including the last token of a
                completion; None without a reward model.

        Raises:
            UserError: if the data are not text, an example is shorter than P + T, or `end` is not
                one token.
        """
        if data.tokenizer is None:
            raise UserError(
                f"a policy continues text, and {data.name} is not text: use a data set of text, "
                "such as dataset.name=copy"
            )
        tokens = data.example_shape[0] + 1
        length = data.prompt if prompt is None else prompt
        steps = min(tokens, block or tokens) - length if horizon is None else horizon
        wanted = length + max(steps, 1)
        if wanted > tokens or steps < 1:
            hint = f": set dataset.length to {wanted - 1}" if data.prompt == 1 else ""
            raise UserError(
                f"an example of {data.name} has {tokens} tokens, too few for a trainer.prompt of "
                f"{length} and a trainer.horizon of {max(steps, 1)}{hint}"
            )
        end_token = None
        if end is not None:
            try:
                found = data.tokenizer.encode(end)
            except UserError as error:
                raise UserError(f"trainer.end={end!r}: {error}") from error
            if len(found) != 1:
                raise UserError(f"trainer.end must be one token, and {end!r} is {len(found)}")
            end_token = int(found[0])
        return cls(data.num_classes, length, steps, end_token, data.tokenizer.decode)

    def require_room(self, block: int, *, scored: bool = False) -> None:
        """Raise UserError unless prompt and completion fit a model's block.

        Args:
            block: maximum number of tokens that the model sees.
            scored: True if it also sees the last token, as a reward model does.
        """
        if self.length + self.horizon - (not scored) > block:
            raise UserError(
                f"a prompt of {self.length} tokens and {self.horizon} new ones"
                f"{', all of which a reward model sees,' if scored else ''} don't fit the model's "
                f"block of {block}: set trainer.prompt, trainer.horizon or model.block"
            )

    def columns(self, batch: Any) -> dict[str, jax.Array]:
        """Return a batch's `prompt` (B, P), `target` (B, T) and other columns.

        A target is padded with end tokens after its first one.
        """
        tokens = batch["tokens"]
        target = tokens[:, self.length : self.length + self.horizon]
        if self.end_token is not None:
            target = jnp.where(self.target_mask(target) > 0, target, self.end_token)
        rest = {k: v for k, v in batch.items() if k not in ("tokens", "scored")}
        return {**rest, "prompt": tokens[:, : self.length], "target": target}

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens up to their end."""
        tokens = list(tokens)
        if self.end_token in tokens:
            tokens = tokens[: tokens.index(self.end_token) + 1]
        return self.decode(tokens)

    def sequences(self, data: Data) -> np.ndarray:
        """Return the training split's prompts and targets, (N, P + T)."""
        return np.asarray(data.train["tokens"])[:, : self.length + self.horizon]

    def target_mask(self, target: jax.Array) -> jax.Array:
        """Return 1 at a target's tokens up to and including its end token, (B, T)."""
        if self.end_token is None:
            return jnp.ones(target.shape)
        ended = target == self.end_token
        return (jnp.cumsum(ended, 1) - ended == 0).astype(jnp.float32)


def bigram_table(sequences: np.ndarray, vocabulary: int) -> np.ndarray:
    """Return log((count + 1) / (row sum + V)) of neighbouring tokens (..., T), shape (V, V).

    Raises:
        UserError: if the vocabulary, V, is larger than `BIGRAMS`.
    """
    if vocabulary > BIGRAMS:
        raise UserError(
            f"trainer.reference=bigram is a table of {vocabulary:,} x {vocabulary:,} tokens, at "
            f"most {BIGRAMS:,}: use start, random or the folder of a run"
        )
    counts = np.zeros((vocabulary, vocabulary))
    np.add.at(counts, (sequences[..., :-1], sequences[..., 1:]), 1)
    return np.log((counts + 1) / (counts.sum(1, keepdims=True) + vocabulary)).astype(np.float32)
