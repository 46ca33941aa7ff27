"""Timings of cases as a table and a figure."""

import dataclasses
import os
import pathlib
import platform
import resource
import statistics
import sys

import jax
import numpy as np
from rich import box
from rich.table import Table


@dataclasses.dataclass(frozen=True)
class Timing:
    """Measurements of one case; times per example in µs, one per turn.

    Attributes:
        case: name of the case.
        original: times of the original.
        ours: times of ours.
        original_compile: seconds until the original's first result.
        ours_compile: seconds to trace and compile ours.
        ours_temporary: bytes that our loop needs besides state and data.
        parameters: number of our parameters.
    """

    case: str
    original: list[float]
    ours: list[float]
    original_compile: float
    ours_compile: float
    ours_temporary: int
    parameters: int

    @property
    def medians(self) -> tuple[float, float]:
        """Medians of the original's and of our times."""
        return statistics.median(self.original), statistics.median(self.ours)


def environment() -> dict[str, str | int]:
    """Return the environment of a measurement, and the peak memory of this process so far."""
    # Linux counts in KiB, macOS in bytes.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "device": jax.devices()[0].device_kind,
        "cores": len(affinity(0)) if affinity else os.cpu_count() or 1,
        "load": f"{os.getloadavg()[0]:.1f}",
        "jax": jax.__version__,
        "python": platform.python_version(),
        "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit,
    }


def table(timings: list[Timing], caption: str) -> Table:
    """Return the measurements as a table."""
    title = "784-256-10, batch 1: µs per example, seconds to compile, our buffers"
    made = Table(title=title, caption=caption, box=box.SIMPLE)
    made.add_column("case", no_wrap=True)
    for title in ("original", "ours", "ratio", "compile", "ours", "MiB"):
        made.add_column(title, justify="right", no_wrap=True)
    for t in timings:
        before, after = t.medians
        ratios = [a / b for a, b in zip(t.original, t.ours, strict=True)]
        made.add_row(
            t.case,
            f"{before:,.0f}",
            f"{after:,.1f}",
            f"{before / after:.1f}× ({min(ratios):.1f}-{max(ratios):.1f})",
            f"{t.original_compile:.1f}",
            f"{t.ours_compile:.1f}",
            f"{t.ours_temporary / 2**20:.2f}",
        )
    return made


def plot(timings: list[Timing], caption: str, path: pathlib.Path) -> None:
    """Draw the medians as horizontal bars on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.7 * len(timings)), layout="constrained")
    rows = np.arange(len(timings))
    before, after = np.array([t.medians for t in timings]).T
    axes.barh(rows - 0.2, before, 0.38, label="one call per example, as published", color="#b8b8b8")
    axes.barh(rows + 0.2, after, 0.38, label="grlu", color="#0b6e8f")
    for row, (b, a) in enumerate(zip(before, after, strict=True)):
        axes.text(b, row - 0.2, f" {b:,.0f}", va="center")
        axes.text(a, row + 0.2, f" {a:,.0f}  ({b / a:.1f}× faster)", va="center")
    axes.set_xscale("log")
    axes.set_xlim(min(after) / 3, max(before) * 3)
    axes.set_yticks(rows, [t.case for t in timings])
    axes.invert_yaxis()
    axes.set(xlabel="µs per example (log scale)", title="Time per example, 784-256-10, batch 1")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    figure.supxlabel(caption, fontsize=8, color="#606060")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
