"""Sampling with and without the cache, and a policy's whole step, in one process.

    python -m benchmarks.sampling

Without a cache each new token needs a pass over the growing text. Passes of a few lengths, in the
middles of equal parts of the horizon, alternate with whole cached sampling, and their mean stands
for all; each must sample the same token as the cached one.
"""

import argparse
import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from input_pipeline.text.files import rows, token_data
from input_pipeline.tokenizers import Characters
from models import GPT
from trainers.api import resolve
from trainers.build import make_experiment
from trainers.completions.sampling import sample
from trainers.loop.compiled import compile_chunk


def timed(run: Callable[[], jax.Array]) -> float:
    """Return the seconds of a call."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def sampling(model: GPT, given: argparse.Namespace) -> None:
    """Print the times of both ways of sampling."""
    prompts = jnp.zeros((given.prompts, 1), jnp.int32)
    key, sequences = jax.random.key(0), given.prompts * given.samples

    @nnx.jit
    def cached(model: GPT) -> jax.Array:
        return sample(model, prompts, steps=given.steps, key=key, samples=given.samples).tokens

    @nnx.jit
    def drawn(model: GPT, text: jax.Array, step: jax.Array) -> jax.Array:
        last = model(text)[:, -1]
        return jax.random.categorical(jax.random.fold_in(key, step), last).astype(jnp.int32)

    size = sum(
        leaf.nbytes for leaf in jax.tree.leaves(model.empty_cache(sequences, given.steps).layers)
    )
    print(f"{sequences} sequences, {given.steps} tokens, {given.attention}, {size / 1e6:.0f} MB")
    tokens = cached(model)
    text = jnp.concatenate([jnp.repeat(prompts, given.samples, 0), tokens], axis=1)
    passes = {
        length: functools.partial(drawn, model, text[:, :length], jnp.asarray(length - 1))
        for length in ((2 * part + 1) * given.steps // (2 * given.passes) + 1
                       for part in range(given.passes))
    }  # fmt: skip
    same = [jnp.mean(run() == tokens[:, length - 1]) for length, run in passes.items()]
    print(f"tokens that are the same with and without: {float(np.mean(same)):.4f}")
    fast, slow = [], []
    for _ in range(given.turns):
        fast.append(timed(lambda: cached(model)))
        slow.append(given.steps * float(np.mean([timed(run) for run in passes.values()])))
    lengths = ", ".join(map(str, passes))
    show(f"{'cached':9}", fast, sequences * given.steps, "tok/s")
    show(f"{'uncached':9}", slow, sequences * given.steps, f"tok/s, from lengths {lengths}")
    print(f"ratio {np.median(slow) / np.median(fast):.1f}")


def iteration(given: argparse.Namespace) -> None:
    """Print the time of a step of GRPO: sampling, rewards, KL and update."""
    generator = np.random.default_rng(0)
    drawn = generator.integers(0, given.vocabulary, given.prompts * (given.steps + 1))
    made = rows(drawn.astype(np.uint8), given.steps, given.steps + 1, "training")
    characters = "".join(map(chr, range(32, 32 + given.vocabulary)))
    assert made is not None
    data = token_data("synthetic", made, None, made, Characters(characters))
    shape = {name: getattr(given, name) for name in ("layers", "heads", "width", "attention")}
    options = {"batch_size": given.prompts, "samples": given.samples, "horizon": given.steps}
    config = resolve(
        "shakespeare_grpo",
        [
            *(f"model.{name}={value}" for name, value in shape.items()),
            *(f"trainer.{name}={value}" for name, value in options.items()),
            "trainer.prompt=1",
            "trainer.epochs=100",
        ],
    )
    experiment = make_experiment(config, data)
    chunk, state = compile_chunk(experiment), experiment.init()
    arrays, order = dict(experiment.train), experiment.order(0)
    times = []
    for turn in range(given.turns + 1):
        start = time.perf_counter()
        state, _, (broken, _) = jax.block_until_ready(chunk(state, arrays, order, 1))
        assert int(broken) < 0, "a value that is not finite appeared"
        times += [time.perf_counter() - start] if turn else []
    show("one step of GRPO", times, given.prompts * given.samples * given.steps, "tok/s")


def show(what: str, seconds: list[float], tokens: int, unit: str) -> None:
    """Print the median over the turns."""
    median = float(np.median(seconds))
    print(f"{what} {median:8.2f} s {tokens / median:9.0f} {unit}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in {
        "layers": 6, "heads": 6, "width": 384, "vocabulary": 65, "prompts": 32, "samples": 4,
        "steps": 70, "turns": 3, "passes": 4,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--attention", default="multi_head", choices=("multi_head", "latent"))
    parser.add_argument("--only", choices=("sampling", "grpo"), help="leave out the other part")
    given = parser.parse_args()
    if given.only != "grpo":
        model = GPT(
            (given.steps,),
            given.vocabulary,
            layers=given.layers,
            heads=given.heads,
            width=given.width,
            attention=given.attention,
            rngs=nnx.Rngs(0),
        )
        sampling(model, given)
    if given.only != "sampling":
        iteration(given)


if __name__ == "__main__":
    main()
