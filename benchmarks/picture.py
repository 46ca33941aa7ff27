"""The README's picture: learning curves of several runs, and what hidden units look for.

    python -m benchmarks.picture runs/mnist_grlu runs/mnist_backprop --out docs/mnist.png

The curves are validation accuracy by epoch, with a band of one standard deviation where a run has
several seeds; the images are input weights of hidden units of the first run's first seed.
"""

import argparse
import pathlib
from typing import Any

import matplotlib
import numpy as np

import trainers
from trainers.loop import open_checkpoints
from trainers.run_directory import RunDirectory, read_metrics

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = ["#d1495b", "#30638e", "#3c896d", "#edae49", "#6f4a8e"]


def curve(run: pathlib.Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Epochs, validation accuracy in percent, and its standard deviation over seeds (or 0)."""
    rows = [r for r in read_metrics(run / "metrics.csv") if r.get("validation_accuracy")]
    columns = ("epoch", "validation_accuracy", "validation_accuracy_sd")
    epoch, mean, deviation = (np.array([float(r.get(c) or 0) for r in rows]) for c in columns)
    return epoch, 100 * mean, 100 * deviation


def receptive_fields(run: pathlib.Path, count: int) -> np.ndarray:
    """Input weights of the units with the largest norm, shape (count, side, side)."""
    directory = RunDirectory.open(run)
    experiment = trainers.make_experiment(trainers.resolve(directory.config))
    with open_checkpoints(experiment, directory) as checkpoints:
        state = checkpoints.restore(experiment.init()).state
    kernel = np.asarray(state.params["layers"][0]["kernel"][...])
    kernel = kernel[0] if kernel.ndim == 3 else kernel
    strongest = np.argsort(-np.linalg.norm(kernel, axis=0))[:count]
    side = round(kernel.shape[0] ** 0.5)
    return kernel[:, strongest].T.reshape(-1, side, side)


def draw(runs: list[pathlib.Path], out: pathlib.Path) -> None:
    """Draws the picture to a PNG."""
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure = plt.figure(figsize=(10, 4.2), facecolor="white", layout="constrained")
    panels: Any = figure.subfigures(1, 2, width_ratios=(1.15, 1))
    left, right = panels
    axes = left.subplots()
    for run, colour in zip(runs, COLOURS, strict=False):
        epoch, mean, deviation = curve(run)
        axes.plot(epoch, mean, color=colour, marker="o", markersize=4)
        axes.fill_between(epoch, mean - deviation, mean + deviation, color=colour, alpha=0.2, lw=0)
        axes.annotate(
            f"{run.name}  {mean[-1]:.1f} %",
            (epoch[-1], mean[-1]),
            xytext=(0, -26),
            textcoords="offset points",
            ha="right",
            color=colour,
            weight="bold",
        )
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation accuracy (%)")
    axes.grid(alpha=0.3)
    axes.set_title("Learning from reward alone, and by backprop", loc="left")
    fields = receptive_fields(runs[0], 30)
    limit = np.abs(fields).max(axis=(1, 2), keepdims=True)
    right.suptitle(f"What hidden units of {runs[0].name} look for")
    for axis, field in zip(right.subplots(5, 6).flat, fields / limit, strict=True):
        axis.imshow(field, cmap="RdBu_r", vmin=-1, vmax=1)
        axis.set_axis_off()
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=pathlib.Path, help="run folders")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the PNG to write")
    arguments = parser.parse_args()
    draw(arguments.runs, arguments.out)
