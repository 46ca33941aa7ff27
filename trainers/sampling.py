"""Sampling from a language model: all prompts and samples in one compiled loop, with a cache.

`log_probs` is the one function that says what a model thinks of tokens, in sampling and in
training, so that a policy's ratio before its first update is 1.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from grlu.errors import UserError
from grlu.kl import chosen


def log_probs(logits: jax.Array, tokens: jax.Array, temperature: float = 1.0) -> jax.Array:
    """log softmax(logits / temperature)[token], in nats.

    Args:
        logits: shape (..., V), those at the position *before* each token's.
        tokens: shape (...), int.
        temperature: that of the policy that is meant.
    """
    return chosen(nnx.log_softmax(logits / temperature), tokens)


class Completions(NamedTuple):
    """What was sampled after N = prompts × samples prompts, in T steps.

    Rows are by prompt: sample k of prompt b is row b * samples + k.

    Attributes:
        tokens: shape (N, T), int32; after the end token, end tokens.
        log_probs: `log_probs` of each token, shape (N, T), in nats; 0 after the end token.
        lengths: tokens up to and with the end token, shape (N,), int32; T without one.
    """

    tokens: jax.Array
    log_probs: jax.Array
    lengths: jax.Array

    @property
    def mask(self) -> jax.Array:
        """Which tokens count, shape (N, T), bool: the end token does, what follows doesn't."""
        return jnp.arange(self.tokens.shape[1])[None] < self.lengths[:, None]


def sample(
    model: Any,
    prompts: jax.Array,
    *,
    steps: int,
    key: jax.Array,
    samples: int = 1,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    greedy: bool = False,
    end_token: int | None = None,
    unrolled: bool = False,
) -> Completions:
    """Continues prompts, in evaluation mode: without dropout. Pure, and may be compiled.

    A prompt passes the model once, at once, whatever the number of its samples. The loop ends early
    when every completion has come to its end token.

    Args:
        model: with `empty_cache` and `cached`, such as `models.GPT`; it stays as it was.
        prompts: tokens, shape (B, P), int32, P > 0.
        steps: T, the largest number of new tokens.
        key: of the draws.
        samples: completions of each prompt.
        temperature: divides the logits; the log-probabilities are those at this temperature.
        top_k: draw from the k most likely tokens alone, or None.
        top_p: draw from the fewest tokens whose probabilities together reach p, or None. Neither
            this nor `top_k` changes the log-probabilities that are returned.
        greedy: take the most likely token, in place of a draw.
        end_token: the token that ends a completion, or None.
        unrolled: whether all steps are taken, and laid open to who traces this, one after the
            other, not in a loop: slow to compile.

    Raises:
        UserError: on a value outside its range, or prompts that leave no room for `steps` tokens.
    """
    _require(model, prompts, steps, samples, temperature, top_k, top_p)
    rows, longest = prompts.shape[0] * samples, prompts.shape[1] + steps - 1
    graphdef, state = nnx.split(model)
    # A model must be put together anew inside the loop: NNX guards against crossing traces.
    evaluating = nnx.merge(graphdef, state, copy=True)
    evaluating.eval()
    graphdef, state = nnx.split(evaluating)

    def choose(logits: jax.Array, step: jax.Array | int) -> tuple[jax.Array, jax.Array]:
        if greedy:
            token = jnp.argmax(logits, axis=-1)
        else:
            allowed = _truncated(logits / temperature, top_k, top_p)
            token = jax.random.categorical(jax.random.fold_in(key, step), allowed)
        token = token.astype(jnp.int32)
        return token, log_probs(logits, token, temperature)

    cache = evaluating.empty_cache(prompts.shape[0], longest)
    logits, cache = evaluating.cached(prompts, cache, start=prompts.shape[1] - 1)
    cache = cache.repeated(samples)
    first, first_log_probs = choose(jnp.repeat(logits[:, -1], samples, axis=0), 0)
    padding = 0 if end_token is None else end_token
    tokens = jnp.full((rows, steps), padding, jnp.int32).at[:, 0].set(first)
    chosen = jnp.zeros((rows, steps), logits.dtype).at[:, 0].set(first_log_probs)

    def running(carry: Any) -> jax.Array:
        step, _, _, _, lengths = carry
        more = step < steps
        return more if end_token is None else more & jnp.any(lengths == steps)

    def advance(carry: Any) -> Any:
        step, cache, tokens, chosen, lengths = carry
        last = jax.lax.dynamic_slice_in_dim(tokens, step - 1, 1, axis=1)
        logits, cache = nnx.merge(graphdef, state, copy=True).cached(last, cache)
        token, log_prob = choose(logits[:, 0], step)
        alive = lengths == steps
        tokens = tokens.at[:, step].set(jnp.where(alive, token, padding))
        chosen = chosen.at[:, step].set(jnp.where(alive, log_prob, 0.0))
        return step + 1, cache, tokens, chosen, _ended(lengths, token, alive, step)

    def _ended(lengths: jax.Array, token: jax.Array, alive: jax.Array, step: Any) -> jax.Array:
        if end_token is None:
            return lengths
        return jnp.where(alive & (token == end_token), step + 1, lengths)

    lengths = jnp.full((rows,), steps, jnp.int32)
    lengths = _ended(lengths, first, lengths == steps, 0)
    start = (jnp.ones((), jnp.int32), cache, tokens, chosen, lengths)
    if unrolled:
        carry: Any = start
        for step in range(1, steps):
            carry = advance((step, *carry[1:]))
    else:
        carry = jax.lax.while_loop(running, advance, start)
    _, _, tokens, chosen, lengths = carry
    return Completions(tokens, chosen, lengths)


def _truncated(logits: jax.Array, top_k: int | None, top_p: float | None) -> jax.Array:
    """The logits (N, V), with -inf where a token must not be drawn."""
    if top_k is not None and top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    if top_p is not None and top_p < 1:
        # A token is in if those before it, in order of probability, don't reach p without it.
        order = jnp.argsort(-logits, axis=-1)
        p = jnp.take_along_axis(nnx.softmax(logits), order, axis=-1)
        kept = jnp.cumsum(p, axis=-1) - p < top_p
        kept = jnp.put_along_axis(jnp.zeros_like(kept), order, kept, axis=-1, inplace=False)
        logits = jnp.where(kept, logits, -jnp.inf)
    return logits


def _require(
    model: Any,
    prompts: jax.Array,
    steps: int,
    samples: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> None:
    if prompts.ndim != 2 or not prompts.shape[1] or not jnp.issubdtype(prompts.dtype, jnp.integer):
        raise UserError(
            f"prompts must be tokens, integers of shape (prompts, tokens) with at least one token "
            f"each; got {prompts.dtype} of shape {prompts.shape}"
        )
    for name, value in {"steps": steps, "samples": samples, "top_k": top_k}.items():
        if value is not None and value < 1:
            raise UserError(f"{name} must be a positive number, got {value!r}")
    if not temperature > 0:
        raise UserError(
            f"temperature must be positive, got {temperature!r}; greedy takes the likeliest token"
        )
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p must lie in (0, 1], got {top_p!r}")
    # The last token is drawn, and not read.
    if prompts.shape[1] + steps - 1 > model.block:
        raise UserError(
            f"a prompt of {prompts.shape[1]} tokens and {steps} new ones don't fit the model's "
            f"block of {model.block}: shorten the prompt or take fewer steps"
        )
