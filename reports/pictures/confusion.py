"""Picture of the confusion matrix."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from reports.style import Picture, Theme, picture

_MOST_NUMBERED = 20


def confusion_matrix(
    counts: np.ndarray, seeds: int, names: Sequence[Any], *, of: str = ""
) -> Picture:
    """Draw a confusion matrix.

    Args:
        counts: test examples, shape (true class, predicted class).
        seeds: number of seeds over which the counts are summed.
        names: names of the classes.
        of: label of the run.
    """
    classes, examples = len(counts), int(counts.sum())
    fraction = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    errors = np.where(np.eye(classes, dtype=bool), np.nan, fraction)

    def draw(theme: Theme) -> Figure:
        figure = Figure(figsize=(6.4, 6.2))
        axes = figure.subplots()
        # Errors have their own scale: next to correct predictions they would be invisible.
        top = max(float(np.nanmax(errors, initial=0)), 1e-9)
        axes.imshow(errors, cmap=theme.shades(1), vmin=0, vmax=top)
        correct = np.where(np.eye(classes, dtype=bool), fraction, np.nan)
        axes.imshow(correct, cmap=theme.shades(0), vmin=0, vmax=1.6)
        ticks = range(classes) if classes <= _MOST_NUMBERED else range(0, classes, classes // 10)
        axes.set_xticks(list(ticks), [str(names[i]) for i in ticks])
        axes.set_yticks(list(ticks), [str(names[i]) for i in ticks])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        if classes <= _MOST_NUMBERED:
            for row, column in np.argwhere(counts):
                dark = row != column and errors[row, column] > 0.6 * top
                axes.text(
                    column,
                    row,
                    f"{counts[row, column]}",
                    ha="center",
                    va="center",
                    fontsize=11 if classes <= 10 else 8,
                    color=theme.surface if dark else theme.ink,
                )
        return figure

    wrong = examples - int(np.trace(counts))
    over = f", summed over {seeds} seeds" if seeds > 1 else ""
    caption = (
        f"{wrong:,} of {examples:,} test predictions are wrong{over}. Shades: fraction of the true "
        "class; errors have their own scale."
    )
    return picture("confusion", "Confusion on the test split", caption, draw, of=of)
