"""Texts from the language model of a run."""

import functools
import pathlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from grlu.errors import UserError
from input_pipeline import Data
from trainers.completions.sampling import Completions, sample
from trainers.config.load import load_config
from trainers.loop.run_dir import RunDirectory
from trainers.objectives.language import unmask
from trainers.pipelines import stages
from trainers.pipelines.open import fresh, require_writer, restored

_STATIC = ("steps", "temperature", "top_k", "top_p", "greedy", "end_token")


def generate(
    run_dir: str | pathlib.Path,
    prompt: str = "",
    *,
    tokens: int | None = None,
    samples: int = 1,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    greedy: bool = False,
    seed: int = 0,
    best: bool = False,
) -> list[str]:
    """Sample texts that start with a prompt, from the model of a run or of a pipeline's last stage.

    If a text exceeds the model's block, sampling continues from its last half block; a denoising
    model fills the rest of its block, one token per pass. The text of a policy ends with
    `trainer.end`, if set. A run with several seeds uses the first.

    Args:
        run_dir: the run's folder.
        prompt: start of the texts, by default a line feed.
        tokens: number of new tokens, by default as many as fit the block.
        samples: number of texts.
        temperature, top_k, top_p, greedy: as in `completions.sampling.sample`.
        seed: sampling seed.
        best: use the best checkpoint by validation instead of the newest.

    Raises:
        UserError: if the run has no language model or no checkpoint, or a value does not fit.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"seed must be an integer from 0 to 2**32 - 1, got {seed!r}")
    run = RunDirectory.open(pathlib.Path(run_dir))
    if "stages" in (config := load_config(run.config)):
        run = stages.last_stage(stages.complete(config), run)
    experiment, data = fresh(run)
    require_writer(run, experiment, data)
    # Examples of tasks start with a line feed.
    begins = prompt.startswith("\n") or (prompt and data.prompt == 1)
    assert data.tokenizer is not None
    given = jnp.asarray(data.tokenizer.encode(prompt if begins else f"\n{prompt}"))[None]
    state = restored(run, best=best, seen=experiment).state
    if experiment.run.seeds > 1:
        state = jax.tree.map(lambda leaf: leaf[0], state)
    model = experiment.trainer.model(state)
    if given.shape[1] > model.block:
        raise UserError(
            f"the prompt has {given.shape[1]} tokens, and the model's block only {model.block}: "
            "shorten it"
        )
    room = model.block + (1 if model.causal else 0) - given.shape[1]
    left = max(1, room) if tokens is None else tokens
    if left < 1 or samples < 1:
        raise UserError(f"tokens and samples must be positive, got {left} and {samples}")
    text, key = jnp.repeat(given, samples, axis=0), jax.random.key(seed)
    if not model.causal:
        if left > room or top_k is not None or top_p is not None:
            raise UserError(
                f"a denoising model fills in at most the {room} tokens left of its block, without "
                "top_k and top_p"
            )
        text = jnp.pad(text, ((0, 0), (0, left)), constant_values=model.vocabulary)
        filled = unmask(model, text, steps=left, key=key, temperature=temperature, greedy=greedy)
        return _decoded(data, filled, prompt, given.shape[1])
    pieces, end = 0, experiment.trainer.end_token
    options: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "greedy": greedy,
    }
    while left > 0:
        seen = text[:, -(max(1, model.block // 2) if pieces else model.block) :]
        steps = min(left, model.block + 1 - seen.shape[1])
        options |= {"steps": steps, "key": jax.random.fold_in(key, pieces), "end_token": end}
        piece = _sample(*nnx.split(model), seen, **options)
        text, left, pieces = jnp.concatenate([text, piece.tokens], 1), left - steps, pieces + 1
    return _decoded(data, text, prompt, given.shape[1], end)


# Compiled once for pieces of one length.
@functools.partial(jax.jit, static_argnums=0, static_argnames=_STATIC)
def _sample(graphdef: Any, state: Any, seen: jax.Array, **options: Any) -> Completions:
    return sample(nnx.merge(graphdef, state), seen, **options)


def _decoded(
    data: Data, texts: Iterable[Any], prompt: str, given: int, end: int | None = None
) -> list[str]:
    assert data.tokenizer is not None
    found = []
    for text in texts:
        new = text[given:].tolist()
        new = new[: new.index(end) + 1] if end in new else new
        found.append(prompt + data.tokenizer.decode(new))
    return found
