"""Prompts and the continuations that the data give them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grlu.errors import UserError
from input_pipeline import Data


@dataclasses.dataclass(frozen=True, eq=False)
class Prompts:
    """How a policy reads a data set of text: an example is a prompt and its target.

    Attributes:
        vocabulary: V.
        length: P, tokens of a prompt.
        horizon: T, most tokens of a completion.
        end_token: the token that ends a completion, or None.
        decode: tokens -> text.
    """

    vocabulary: int
    length: int
    horizon: int
    end_token: int | None
    decode: Callable[[Sequence[int]], str]

    @classmethod
    def of(
        cls,
        data: Data,
        prompt: int | None,
        horizon: int | None,
        end: str | None,
        *,
        block: int | None = None,
    ) -> "Prompts":
        """The reading of `data`.

        Args:
            data: of text, or of a task.
            prompt: P, by default what the data give.
            horizon: T, by default the rest of an example, as far as it fits the block.
            end: the text of the end token, or None.
            block: of a reward model, which must see all of a completion, its last token, too.

        Raises:
            UserError: on data that are no text, or shorter than asked for, or an `end` that is not
                one token.
        """
        if data.tokenizer is None:
            raise UserError(
                f"a policy continues text, and {data.name} is none: use a data set of text, such "
                "as dataset.name=copy"
            )
        tokens = data.example_shape[0] + 1
        length = data.prompt if prompt is None else prompt
        whole = tokens if block is None else min(tokens, block)
        steps = whole - length if horizon is None else horizon
        if length + steps > tokens or steps < 1:
            wanted = length + max(steps, 1)
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
        """Raises UserError where a completion, of which a model sees all but the last token, or is
        `scored` and sees all, is longer than its block."""
        if self.length + self.horizon - (not scored) > block:
            raise UserError(
                f"a prompt of {self.length} tokens and {self.horizon} new ones"
                f"{', all of which a reward model sees,' if scored else ''} don't fit the model's "
                f"block of {block}: set trainer.prompt, trainer.horizon or model.block"
            )

    def columns(self, batch: Any) -> dict[str, jax.Array]:
        """A batch's `prompt` (B, P) and `target` (B, T), and what it has besides.

        A target ends with its end token: all that follows are end tokens.
        """
        tokens = batch["tokens"]
        target = tokens[:, self.length : self.length + self.horizon]
        if self.end_token is not None:
            target = jnp.where(self.counted(target) > 0, target, self.end_token)
        rest = {k: v for k, v in batch.items() if k not in ("tokens", "scored")}
        return {**rest, "prompt": tokens[:, : self.length], "target": target}

    def text(self, tokens: Sequence[int]) -> str:
        """What tokens say, as far as their end."""
        tokens = list(tokens)
        if self.end_token in tokens:
            tokens = tokens[: tokens.index(self.end_token) + 1]
        return self.decode(tokens)

    def sequences(self, data: Data) -> np.ndarray:
        """The training split's prompts with their targets, (N, P + T)."""
        return np.asarray(data.train["tokens"])[:, : self.length + self.horizon]

    def counted(self, target: jax.Array) -> jax.Array:
        """1 at a target's tokens, to its end token, (B, T)."""
        if self.end_token is None:
            return jnp.ones(target.shape)
        ended = target == self.end_token
        return (jnp.cumsum(ended, 1) - ended == 0).astype(jnp.float32)
