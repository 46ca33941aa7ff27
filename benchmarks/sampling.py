"""Sampling with the cache against sampling without, in one process.

    python -m benchmarks.sampling

Each new token without a cache takes a pass over all places, compiled as one loop like the other.
"""

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models import GPT
from trainers.sampling import sample


def uncached(model: GPT, prompts: jax.Array, key: jax.Array, steps: int) -> jax.Array:
    """`steps` tokens after each prompt, by a whole pass each: the plain way to sample."""
    graphdef, state = nnx.split(model)
    given = prompts.shape[1]
    text = jnp.pad(prompts, ((0, 0), (0, steps)))

    def advance(t: jax.Array, text: jax.Array) -> jax.Array:
        logits = nnx.merge(graphdef, state, copy=True)(text[:, :-1])
        last = jax.lax.dynamic_index_in_dim(logits, t - 1, axis=1, keepdims=False)
        drawn = jax.random.categorical(jax.random.fold_in(key, t - given), last)
        return text.at[:, t].set(drawn.astype(text.dtype))

    return jax.lax.fori_loop(given, given + steps, advance, text)[:, given:]


def seconds(run: Callable[[], jax.Array], turns: int) -> list[float]:
    """Wall time of each turn, after one to compile."""
    jax.block_until_ready(run())
    times = []
    for _ in range(turns):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in {
        "layers": 6, "heads": 6, "width": 384, "vocabulary": 65, "prompts": 32, "samples": 4,
        "steps": 70, "turns": 3,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--attention", default="multi_head", choices=("multi_head", "latent"))
    parser.add_argument("--no-uncached", action="store_true", help="leave out the slow one")
    given = parser.parse_args()
    model = GPT(
        (given.steps,),
        given.vocabulary,
        layers=given.layers,
        heads=given.heads,
        width=given.width,
        attention=given.attention,
        rngs=nnx.Rngs(0),
    )
    prompts = jnp.zeros((given.prompts, 1), jnp.int32)
    key, rows = jax.random.key(0), given.prompts * given.samples

    @nnx.jit
    def fast(model: GPT) -> jax.Array:
        return sample(model, prompts, steps=given.steps, key=key, samples=given.samples).tokens

    @nnx.jit
    def slow(model: GPT) -> jax.Array:
        return uncached(model, jnp.repeat(prompts, given.samples, 0), key, given.steps)

    size = sum(leaf.nbytes for leaf in jax.tree.leaves(model.empty_cache(rows, given.steps).layers))
    print(f"{rows} sequences, {given.steps} tokens, {given.attention}, cache {size / 1e6:.1f} MB")
    times = {"cached": seconds(lambda: fast(model), given.turns)}
    if not given.no_uncached:
        same = float(jnp.mean(fast(model) == slow(model)))
        times["uncached"] = seconds(lambda: slow(model), given.turns)
        print(f"tokens that are the same: {same:.4f}")
    for name, each in times.items():
        print(
            f"{name:9} {np.median(each):8.2f} s {rows * given.steps / np.median(each):9.0f} tok/s"
        )
    if not given.no_uncached:
        print(f"ratio     {np.median(times['uncached']) / np.median(times['cached']):8.1f}")


if __name__ == "__main__":
    main()
