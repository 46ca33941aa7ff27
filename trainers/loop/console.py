"""Console and dashboards of a run: progress bar, TensorBoard, W&B, tables of results."""

import hashlib
import importlib
import json
import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from grlu.errors import UserError
from trainers.devices import processes
from trainers.loop.experiment import Experiment
from trainers.loop.run_dir import RunDirectory

_log = logging.getLogger("grlu")


class Reporter:
    """Display of metrics while a run trains, in the first process; no result depends on it."""

    def __init__(self, experiment: Experiment, run: RunDirectory, *, step: int, show: bool):
        from tensorboardX import SummaryWriter

        first = processes.first()
        self._wandb = _WandbLogger(run) if experiment.run.wandb and first else None
        self._events = SummaryWriter(str(run.path), purge_step=step + 1, write_to_disk=first)
        self._batch_size, self._tokens = experiment.batch_size, experiment.trainer.tokens
        self._step, self._time = step, time.monotonic()
        # Totals of all rows but the first, which includes compilation.
        self._timed: dict[str, float] = {}
        self._latest: dict[str, float] = {}
        self._progress = Progress(
            BarColumn(bar_width=10),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[shown]}"),
            TimeRemainingColumn(compact=True),
            console=Console(stderr=True),
            disable=not (show and first),
        )
        self._task = self._progress.add_task(
            "training", total=experiment.steps, completed=step, shown="compiling"
        )
        self._progress.start()

    def row(self, step: int, values: Mapping[str, float]) -> None:
        """Display the metrics of a step."""
        now = time.monotonic()
        seconds = max(now - self._time, 1e-9)
        done: dict[str, float] = {"examples": (step - self._step) * self._batch_size}
        if (tokens := self._tokens(values)) is not None:
            done["tokens"] = tokens * done["examples"]
        speed = {f"{name}_per_second": count / seconds for name, count in done.items()}
        self._step, self._time = step, now
        if self._latest:
            for name, amount in {"seconds": seconds, **done}.items():
                self._timed[name] = self._timed.get(name, 0.0) + amount
        for name, value in {**values, **speed}.items():
            self._events.add_scalar(name.replace("_", "/", 1), value, step)
        if self._wandb:
            self._wandb.row(step, {**values, **speed})
        self._latest |= values
        unit = "/s" if tokens is None else " tokens/s"
        shown = f"{[*speed.values()][-1]:,.0f}{unit} · {self._summary()}"
        self._progress.update(self._task, completed=step, shown=shown)

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
        if seconds := self._timed.pop("seconds", 0.0):
            rates = (f"{v / seconds:,.0f} {k}/s" for k, v in self._timed.items() if v)
            _log.info("speed after the first row: %s", ", ".join(rates))


def import_wandb() -> Any:
    """Return the module, or raise UserError if it is not installed."""
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise UserError(
            "run.wandb=true needs wandb: run `pip install wandb`, or set it to false"
        ) from error


class _WandbLogger:
    """Logger of rows to Weights & Biases; its first failure ends the logging, never the run.

    A resumed run keeps its id, a hash of the run's folder and its creation time.
    """

    def __init__(self, run: RunDirectory):
        created = f"{run.path.resolve()} {run.config.stat().st_mtime_ns}"
        self._run: Any = import_wandb()
        self._run = self._try(
            "init",
            project="grlu",
            name=run.path.name,
            id=hashlib.sha256(created.encode()).hexdigest()[:16],
            resume="allow",
            dir=str(run.path),
            config=json.loads(run.config.read_text()),
        )

    def row(self, step: int, values: Mapping[str, float]) -> None:
        """Log the metrics of a step."""
        self._try("log", dict(values), step=step)

    def close(self) -> None:
        self._try("finish")

    def _try(self, method: str, *args: Any, **options: Any) -> Any:
        try:
            return None if self._run is None else getattr(self._run, method)(*args, **options)
        except Exception as error:  # a failing network, login or program
            reason = str(error).partition("\n")[0]
            name = type(error).__name__
            _log.warning("wandb: %s: %s; the run continues without it", name, reason)
            self._run = None
            return None


def results_table(title: str, metrics: Mapping[str, float]) -> Table:
    """Return a table with one row per split; with more than five metrics, one row per metric."""
    keys = [key.partition("_") for key in metrics if not key.endswith("_sd")]
    splits = [s for s in ("train", "validation", "test") if s in {split for split, _, _ in keys}]
    names = list(dict.fromkeys(name for split, _, name in keys if split in splits))

    def cell(split: str, name: str) -> str:
        key = f"{split}_{name}"
        return _cell(metrics.get(key), metrics.get(f"{key}_sd"))

    if len(names) > 5:
        rows = ((name.replace("_", " "), *(cell(s, name) for s in splits)) for name in names)
        return _table(title, ("metric", *splits), rows)
    rows = ((split, *(cell(split, name) for name in names)) for split in splits)
    return _table(title, ("split", *names), rows)


def tasks_table(found: Mapping[str, Any]) -> Table:
    """Return a table of the accuracy on every task after each task, with forgetting below."""
    nothing = [None] * len(found["tasks"])
    deviations = found.get("accuracy_sd", [nothing] * len(nothing))
    rows = (
        (task, *map(_cell, means, sds))
        for task, means, sds in zip(found["tasks"], found["accuracy"], deviations, strict=True)
    )
    table = _table("accuracy after (row) on (column)", ("", *found["tasks"]), rows)
    table.caption = ", ".join(
        f"{name.replace('_', ' ')} {_cell(found[name], found.get(f'{name}_sd'))}"
        for name in ("average_accuracy", "forgetting")
    )
    return table


def corruptions_table(found: Mapping[str, Any]) -> Table:
    """Return a table of errors on corrupted images, of the encoder and after refinement."""
    steps = len(next(iter(found.values()))["elbo"]) - 1
    heads = {"elbo": "elbo", "clean": "error to clean", "corrupted": "error to corrupted"}
    rows = (
        (
            name.replace("_", " "),
            *(f"{curves[key][0]:.4f} → {curves[key][-1]:.4f}" for key in heads),
        )
        for name, curves in found.items()
    )
    title = f"corrupted images: the encoder's guess → after {steps} steps of inference"
    return _table(title, ("", *heads.values()), rows)


def _table(title: str, heads: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
    """Return a table with all columns but the first right-aligned."""
    table = Table(title=title)
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    return table


def _cell(mean: float | None, deviation: float | None) -> str:
    if mean is None:
        return ""
    return f"{mean:.4f}" if deviation is None else f"{mean:.4f} ± {deviation:.4f}"
