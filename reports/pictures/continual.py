"""Picture of continual learning: accuracy on every task after each task."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from reports.style import Picture, Theme, picture


def accuracy_matrix(measured: dict[str, Any], *, of: str = "") -> Picture:
    """Draw the accuracy on every task after each task.

    Args:
        measured: a pipeline's summary: "tasks", names; "accuracy", one row after each task, one
            column per task, in [0, 1]; "average_accuracy" and "forgetting"; with several seeds also
            their "_sd".
        of: label of the run.
    """
    accuracy = np.asarray(measured["accuracy"])
    tasks = measured["tasks"]

    def draw(theme: Theme) -> Figure:
        figure = Figure(figsize=(max(4.6, 0.95 * len(tasks) + 1.7), 0.72 * len(tasks) + 1.7))
        axes = figure.subplots()
        axes.imshow(accuracy, cmap=theme.shades(0), vmin=0, vmax=1.3, aspect="auto")
        axes.set_xticks(range(len(tasks)), tasks)
        axes.set_yticks(range(len(tasks)), tasks)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("accuracy (%) on")
        axes.set_ylabel("after learning")
        for (row, column), value in np.ndenumerate(accuracy):
            ink = theme.surface if value > 0.85 else theme.ink
            axes.text(column, row, f"{100 * value:.1f}", ha="center", va="center", color=ink)
        return figure

    caption = (
        f"After the last task: {_percent(measured, 'average_accuracy')} % on average; "
        f"{_percent(measured, 'forgetting')} points forgotten since each task's best."
    )
    return picture("continual", "Tasks one after the other", caption, draw, of=of)


def _percent(measured: dict[str, Any], name: str) -> str:
    spread = measured.get(f"{name}_sd")
    more = "" if spread is None else f" ± {100 * spread:.1f}"
    return f"{100 * measured[name]:.1f}{more}"
