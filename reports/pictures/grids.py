"""Pictures of a generative model: grids of images, and inference by step."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from reports.imagined import Imagined
from reports.style import Picture, Theme, picture


def imagination(found: Imagined, *, of: str = "") -> Iterator[Picture]:
    """Draw every picture of a generative model."""
    yield image_grid(
        "samples",
        "Samples",
        "Expected images at samples of the prior; none of them is a test image.",
        found.samples,
        of=of,
    )
    yield image_grid(
        "traversals",
        "Latent traversals",
        "Each row moves one latent from −3 to 3 and keeps the others at the code of one test "
        "image; latents in descending order of their variance over the data.",
        found.traversals,
        rows=[f"{unit}" for unit in found.units],
        of=of,
    )
    yield image_grid(
        "interpolation",
        "Interpolation",
        "First and last: test images. In between: expected images on the straight line between "
        "their codes.",
        found.lines,
        of=of,
    )
    yield image_grid(
        "refinement",
        "Inference in steps",
        "Test images, and expected images at the encoder's posterior mean (0) and after the given "
        "number of steps of gradient ascent on each image's own ELBO.",
        found.films,
        columns=["image", *map(str, found.moments)],
        of=of,
    )
    yield corrupted_by_step(found.curves, of=of)
    yield corrupted_bars(found.curves, of=of)


def image_grid(
    name: str,
    title: str,
    caption: str,
    images: np.ndarray,
    *,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    of: str = "",
) -> Picture:
    """Draw a grid of images (rows, columns, height, width, depth) on one scale."""
    down, along, height, width, depth = images.shape
    low, high = float(images.min()), float(images.max())
    unit = (images - low) / (high - low or 1.0)
    # One pixel of the page's colour between images.
    padded = np.pad(
        unit, [(0, 0), (0, 0), (0, 1), (0, 1), (0, 0)], constant_values=np.nan
    ).swapaxes(1, 2)
    whole = padded.reshape(down * (height + 1), along * (width + 1), depth)[:-1, :-1]

    def draw(theme: Theme) -> Figure:
        wide = 0.55 * along + 0.6
        figure = Figure(figsize=(max(3.0, wide), 0.55 * down * height / width + 0.8))
        axes = figure.subplots()
        if depth == 3:
            edge = np.isnan(whole).any(-1, keepdims=True)
            axes.imshow(np.concatenate([np.nan_to_num(whole), ~edge], -1).astype(float))
        else:
            axes.imshow(whole[..., 0], cmap="gray", vmin=0, vmax=1)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
        places = (np.arange(along) * (width + 1) + width / 2)[: len(columns)]
        axes.set_xticks(places, columns)
        axes.set_yticks((np.arange(down) * (height + 1) + height / 2)[: len(rows)], rows)
        return figure

    return picture(name, title, caption, draw, of=of)


def corrupted_by_step(
    curves: Mapping[str, Mapping[str, Sequence[float]]], *, of: str = ""
) -> Picture:
    """Draw the ELBO and the errors of corrupted images by step of inference."""
    panels = {
        "elbo": "ELBO (nats)",
        "clean": "error to the clean image",
        "corrupted": "error to the image shown",
    }

    def draw(theme: Theme) -> Figure:
        figure = Figure(figsize=(11.0, 3.9))
        for axes, (key, words) in zip(figure.subplots(1, 3), panels.items(), strict=True):
            for i, (name, curve) in enumerate(curves.items()):
                axes.plot(curve[key], color=theme.line(i), label=name.replace("_", " "))
            axes.set_xlabel("step of inference")
            axes.set_ylabel(words)
            axes.grid(True)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=6, fontsize=10)
        return figure

    caption = (
        "Inference on corrupted test images, starting at the encoder's posterior (step 0). Errors "
        "are mean squared errors of the expected image at the posterior's mean."
    )
    return picture("corrupted_steps", "Corrupted images by step", caption, draw, of=of)


def corrupted_bars(curves: Mapping[str, Mapping[str, Sequence[float]]], *, of: str = "") -> Picture:
    """Draw the error to the clean image per corruption, before and after inference."""
    steps = len(next(iter(curves.values()))["clean"]) - 1

    def draw(theme: Theme) -> Figure:
        figure = Figure(figsize=(7.2, 3.9))
        axes = figure.subplots()
        at = np.arange(len(curves))
        for i, (when, label) in enumerate(((0, "encoder"), (-1, f"after {steps} steps"))):
            values = [curve["clean"][when] for curve in curves.values()]
            axes.bar(at + 0.4 * (i - 0.5), values, 0.36, color=theme.line(i), label=label)
        axes.set_xticks(at, [name.replace("_", " ") for name in curves], rotation=20)
        axes.set_ylabel("error to the clean image")
        axes.legend()
        return figure

    caption = "Mean squared error per pixel between expected images and images before corruption."
    return picture("corrupted_bars", "Corrupted images", caption, draw, of=of)
