"""What a person sees of a run: progress bar, TensorBoard, W&B, and a table at the end."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from trainers import processes
from trainers.remote import Remote
from trainers.run_directory import RunDirectory

_log = logging.getLogger("grlu")


class Reporter:
    """Shows rows of metrics as they come. Purely for the eye: nothing in a run depends on it.

    Of several processes the first shows and writes them.
    """

    def __init__(
        self,
        run: RunDirectory,
        *,
        step: int,
        steps: int,
        batch_size: int,
        tokens: Callable[[Mapping[str, float]], float | None],
        show: bool,
        remote: bool = False,
    ):
        from tensorboardX import SummaryWriter

        first = processes.first()
        self._remote = Remote(run) if remote and first else None
        self._events = SummaryWriter(str(run.path), purge_step=step + 1, write_to_disk=first)
        self._batch_size, self._tokens = batch_size, tokens
        self._step, self._time = step, time.monotonic()
        # Of all rows but the first, in which programs are compiled.
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
        self._task: TaskID = self._progress.add_task("training", total=steps, shown="compiling")
        self._progress.update(self._task, completed=step)
        self._progress.start()

    def row(self, step: int, values: Mapping[str, float]) -> None:
        """Shows the metrics of a step."""
        now = time.monotonic()
        seconds = max(now - self._time, 1e-9)
        examples = (step - self._step) * self._batch_size
        self._step, self._time = step, now
        each = self._tokens(values)
        speed = {"examples_per_second": examples / seconds}
        shown = f"{examples / seconds:,.0f}/s"
        if each is not None:
            speed["tokens_per_second"] = each * examples / seconds
            shown = f"{speed['tokens_per_second']:,.0f} tokens/s"
        if self._warm:
            self._timed["seconds"] += seconds
            self._timed["examples"] += examples
            self._timed["tokens"] += (each or 0.0) * examples
        self._warm = True
        for name, value in {**values, **speed}.items():
            self._events.add_scalar(name.replace("_", "/", 1), value, step)
        if self._remote:
            self._remote.row(step, {**values, **speed})
        self._latest |= values
        self._progress.update(self._task, completed=step, shown=f"{shown} · {self._summary()}")

    def images(self, step: int, grids: Mapping[str, np.ndarray]) -> None:
        """Shows images, uint8, (height, width, depth), in TensorBoard."""
        for name, grid in grids.items():
            self._events.add_image(name, grid, step, dataformats="HWC")

    def _summary(self) -> str:
        """`reward -0.31 accuracy 0.91 (validation 0.93)`, from the newest values."""
        parts = []
        for key, value in self._latest.items():
            if key.startswith("train_") and not key.endswith("_sd"):
                name = key.removeprefix("train_")
                held_out = self._latest.get(f"validation_{name}")
                more = "" if held_out is None else f" ({held_out:.3f})"
                parts.append(f"{name} {value:.3f}{more}")
        # Of many those that are held against others, and no more than fit a line.
        return " ".join(sorted(parts, key=lambda part: "(" not in part)[:4])

    def close(self) -> None:
        self._progress.stop()
        self._events.close()
        if self._remote:
            self._remote.close()
        if seconds := self._timed["seconds"]:
            rates = (f"{v / seconds:,.0f} {k}/s" for k, v in self._timed.items() if v)
            _log.info("speed after the first row: %s", ", ".join(list(rates)[1:]))


@contextlib.contextmanager
def reporting(*args: Any, **kwargs: Any) -> Iterator[Reporter]:
    """A reporter that is closed at the end, whatever happens."""
    reporter = Reporter(*args, **kwargs)
    try:
        yield reporter
    finally:
        reporter.close()


def results_table(title: str, metrics: Mapping[str, float]) -> Table:
    """Metrics as a table: one row a split, one column a metric; if there are many, the reverse."""
    splits = {"train": "train", "validation": "validation", "test": "test"}
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
    """Accuracy after each task on every task, and what that comes to (`trainers.continual`)."""
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
    """What inference makes of corrupted images, by the encoder and after refinement."""
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
    """A table of every parameter: shape, size, mean and spread."""
    from clu import parameter_overview as overview

    return overview.get_parameter_overview(params)
