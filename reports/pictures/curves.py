"""Pictures of curves: metrics by epoch, and accuracy against its cost in forward passes."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from reports.passes import passes_per_example
from reports.record import Record
from reports.style import MARKERS, Picture, Theme, picture
from reports.units import named, number, scale, unit

_BAND = "Bands are ± 1 standard deviation over the seeds."


def learning_curves(records: Sequence[Record]) -> Picture | None:
    """Draw each metric by epoch, one panel per metric; return None if no run has metrics yet."""
    shown = [(record, record.shown) for record in records]
    metrics = list(dict.fromkeys(name for _, each in shown for name in each.metrics))

    def points(name: str) -> int:
        series = (each.series(s, name) for _, each in shown for s in ("train", "validation"))
        return max(len(each["mean"]) for each in series)

    # A single point is not a curve, unless no metric has more.
    least = min(2, max((points(name) for name in metrics), default=1))
    metrics = [name for name in _chosen(metrics) if points(name) >= least]
    if not metrics:
        return None

    def draw(theme: Theme) -> Figure:
        columns = min(3, len(metrics))
        rows = -(-len(metrics) // columns)
        height = 4.0 + _legend_height(len(shown))
        figure = Figure(figsize=(5.2 * columns + 0.4, rows * height))
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in panels[len(metrics) :]:
            axes.set_axis_off()
        for axes, metric in zip(panels, metrics, strict=False):
            for i, (record, each) in enumerate(shown):
                _curve(axes, each, metric, theme, i, record.label if len(shown) > 1 else "")
            _frame(axes, "epoch", named(metric, *(each.config for _, each in shown)))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return figure

    caption = "Solid: validation; dashed: training, before each update."
    if any(each.seeds > 1 for _, each in shown):
        caption += f" {_BAND}"
    return picture("curves", "Learning curves", caption, draw, of=_only(records))


def _chosen(metrics: Sequence[str]) -> list[str]:
    """Choose the metrics to draw: the first three and alignment; for a policy, diagnostics."""
    if "advantage" not in metrics:
        others = [name for name in metrics if name != "alignment"]
        return [*others[:3], *(name for name in metrics if name == "alignment")]
    rewards = [name for name in metrics if name.partition("_")[0] == "reward"][:3]
    found = ["kl", "entropy", "nll", "pass_1", *(["length"] if "cut_off" in metrics else [])]
    return [*rewards, *(name for name in found if name in metrics)][:6]


def accuracy_by_passes(records: Sequence[Record]) -> Picture | None:
    """Draw held-out accuracy against forward passes of training; return None if unknown."""
    known = []
    for i, record in enumerate(records):
        each, cost = record.shown, passes_per_example(record.shown.config)
        split = "validation" if len(each.series("validation", "accuracy")["mean"]) else "train"
        series = each.series(split, "accuracy")
        before = _passes_before(record)
        if cost and before is not None and len(series["mean"]) and series["step"][-1] > 0:
            passes = before + series["step"] * each.section("trainer")["batch_size"] * cost[0]
            words = cost[1] if not before else f"{cost[1]}, after {before:,.0f} in earlier stages"
            known.append((i, record.label, split, passes, series, (cost[0], words)))
    if not known:
        return None

    def draw(theme: Theme) -> Figure:
        figure = Figure(figsize=(7.2, 4.0 + _legend_height(len(known))))
        axes = figure.subplots()
        for i, label, _, passes, series, (count, _) in known:
            text = f"{label}: {count:,} per example"
            _line(axes, passes, series, 100.0, theme, i, text)
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 300 * low else (1, 2, 5)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_formatter(NullFormatter())
        splits = {split for _, _, split, *_ in known}
        name = f"{splits.pop()} accuracy (%)" if len(splits) == 1 else "accuracy (%)"
        _frame(axes, "forward passes spent on training, per seed", name)
        return figure

    stated = "; ".join(f"{label}: {words}" for _, label, _, _, _, (_, words) in known)
    caption = (
        f"Passes per training example: {stated}. The clean pass next to noisy ones isn't counted."
    )
    return picture("passes", "Accuracy against forward passes", caption, draw, of=_only(records))


def _passes_before(record: Record) -> float | None:
    """Return the forward passes of the stages before the one with the metrics, if known."""
    if record.shown not in record.stages:
        return 0.0
    total = 0.0
    for stage in record.stages[: record.stages.index(record.shown)]:
        steps = max(stage.columns.get("step", ()), default=0)
        cost = passes_per_example(stage.config)
        if cost is None and steps:
            return None
        total += steps * stage.section("trainer").get("batch_size", 0) * (cost[0] if cost else 0)
    return total


def _only(records: Sequence[Record]) -> str:
    return records[0].label if len(records) == 1 else ""


def _curve(axes: Axes, record: Record, metric: str, theme: Theme, i: int, label: str) -> None:
    """Draw a metric's validation curve with its band, or else its training curve."""
    train, held_out = (record.series(split, metric) for split in ("train", "validation"))
    factor = scale(metric)
    final = held_out if len(held_out["mean"]) else train
    if not len(final["mean"]):
        return
    split = "validation" if final is held_out else "training"
    spread = float(final["sd"][-1]) if record.seeds > 1 else None
    value = f"{split} {number(metric, float(final['mean'][-1]), spread)}"
    value = f"{value} {unit(metric, record.config)}".strip()
    text = f"{label}: {value}" if label else value
    if final is held_out:
        train_label = None if label or not len(train["mean"]) else "training"
        axes.plot(
            train["epoch"],
            factor * train["mean"],
            color=theme.line(i),
            lw=1.2,
            ls=(0, (4, 2)),
            alpha=0.75,
            label=train_label,
        )
    _line(axes, final["epoch"], final, factor, theme, i, text)


def _line(
    axes: Axes,
    x: np.ndarray,
    series: dict[str, np.ndarray],
    factor: float,
    theme: Theme,
    i: int,
    label: str,
) -> None:
    mean, sd, colour = factor * series["mean"], factor * series["sd"], theme.line(i)
    axes.fill_between(x, mean - sd, mean + sd, color=colour, alpha=0.22, lw=0)
    marker = MARKERS[i % len(MARKERS)]
    every = max(1, len(x) // 12)
    axes.plot(x, mean, color=colour, marker=marker, markersize=5, markevery=every, label=label)


def _frame(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(True)
    # Below the axes, so that it covers no line.
    axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.15), fontsize=10, borderpad=0)


def _legend_height(runs: int) -> float:
    """Return the height of a legend in inches, with a line per run but at least two."""
    return 0.25 * max(runs, 2) + 0.1
