"""Prompts and the continuations that the data give them, whatever the data set."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grlu.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Prompts:
    """How batches of a data set are read by a policy.

    Attributes:
        vocabulary: V.
        length: P, tokens of a prompt.
        horizon: T, most tokens of a completion.
        end_token: the token that ends a completion, or None.
        has_target: whether the data have a continuation of each prompt.
        columns: batch -> `prompt` (B, P), `target` (B, T) if there is one, and the rest.
        decode: tokens -> text.
        preprocess: batch as stored -> batch as the loop gives it.
    """

    vocabulary: int
    length: int
    horizon: int
    end_token: int | None
    has_target: bool
    columns: Callable[[Any], dict[str, jax.Array]]
    decode: Callable[[Sequence[int]], str]
    preprocess: Callable[[Any], Any]

    @classmethod
    def of(cls, data: Any, prompt: int, horizon: int | None) -> "Prompts":
        """The reading of `data`; `prompt` and `horizon` cut texts that have none of their own.

        Raises:
            UserError: on data that are no text, or shorter than asked for.
        """
        one = {name: array[:1] for name, array in data.train.items()}
        shapes = {k: v.shape for k, v in jax.eval_shape(data.preprocess, one).items()}
        ends, decode = getattr(data, "end_token", None), getattr(data, "decode", str)
        if "prompt" not in shapes and "tokens" not in shapes:
            raise UserError(
                f"a policy answers prompts of tokens, and {data.name} has neither prompts nor text"
            )
        if "prompt" in shapes:
            length, has_target = shapes["prompt"][1], "target" in shapes
            most = shapes["target"][1] if has_target else horizon
            if most is None:
                raise UserError(f"{data.name} has prompts alone: set trainer.horizon")
        else:
            length, has_target, most = prompt, True, shapes["tokens"][1] - prompt
            if most < 1 or (horizon or 1) > most:
                raise UserError(
                    f"trainer.prompt {prompt} and trainer.horizon {horizon or 1} are more than the "
                    f"{shapes['tokens'][1]} tokens of an example of {data.name}"
                )
        if has_target and (horizon or 1) > most:
            raise UserError(
                f"trainer.horizon is {horizon}, and the targets of {data.name} have {most} tokens"
            )
        steps = horizon or most

        def columns(batch: Any) -> dict[str, jax.Array]:
            if "prompt" in batch:
                cut = {"target": batch["target"][:, :steps]} if has_target else {}
                return {**batch, **cut}
            tokens = batch["tokens"]
            rest = {k: v for k, v in batch.items() if k != "tokens"}
            target = tokens[:, length : length + steps]
            return {"prompt": tokens[:, :length], "target": target, **rest}

        return cls(
            data.num_classes, length, steps, ends, has_target, columns, decode, data.preprocess
        )

    def sequences(self, data: Any) -> np.ndarray:
        """The training split's prompts with their continuations, (N, P + T)."""
        batch = self.columns(self.preprocess(dict(data.train)))
        parts = [batch["prompt"], *([batch["target"]] if self.has_target else [])]
        return np.concatenate([np.asarray(part) for part in parts], axis=1)

    def counted(self, target: jax.Array) -> jax.Array:
        """1 at a target's tokens, to its end token, (B, T)."""
        if self.end_token is None:
            return jnp.ones(target.shape)
        ended = target == self.end_token
        return (jnp.cumsum(ended, 1) - ended == 0).astype(jnp.float32)
