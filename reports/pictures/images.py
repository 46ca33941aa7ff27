"""Pictures of receptive fields and reconstructions."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from reports.style import Picture, Theme, picture


def receptive_fields(fields: np.ndarray, convolution: bool, *, of: str = "") -> Picture:
    """Draw weights, shape (units, height, width, depth), each unit on its own scale."""
    columns = min(8, len(fields))
    rows = -(-len(fields) // columns)

    def draw(theme: Theme) -> Figure:
        close = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0.0, hspace=0.0)
        figure = Figure(figsize=(6.4, 0.78 * rows + 0.5), layout=close)
        cells = figure.subplots(rows, columns, squeeze=False).flat
        for axes in cells:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(visible=True, color=theme.grid)
        for axes in figure.axes[len(fields) :]:
            axes.set_visible(False)
        for axes, field in zip(figure.axes, fields, strict=False):
            limit = float(np.abs(field).max()) or 1.0
            if field.shape[-1] == 3:
                axes.imshow(0.5 + field / (2 * limit))
            else:
                axes.imshow(field[..., 0], cmap=theme.diverging, vmin=-limit, vmax=limit)
        return figure

    what = "kernels of the first convolution" if convolution else "input weights of hidden units"
    signs = "red excites, blue inhibits, " if fields.shape[-1] == 1 else ""
    caption = f"The {len(fields)} strongest {what}, {signs}each on its own scale."
    title = "Convolution kernels" if convolution else "Receptive fields"
    return picture("fields", title, caption, draw, of=of)


def reconstructions(inputs: np.ndarray, outputs: np.ndarray, *, of: str = "") -> Picture:
    """Draw inputs above outputs, both of shape (images, height, width, depth)."""
    low, high = float(inputs.min()), float(inputs.max())

    def show(axes: Axes, image: np.ndarray) -> None:
        unit = np.clip((image - low) / (high - low or 1.0), 0, 1)
        axes.imshow(unit[..., 0] if image.shape[-1] != 3 else unit, cmap="gray", vmin=0, vmax=1)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)

    def draw(theme: Theme) -> Figure:
        figure = Figure(figsize=(max(3.0, 0.85 * len(inputs) + 0.5), 2.5))
        cells = figure.subplots(2, len(inputs), squeeze=False)
        for above, below, image, made in zip(*cells, inputs, outputs, strict=True):
            show(above, image)
            show(below, made)
        for row, words in zip(cells, ("input", "output"), strict=True):
            row[0].set_ylabel(words)
        return figure

    caption = (
        f"Test images above, the model's outputs below; mean squared error "
        f"{np.mean((inputs - outputs) ** 2):.3g} on these."
    )
    return picture("reconstructions", "Reconstructions", caption, draw, of=of)
