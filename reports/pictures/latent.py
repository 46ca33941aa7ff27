"""Picture of latent codes: test images on the two principal components of their codes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from reports.style import Picture, Theme, picture


def principal_components(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates on two principal components, (images, 2), and explained variance, (2,)."""
    centred = codes - codes.mean(0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    placed = np.zeros((len(codes), 2))
    placed[:, : len(directions[:2])] = centred @ directions[:2].T
    explained = np.zeros(2)
    explained[: len(singular[:2])] = singular[:2] ** 2 / (np.sum(singular**2) or 1.0)
    return placed, explained


def latent_map(
    codes: np.ndarray, labels: np.ndarray, names: Sequence[Any], *, of: str = ""
) -> Picture:
    """Draw codes of shape (images, latent), coloured by class, with the classes' names."""
    placed, explained = principal_components(codes)
    classes = np.unique(labels)

    def draw(theme: Theme) -> Figure:
        figure = Figure(figsize=(6.4, 5.6))
        axes = figure.subplots()
        for i, each in enumerate(classes):
            colour, of = theme.classes[i % len(theme.classes)], placed[labels == each]
            axes.scatter(of[:, 0], of[:, 1], s=20, color=colour, alpha=0.7, lw=0)
            if len(classes) <= 20:
                # Do not rely on colour alone: write the class's name in a coloured frame.
                frame = {
                    "boxstyle": "circle,pad=0.25",
                    "fc": theme.surface,
                    "ec": colour,
                    "lw": 2.5,
                }
                x, y = np.median(of, axis=0)
                axes.annotate(
                    str(names[each]),
                    (x, y),
                    ha="center",
                    va="center",
                    weight="bold",
                    bbox=frame,
                    zorder=3,
                )
        axes.set_xlabel(f"component 1 ({explained[0]:.0%} of the variance)")
        axes.set_ylabel(f"component 2 ({explained[1]:.0%})")
        axes.set_xticks([])
        axes.set_yticks([])
        return figure

    caption = (
        f"{len(codes):,} test images by the two largest principal components of their "
        f"{codes.shape[1]} features; colours and names are classes, each name at the "
        "median of its class."
    )
    return picture("latent", "Latent map", caption, draw, of=of)
