"""Cosine of a run's estimates to the exact gradient, at its start and at its checkpoints.

    python -m benchmarks.sparse.cosine RUN

Each of the first training images is estimated by itself, without augmentation. *Weighted*: images
count by the lengths of their estimate and gradient, as in an update. *Mean*: each image counts the
same, also a settled one, whose gradient is small and drowned by float32's rounding of the rewards.
"""

import dataclasses
import json
import pathlib
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import typer
from jax.flatten_util import ravel_pytree

import grlu
from checkpoints import Checkpoints
from trainers.api import resolve
from trainers.loop.run_dir import RunDirectory
from trainers.pipelines.open import open_experiment


def main(
    run: Annotated[pathlib.Path, typer.Argument(help="Folder of a run of the grlu trainer.")],
    images: Annotated[int, typer.Option(min=1, help="Number of training images.")] = 64,
    sigma: Annotated[float | None, typer.Option(help="Noise scale, if not the run's.")] = None,
    pairs: Annotated[bool, typer.Option("--pairs", help="Use antithetic pairs.")] = False,
) -> None:
    """Print the weighted and the mean cosine of a run's estimates."""
    folder = RunDirectory(run)
    experiment = open_experiment(resolve(json.loads(folder.config.read_text())), folder, begun=True)
    trainer: Any = experiment.trainer
    rule = trainer.settings.rule(sigma or float(trainer.sigma(0)))
    rule = dataclasses.replace(rule, antithetic=True) if pairs else rule
    objective = trainer.pure(jnp.zeros((), jnp.int32))
    data = {key: array[:images] for key, array in experiment.train.items()}
    batch = experiment.preprocess(data)

    def products(params: Any, rest: Any, example: Any, key: jax.Array) -> jax.Array:
        one = jax.tree.map(lambda a: a[None], example)
        found = [r.estimate(objective, params, rest, one, key)[2] for r in (rule, grlu.Backprop())]
        flat = [ravel_pytree(g)[0] for g in found]
        return jnp.stack([flat[0] @ flat[1], flat[0] @ flat[0], flat[1] @ flat[1]])

    compiled = jax.jit(products)
    keys = jax.random.split(jax.random.key(0), images)
    with Checkpoints(folder.checkpoints) as checkpoints:
        states = {0: experiment.init()}
        states |= {s: checkpoints.restore(states[0], step=s).state for s in checkpoints.steps}
    for step, state in sorted(states.items()):
        rows = [
            compiled(state.params, state.rest, {k: v[i] for k, v in batch.items()}, keys[i])
            for i in range(images)
        ]
        dot, one, two = np.asarray(rows, np.float64).T
        cosines = dot[one * two > 0] / np.sqrt((one * two)[one * two > 0])
        weighted = dot.sum() / np.sqrt(one.sum() * two.sum())
        print(f"step {step}: weighted {weighted:.5f}, mean {cosines.mean():.3f}")


if __name__ == "__main__":
    typer.run(main)
