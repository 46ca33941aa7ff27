"""Cosine and accuracy against N over active units, for networks of three widths.

    python -m benchmarks.sparse.coverage runs/coverage --plot docs/coverage.png

Three sparse hidden layers with k = 20 learn MNIST for one epoch, one example at a time, from N
directions of orthogonal noise against the clean pass. 70 units of an example are active at every
width. *Cosine*: of the estimate for one example to its exact gradient before training, weighted by
the length of both, over 64 images. *Accuracy*: on 5,000 held-out images, over the seeds; for each N
and width, the best of three learning rates by the first seed. Finished runs are only read.
"""

import pathlib
from typing import Annotated, Any

import jax
import numpy as np
import typer
from flax import nnx
from jax.flatten_util import ravel_pytree
from rich.progress import track

import grlu
import input_pipeline
import models
import trainers
from grlu.rules.rule import pure_objective
from trainers.loop.run_dir import RunDirectory, latest_metrics
from trainers.objectives.registry import Classification, log_likelihood

WIDTHS, SAMPLES, RATES = (250, 1000, 4000), (8, 16, 32, 48, 72, 144), (0.1, 0.03, 0.01)
DEPTH, WINNERS, CLASSES, IMAGES = 3, 20, 10, 64
ACTIVE = DEPTH * WINNERS + CLASSES


def accuracy(folder: pathlib.Path, width: int, samples: int, rate: float, seed: int) -> float:
    """Return the held-out accuracy of a run in %; train it if it does not exist."""
    run = folder / f"{width}-{samples}-{rate:g}-{seed}"
    table = RunDirectory(run).metrics
    if not table.is_file() or "test_accuracy" not in latest_metrics(table):
        changes = [f"model.hidden={(width,) * DEPTH}", "model.among=all", f"seed={seed}"]
        changes += [
            f"trainer.samples={samples}",
            f"trainer.learning_rate={rate}",
            "trainer.epochs=1",
        ]
        trainers.train("mnist_sparse10", run, overrides=changes, overwrite=True, progress=False)
    return 100 * latest_metrics(table)["validation_accuracy"]


def cosine(width: int, samples: int) -> float:
    """Return the weighted cosine of the estimates of a new network."""
    data = input_pipeline.load("mnist", validation=5000)
    batch = data.preprocess({key: rows[:IMAGES] for key, rows in data.train.items()})
    options: Any = {"hidden": (width,) * DEPTH, "winners": (WINNERS,), "among": "all"}
    model = models.SparseMLP((784,), CLASSES, **options, rngs=nnx.Rngs(0))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    objective = pure_objective(graphdef, Classification(log_likelihood), has_aux=True)
    noise: Any = {"noise": "orthogonal", "antithetic": False}
    rules = grlu.NodePerturbation(samples, 1e-3, **noise), grlu.Backprop()

    @jax.jit
    def products(example: Any, key: jax.Array) -> jax.Array:
        one = jax.tree.map(lambda a: a[None], example)
        a, b = (
            ravel_pytree(rule.estimate(objective, params, rest, one, key)[2])[0] for rule in rules
        )
        return jax.numpy.stack([a @ b, a @ a, b @ b])

    keys = jax.random.split(jax.random.key(0), IMAGES)
    rows = [products({k: v[i] for k, v in batch.items()}, keys[i]) for i in range(IMAGES)]
    dot, one, two = np.asarray(rows, np.float64).sum(0)
    return float(dot / np.sqrt(one * two))


def main(
    folder: Annotated[pathlib.Path, typer.Argument(help="Folder for the runs.")],
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0, 1, ...")] = 3,
    plot: Annotated[pathlib.Path | None, typer.Option(help="PNG to write.")] = None,
) -> None:
    """Print the table as Markdown, and draw it."""
    cases = [(width, samples) for width in WIDTHS for samples in SAMPLES]
    cosines, found = {}, {}
    for case in track(cases, "coverage"):
        cosines[case] = cosine(*case)
        rates = {accuracy(folder, *case, rate, seed=0): rate for rate in RATES}
        best = rates[max(rates)]
        found[case] = np.array([accuracy(folder, *case, best, seed) for seed in range(seeds)])
    print("| N | N / active | " + " | ".join(f"{w:,} units per layer" for w in WIDTHS) + " |")
    print("|---" * (len(WIDTHS) + 2) + "|")
    for samples in SAMPLES:
        cells = [
            f"{cosines[w, samples]:.3f}, {found[w, samples].mean():.1f} ± "
            f"{found[w, samples].std(ddof=min(1, seeds - 1)):.1f}"
            for w in WIDTHS
        ]
        print(f"| {samples} | {samples / ACTIVE:.2f} | " + " | ".join(cells) + " |")
    if plot is not None:
        draw(cosines, found, plot)


def draw(cosines: Any, found: Any, path: pathlib.Path) -> None:
    """Draw cosine (left) and accuracy (right) against N over the number of active units."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.size": 12})
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    ratios = np.array(SAMPLES) / ACTIVE
    for i, width in enumerate(WIDTHS):
        label, colour = f"{width:,} units per layer", f"C{i}"
        left.plot(ratios, [cosines[width, n] for n in SAMPLES], "o-", label=label, color=colour)
        mean, spread = (np.array([f(found[width, n]) for n in SAMPLES]) for f in (np.mean, np.std))
        right.errorbar(ratios, mean, spread, fmt="o-", capsize=3, label=label, color=colour)
    for axes in (left, right):
        axes.axvline(1, color="#a0a0a0", ls="--", lw=1)
        axes.set_xscale("log", base=2)
        axes.set_xticks([1 / 8, 1 / 4, 1 / 2, 1, 2], ["1/8", "1/4", "1/2", "1", "2"])
        axes.set_xlabel("directions N ÷ active units")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    left.set(ylabel="cosine to the exact gradient", ylim=(0, 1.03))
    right.set(ylabel="held-out accuracy after one epoch, %")
    left.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    typer.run(main)
