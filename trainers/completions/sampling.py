"""Sampling from a language model: all prompts and samples in one compiled loop, with a cache.

`log_probs` computes the log-probabilities of tokens both in sampling and in training, so that a
policy's importance ratio before its first update is 1.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from grlu.errors import UserError
from grlu.kl import chosen


def log_probs(logits: jax.Array, tokens: jax.Array, temperature: float = 1.0) -> jax.Array:
    """Return log softmax(logits / temperature)[token], shape (...), in nats.

    Args:
        logits: logits at the position *before* each token, shape (..., V).
        tokens: token numbers, shape (...), int.
        temperature: temperature of the policy.
    """
    return chosen(nnx.log_softmax(logits / temperature), tokens)


class Completions(NamedTuple):
    """N = prompts × samples completions of at most T tokens.

    Rows are ordered by prompt: sample k of prompt b is row b * samples + k.

    Attributes:
        tokens: token numbers, shape (N, T), int32; padded with end tokens.
        log_probs: log-probability of each token, shape (N, T), in nats; 0 after the end token.
        lengths: number of tokens including the end token, shape (N,), int32; T without one.
    """

    tokens: jax.Array
    log_probs: jax.Array
    lengths: jax.Array

    @property
    def mask(self) -> jax.Array:
        """True up to and including the end token, False in the padding, shape (N, T)."""
        return jnp.arange(self.tokens.shape[1])[None] < self.lengths[:, None]

    @property
    def repetition(self) -> jax.Array:
        """Fraction of a completion's tokens that repeat the preceding one, shape (N,)."""
        repeated = (self.tokens[:, 1:] == self.tokens[:, :-1]) & self.mask[:, 1:]
        return repeated.sum(1) / jnp.maximum(self.lengths - 1, 1)


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
    """Sample completions of prompts in evaluation mode, without dropout.

    The function is pure and may be compiled. All samples of a prompt share one pass over it. The
    loop ends early when every completion has its end token.

    Args:
        model: model with `empty_cache` and `cached`, such as `models.GPT`; it is not changed.
        prompts: token numbers, shape (B, P), int32, P > 0.
        steps: T, maximum number of new tokens.
        key: PRNG key.
        samples: completions of each prompt.
        temperature: divisor of the logits, also for the returned log-probabilities.
        top_k: sample from the k most likely tokens only, or None.
        top_p: sample from the fewest tokens whose probabilities sum to p, or None. Neither `top_p`
            nor `top_k` changes the returned log-probabilities.
        greedy: take the most likely token instead of sampling.
        end_token: end-of-sequence token, or None.
        unrolled: unroll the loop over steps, so that tracing sees each of them; slow to compile.

    Raises:
        UserError: if a value is outside its range, or prompt and new tokens exceed the block.
    """
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
    # The model does not see the last token.
    if prompts.shape[1] + steps - 1 > model.block:
        raise UserError(
            f"a prompt of {prompts.shape[1]} tokens and {steps} new ones don't fit the model's "
            f"block of {model.block}: shorten the prompt or take fewer steps"
        )
    rows, padding = prompts.shape[0] * samples, 0 if end_token is None else end_token
    graphdef, state = nnx.split(model)
    # NNX rejects models of an outer trace, so each iteration merges its own.
    evaluating = nnx.merge(graphdef, state, copy=True)
    evaluating.eval()
    graphdef, state = nnx.split(evaluating)

    def choose(carry: Any, cache: Any, logits: jax.Array) -> Any:
        """Add a token to each completion that has not ended."""
        step, _, tokens, chosen, lengths = carry
        if greedy:
            token = jnp.argmax(logits, axis=-1)
        else:
            allowed = _truncated(logits / temperature, top_k, top_p)
            token = jax.random.categorical(jax.random.fold_in(key, step), allowed)
        token = token.astype(jnp.int32)
        alive = lengths == steps
        tokens = tokens.at[:, step].set(jnp.where(alive, token, padding))
        log_prob = jnp.where(alive, log_probs(logits, token, temperature), 0.0)
        chosen = chosen.at[:, step].set(log_prob)
        if end_token is not None:
            lengths = jnp.where(alive & (token == end_token), step + 1, lengths)
        return step + 1, cache, tokens, chosen, lengths

    def running(carry: Any) -> jax.Array:
        step, _, _, _, lengths = carry
        more = step < steps
        return more if end_token is None else more & jnp.any(lengths == steps)

    def advance(carry: Any) -> Any:
        step, cache, tokens, _, _ = carry
        last = jax.lax.dynamic_slice_in_dim(tokens, step - 1, 1, axis=1)
        logits, cache = nnx.merge(graphdef, state, copy=True).cached(last, cache)
        return choose(carry, cache, logits[:, 0])

    cache = evaluating.empty_cache(prompts.shape[0], prompts.shape[1] + steps - 1)
    logits, cache = evaluating.cached(prompts, cache, start=prompts.shape[1] - 1)
    logits = jnp.repeat(logits[:, -1], samples, axis=0)
    tokens = jnp.full((rows, steps), padding, jnp.int32)
    lengths = jnp.full((rows,), steps, jnp.int32)
    start = 0, None, tokens, jnp.zeros((rows, steps), logits.dtype), lengths
    carry = choose(start, cache.repeated(samples), logits)
    if unrolled:
        for step in range(1, steps):
            carry = advance((step, *carry[1:]))
    else:
        carry = jax.lax.while_loop(running, advance, (jnp.ones((), jnp.int32), *carry[1:]))
    return Completions(*carry[2:])


def _truncated(logits: jax.Array, top_k: int | None, top_p: float | None) -> jax.Array:
    """Return logits (N, V) with -inf for tokens outside `top_k` and `top_p`."""
    if top_k is not None and top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    if top_p is not None and top_p < 1:
        # Keep a token if all more likely tokens together have a probability below p.
        order = jnp.argsort(-logits, axis=-1)
        p = jnp.take_along_axis(nnx.softmax(logits), order, axis=-1)
        kept = jnp.cumsum(p, axis=-1) - p < top_p
        kept = jnp.put_along_axis(jnp.zeros_like(kept), order, kept, axis=-1, inplace=False)
        logits = jnp.where(kept, logits, -jnp.inf)
    return logits
