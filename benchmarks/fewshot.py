"""Test accuracy after a few examples of each class, on frozen latents and on controls.

    python -m benchmarks.fewshot runs/fewshot

Trains `mnist_fewshot` for each number of examples, condition and seed; each
seed has its own weights, autoencoder and examples, and the conditions share the examples. Finished
runs are only read.
"""

import pathlib
from typing import Annotated

import numpy as np
import typer
from rich.progress import track

import trainers
from trainers.loop.run_dir import RunDirectory

# Input of the head -> overrides of the config.
CONDITIONS = {
    "an autoencoder's latents": [],
    "the same, random": ["stages.slow.trainer.epochs=0"],
    "the pixels": ["stages.slow.trainer.epochs=0", "stages.fast.features=null"],
}


def accuracy(folder: pathlib.Path, condition: str, count: int, seed: int) -> float:
    """Return the test accuracy of a run in %; train it if it does not exist."""
    named = f"{list(CONDITIONS).index(condition)}-{{}}-{seed}"
    run = folder / named.format(count)
    if RunDirectory(run).summary.is_file():
        return 100 * trainers.evaluate(run)["test_accuracy"]
    changes = [f"seed={seed}", f"stages.fast.dataset.split_seed={seed}"]
    changes += [f"stages.fast.dataset.per_class={count}", *CONDITIONS[condition]]
    # All numbers of examples share one backbone.
    others = [p for p in folder.glob(named.format("*")) if RunDirectory(p).summary.is_file()]
    if others:
        changes = [c for c in changes if not c.startswith("stages.slow.")]
        changes.append(f"stages.slow.backbone={min(others) / 'stages' / 'slow'}")
    result = trainers.train("mnist_fewshot", run, overrides=changes, overwrite=True, progress=False)
    return 100 * result.metrics["test_accuracy"]


def main(
    folder: Annotated[pathlib.Path, typer.Argument(help="Folder for the runs.")],
    counts: Annotated[str, typer.Option(help="Examples of each class.")] = "1,5,10,50",
    seeds: Annotated[int, typer.Option(help="Seeds 0, 1, ...")] = 3,
) -> None:
    """Print the table as Markdown: mean and standard deviation over the seeds."""
    numbers = [int(n) for n in counts.split(",")]
    cases = [(c, n, s) for s in range(seeds) for c in CONDITIONS for n in numbers]
    found: dict[tuple[str, int], list[float]] = {}
    for condition, count, seed in track(cases, description="few-shot"):
        value = accuracy(folder, condition, count, seed)
        found.setdefault((condition, count), []).append(value)
    print(f"| the head learns on | {' | '.join(f'{n} a class' for n in numbers)} |")
    print("|---" * (len(numbers) + 1) + "|")
    for condition in CONDITIONS:
        cells = (np.array(found[condition, n]) for n in numbers)
        values = " | ".join(f"{c.mean():.1f} ± {c.std(ddof=1):.1f}" for c in cells)
        print(f"| {condition} | {values} |")


if __name__ == "__main__":
    typer.run(main)
