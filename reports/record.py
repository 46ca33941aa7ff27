"""Records of runs, read from their folders: config, metrics, training time and stages."""

import dataclasses
import json
import pathlib
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from grlu.errors import UserError
from trainers.loop.run_dir import RunDirectory, read_metrics

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """Record of a run.

    Attributes:
        label: short name.
        path: folder of the run.
        config: saved config; empty for a pipeline's folder without one.
        columns: columns of `metrics.csv`, nan for empty cells.
        seconds: training time (of all stages, for a pipeline); None if there are no events.
        stages: runs of a pipeline's stages, in order.
        continual: results of continual learning in a pipeline's summary, or None.
    """

    label: str
    path: pathlib.Path
    config: dict[str, Any]
    columns: dict[str, np.ndarray]
    seconds: float | None
    stages: tuple["Record", ...] = ()
    continual: dict[str, Any] | None = None

    @property
    def seeds(self) -> int:
        return self.section("run").get("seeds", 1)

    @property
    def metrics(self) -> list[str]:
        """Return the names of the metrics, without split, the accuracy first."""
        names = dict.fromkeys(
            column.split("_", 1)[1]
            for column in self.columns
            if column.split("_", 1)[0] in SPLITS and not column.endswith("_sd")
        )
        return sorted(names, key=lambda name: name != "accuracy")

    @property
    def shown(self) -> "Record":
        """Return the run whose metrics are shown: this one, or the last stage with metrics."""
        if len(self.columns.get("step", ())):
            return self
        trained = [stage for stage in self.stages if len(stage.columns.get("step", ()))]
        return trained[-1] if trained else self

    def section(self, name: str) -> dict[str, Any]:
        """Return a section of the config, empty if missing."""
        section = self.config.get(name)
        return section if isinstance(section, dict) else {}

    def series(self, split: str, metric: str) -> dict[str, np.ndarray]:
        """Return `epoch`, `step`, `mean` and `sd` (0 for one seed) of the rows with the metric."""
        mean = self.columns.get(f"{split}_{metric}", np.zeros(0))
        there = np.isfinite(mean)
        sd = self.columns.get(f"{split}_{metric}_sd", np.zeros_like(mean))
        found = {name: self.columns.get(name, mean)[there] for name in ("epoch", "step")}
        return {**found, "mean": mean[there], "sd": np.nan_to_num(sd[there])}

    def final(self, split: str, metric: str) -> tuple[float, float | None] | None:
        """Return the last value and, with several seeds, its standard deviation, or None."""
        series = self.series(split, metric)
        if not len(series["mean"]):
            return None
        spread = float(series["sd"][-1]) if f"{split}_{metric}_sd" in self.columns else None
        return float(series["mean"][-1]), spread


def read_record(path: pathlib.Path, label: str | None = None) -> Record:
    """Read the folder of a run, or of a pipeline with its stages in `stages/`.

    Raises:
        UserError: if the folder does not exist, holds no run, or has an unreadable file.
    """
    run = RunDirectory(path)
    if not path.is_dir():
        raise UserError(f"there is no folder {path}; name the folder of a run, such as runs/NAME")
    folders = [each for each in sorted(path.glob("stages/*")) if (each / "config.json").is_file()]
    if not folders:
        RunDirectory.open(path)
    config = _json(run.config) if run.config.is_file() else {}
    summary = path / "summary.json"
    stages = [read_record(each, each.name) for each in folders]
    times = [time for time in (_seconds(path), *(stage.seconds for stage in stages)) if time]
    return Record(
        label=label or path.resolve().name,
        path=path,
        config=config,
        columns=_columns(run.metrics),
        seconds=sum(times) if times else None,
        stages=tuple(sorted(stages, key=lambda stage: _place(stage, config))),
        continual=_json(summary).get("continual") if summary.is_file() else None,
    )


def read_records(paths: list[pathlib.Path]) -> list[Record]:
    """Read several runs, with unique labels; raise the errors of `read_record`."""
    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path.resolve().parent.name}/{path.resolve().name}" for path in paths]
    if len(set(names)) < len(names):
        names = [f"{name} ({i})" for i, name in enumerate(names, 1)]
    return [read_record(path, name) for path, name in zip(paths, names, strict=True)]


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a JSON object, not a {type(values).__name__}")
    return values


def _columns(path: pathlib.Path) -> dict[str, np.ndarray]:
    rows = read_metrics(path)
    try:
        return {
            column: np.array([float(row[column] or "nan") for row in rows])
            for column in (rows[0] if rows else ())
        }
    except ValueError as error:
        raise UserError(f"{path} has a cell that is not a number: {error}") from error


def _place(stage: Record, config: dict[str, Any]) -> tuple[float, float, str]:
    """Return the sort key of a stage: its place in the pipeline's config, else its start time."""
    listed = config.get("stages", ())
    names = [each.get("name") if isinstance(each, dict) else each for each in listed]
    place = names.index(stage.label) if stage.label in names else len(names)
    return place, min((times[0] for times in _times(stage.path)), default=0.0), stage.label


def _seconds(path: pathlib.Path) -> float | None:
    """Return the total time from first to last event in each file, without breaks in between."""
    spans = [times[-1] - times[0] for times in _times(path)]
    return sum(spans) if spans else None


def _times(path: pathlib.Path) -> Iterator[list[float]]:
    """Yield the events' wall-clock times, in seconds, of each of a run's TensorBoard files."""
    for file in sorted(path.glob("events.out.tfevents.*")):
        content, at, times = file.read_bytes(), 0, []
        # A record has its length, a checksum, the event, and a checksum. An event begins with the
        # tag of its wall-clock time, a double.
        while at + 12 <= len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            if at + 12 + length > len(content) or content[at + 12] != 0x09:
                break
            times.append(struct.unpack_from("<d", content, at + 13)[0])
            at += 12 + length + 4
        if times:
            yield times
