"""The README's picture: learning curves of several runs, and the input weights of hidden units.

    python -m benchmarks.picture runs/mnist_grlu runs/mnist_backprop --out docs/mnist.png

The curves show validation accuracy by epoch, with a band of one standard deviation for several
seeds; the images are input weights of hidden units of the first run's first seed.
`grlu report` draws more figures.
"""

import argparse
import pathlib
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from reports.learned import learned
from reports.record import read_record
from reports.style import LIGHT, settings


def draw(runs: list[pathlib.Path], out: pathlib.Path) -> None:
    """Draw the picture to a PNG."""
    records = [read_record(run) for run in runs]
    fields = learned(records[0]).fields
    if fields is None:
        raise SystemExit(f"{runs[0]} has no layer that sees the image")
    figure = Figure(figsize=(10, 4.2))
    panels: Any = figure.subfigures(1, 2, width_ratios=(1.15, 1))
    left, right = panels
    axes = left.subplots()
    for i, record in enumerate(records):
        series = record.series("validation", "accuracy")
        epoch, mean, sd = series["epoch"], 100 * series["mean"], 100 * series["sd"]
        axes.plot(epoch, mean, color=LIGHT.line(i), marker="o", markersize=4)
        axes.fill_between(epoch, mean - sd, mean + sd, color=LIGHT.line(i), alpha=0.2, lw=0)
        axes.annotate(
            f"{record.label}  {mean[-1]:.1f} %",
            (epoch[-1], mean[-1]),
            xytext=(0, -26),
            textcoords="offset points",
            ha="right",
            color=LIGHT.line(i),
            weight="bold",
        )
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation accuracy (%)")
    axes.grid(True)
    axes.set_title("Learning from reward alone, and by backprop")
    right.suptitle(f"What hidden units of {records[0].label} look for")
    for axis, field in zip(right.subplots(5, 6).flat, fields[..., 0], strict=False):
        limit = np.abs(field).max()
        axis.imshow(field, cmap=LIGHT.diverging, vmin=-limit, vmax=limit)
        axis.set_axis_off()
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=pathlib.Path, help="run folders")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the PNG to write")
    arguments = parser.parse_args()
    with mpl.rc_context(settings(LIGHT)):
        draw(arguments.runs, arguments.out)
