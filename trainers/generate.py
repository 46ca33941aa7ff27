"""Text from the language model of a run."""

import functools
import pathlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from grlu.errors import UserError
from input_pipeline import Data
from trainers import hybrid
from trainers.compatibility import require_writer
from trainers.config import load_config
from trainers.features import config_of, fresh, restored
from trainers.language import unmask
from trainers.run_directory import RunDirectory
from trainers.sampling import Completions, sample


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
    """Texts that begin with a prompt, by the model of a run's newest (or best) checkpoint, or by
    that of a pipeline's last stage.

    A text longer than the model's block is continued from its last half block; a denoising model
    fills the rest of its block, a token a pass. A policy's ends with its `trainer.end`, if it has
    one. Of several seeds' models it is the first.

    Args:
        run_dir: the run's folder.
        prompt: by default a line feed.
        tokens: how many new ones, by default what fits the block.
        samples: texts.
        temperature: as in `sampling.sample`, like what follows.
        top_k: likewise.
        top_p: likewise.
        greedy: likewise.
        seed: of the draws.
        best: whether to take the best checkpoint by validation, not the newest.

    Raises:
        UserError: if the run is not one of text, has no checkpoint, or a value does not fit.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"seed must be an integer from 0 to 2**32 - 1, got {seed!r}")
    run = RunDirectory.open(pathlib.Path(run_dir))
    if "stages" in (config := load_config(run.config)):
        run = hybrid.last_stage(hybrid.complete(config), run)
    experiment, data = fresh(config_of(run), run, ())
    require_writer(run, experiment, data)
    given = _encoded(data, prompt)
    state = restored(run, best=best, seen=experiment).state
    if experiment.run.seeds > 1:
        state = jax.tree.map(lambda leaf: leaf[0], state)
    model = experiment.trainer.model(state)  # type: ignore[attr-defined]
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
                f"a denoising model fills in at most the {room} tokens that are left of its block, "
                "and knows no top_k and top_p"
            )
        text = jnp.pad(text, ((0, 0), (0, left)), constant_values=model.vocabulary)
        filled = unmask(model, text, steps=left, key=key, temperature=temperature, greedy=greedy)
        return _decoded(data, filled, prompt, given.shape[1])
    pieces, end = 0, experiment.trainer.end_token
    while left > 0:
        seen = text[:, -model.block :]
        if pieces:
            seen = text[:, -max(1, model.block // 2) :]
        steps = min(left, model.block + 1 - seen.shape[1])
        how = (steps, temperature, top_k, top_p, greedy, end)
        found = _piece(*nnx.split(model), seen, jax.random.fold_in(key, pieces), *how)
        text, left, pieces = jnp.concatenate([text, found.tokens], 1), left - steps, pieces + 1
    return _decoded(data, text, prompt, given.shape[1], end)


# Pieces of one length are compiled once.
@functools.partial(jax.jit, static_argnums=(0, 4, 5, 6, 7, 8, 9))
def _piece(
    graphdef: Any,
    state: Any,
    seen: jax.Array,
    key: jax.Array,
    steps: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    greedy: bool,
    end: int | None,
) -> Completions:
    return sample(
        nnx.merge(graphdef, state),
        seen,
        steps=steps,
        key=key,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        greedy=greedy,
        end_token=end,
    )


def _encoded(data: Data, prompt: str) -> jax.Array:
    """The prompt's tokens, shape (1, P)."""
    assert data.tokenizer is not None
    # A task's example begins with a line feed, and a text's may as well.
    begun = f"\n{prompt}" if data.prompt > 1 or not prompt else prompt
    return jnp.asarray(data.tokenizer.encode(begun))[None]


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
