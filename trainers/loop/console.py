"""Console and dashboards of a run: progress bar, TensorBoard, W&B, tables of results."""

import logging
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from trainers.devices import processes
from trainers.loop.experiment import Experiment
from trainers.loop.run_dir import RunDirectory
from trainers.loop.wandb import WandbLogger

_log = logging.getLogger("grlu")


class Reporter:
    """Display of metrics while a run trains, in the first process; no result depends on it."""

    def __init__(self, experiment: Experiment, run: RunDirectory, *, step: int, show: bool):
        from tensorboardX import SummaryWriter

        first = processes.first()
        self._wandb = WandbLogger(run) if experiment.run.wandb and first else None
        self._events = SummaryWriter(str(run.path), purge_step=step + 1, write_to_disk=first)
        self._batch_size, self._tokens = experiment.batch_size, experiment.trainer.tokens
        self._step, self._time = step, time.monotonic()
        # Totals of all rows but the first, which includes compilation.
        self._timed = {"seconds": 0.0, "examples": 0.0, "tokens": 0.0}
        self._warm = False
        self._latest: dict[str, float] = {}
        self._progress = Progress(
            BarColumn(bar_width=10),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[shown]}"),
            TimeRemainingColumn(compact=True),
            console=Console(stderr=True),
            disable=not (show and first),
        )
        self._task: TaskID = self._progress.add_task(
            "training", total=experiment.steps, shown="compiling"
        )
        self._progress.update(self._task, completed=step)
        self._progress.start()

    def row(self, step: int, values: Mapping[str, float]) -> None:
        """Display the metrics of a step."""
        now = time.monotonic()
        seconds = max(now - self._time, 1e-9)
        examples = (step - self._step) * self._batch_size
        self._step, self._time = step, now
        tokens = self._tokens(values)
        speed = {"examples_per_second": examples / seconds}
        shown = f"{examples / seconds:,.0f}/s"
        if tokens is not None:
            speed["tokens_per_second"] = tokens * examples / seconds
            shown = f"{speed['tokens_per_second']:,.0f} tokens/s"
        if self._warm:
            self._timed["seconds"] += seconds
            self._timed["examples"] += examples
            self._timed["tokens"] += (tokens or 0.0) * examples
        self._warm = True
        for name, value in {**values, **speed}.items():
            self._events.add_scalar(name.replace("_", "/", 1), value, step)
        if self._wandb:
            self._wandb.row(step, {**values, **speed})
        self._latest |= values
        self._progress.update(self._task, completed=step, shown=f"{shown} · {self._summary()}")

    def images(self, step: int, grids: Mapping[str, np.ndarray]) -> None:
        """Write images, uint8 of shape (height, width, depth), to TensorBoard."""
        for name, grid in grids.items():
            self._events.add_image(name, grid, step, dataformats="HWC")

    def _summary(self) -> str:
        """Return the newest values, such as `reward -0.310 accuracy 0.910 (0.930)`."""
        parts = []
        for key, value in self._latest.items():
            if key.startswith("train_") and not key.endswith("_sd"):
                name = key.removeprefix("train_")
                held_out = self._latest.get(f"validation_{name}")
                more = "" if held_out is None else f" ({held_out:.3f})"
                parts.append(f"{name} {value:.3f}{more}")
        # Metrics with a validation value come first; four fit a line.
        return " ".join(sorted(parts, key=lambda part: "(" not in part)[:4])

    def close(self) -> None:
        self._progress.stop()
        self._events.close()
        if self._wandb:
            self._wandb.close()
        if seconds := self._timed["seconds"]:
            rates = (f"{v / seconds:,.0f} {k}/s" for k, v in self._timed.items() if v)
            _log.info("speed after the first row: %s", ", ".join(list(rates)[1:]))


def results_table(title: str, metrics: Mapping[str, float]) -> Table:
    """Return a table with one row per split; with more than five metrics, one row per metric."""
    splits = ("train", "validation", "test")
    names = dict.fromkeys(
        k.split("_", 1)[1]
        for k in metrics
        if k.split("_", 1)[0] in splits and not k.endswith("_sd")
    )
    table = Table(title=title)
    if len(names) > 5:
        present = [split for split in splits if any(f"{split}_{name}" in metrics for name in names)]
        table.add_column("metric")
        for split in present:
            table.add_column(split, justify="right")
        for name in names:
            keys = [f"{split}_{name}" for split in present]
            row = (_cell(metrics.get(k), metrics.get(f"{k}_sd")) for k in keys)
            table.add_row(name.replace("_", " "), *row)
        return table
    table.add_column("split")
    for name in names:
        table.add_column(name, justify="right")
    for split in splits:
        keys = [f"{split}_{name}" for name in names]
        if any(key in metrics for key in keys):
            table.add_row(split, *(_cell(metrics.get(k), metrics.get(f"{k}_sd")) for k in keys))
    return table


def tasks_table(found: Mapping[str, Any]) -> Table:
    """Return a table of the accuracy on every task after each task, with forgetting below."""
    table = Table(title="accuracy after (row) on (column)")
    table.add_column("")
    for task in found["tasks"]:
        table.add_column(task, justify="right")
    nothing = [None] * len(found["tasks"])
    deviations = found.get("accuracy_sd", [nothing] * len(nothing))
    for task, means, sds in zip(found["tasks"], found["accuracy"], deviations, strict=True):
        table.add_row(task, *(_cell(m, s) for m, s in zip(means, sds, strict=True)))
    ends = (
        f"{name.replace('_', ' ')} {_cell(found[name], found.get(f'{name}_sd'))}"
        for name in ("average_accuracy", "forgetting")
    )
    table.caption = ", ".join(ends)
    return table


def corruptions_table(found: Mapping[str, Any]) -> Table:
    """Return a table of errors on corrupted images, by the encoder and after refinement."""
    steps = len(next(iter(found.values()))["elbo"]) - 1
    table = Table(title=f"corrupted images: the encoder's guess → after {steps} steps of inference")
    table.add_column("")
    heads = {"elbo": "elbo", "clean": "error to clean", "corrupted": "error to corrupted"}
    for head in heads.values():
        table.add_column(head, justify="right")
    for name, curves in found.items():
        table.add_row(
            name.replace("_", " "),
            *(f"{curves[key][0]:.4f} → {curves[key][-1]:.4f}" for key in heads),
        )
    return table


def _cell(mean: float | None, deviation: float | None) -> str:
    if mean is None:
        return ""
    return f"{mean:.4f}" if deviation is None else f"{mean:.4f} ± {deviation:.4f}"


def parameter_overview(params: Mapping[str, Any]) -> str:
    """Return a table of all parameters: shape, size, mean and standard deviation."""
    from clu import parameter_overview as overview

    return overview.get_parameter_overview(params)
