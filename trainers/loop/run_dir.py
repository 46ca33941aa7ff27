"""Run folders: all that `resume`, `evaluate` and `report` need."""

import contextlib
import csv
import errno
import io
import logging
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping

from grlu.errors import UserError
from input_pipeline.storage.local import local
from trainers.devices import processes

_log = logging.getLogger("grlu")
_NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)


class RunDirectory:
    """Paths of a run: `config.json`, `metrics.csv`, `log.txt`, `checkpoints/`, TensorBoard events
    and, for a policy, `samples.jsonl`.

    `config.json` is written last when a run is created, so a folder that has it holds a run.
    `linked/` holds copies of the runs and files that the run needs later. A pipeline has one run
    for each stage in `stages/NAME/`, and `summary.json` instead of metrics and checkpoints.

    Args:
        path: the folder, which must be local.
        pipeline: folder of the pipeline that this run is a stage of, or None.
    """

    def __init__(self, path: pathlib.Path, pipeline: pathlib.Path | None = None):
        local(path, "the run")
        self.path = path
        self.config = path / "config.json"
        self.metrics = path / "metrics.csv"
        self.log = path / "log.txt"
        self.samples = path / "samples.jsonl"
        self.summary = path / "summary.json"
        self.checkpoints = path / "checkpoints"
        self.stages = path / "stages"
        self.files = path / "linked" / "files"  # Copies of the user's files.
        self.resumed = pipeline or path  # Folder to pass to `grlu resume`.

    @classmethod
    def create(
        cls,
        path: pathlib.Path,
        config_json: str,
        *,
        overwrite: bool,
        fill: Callable[["RunDirectory"], None],
    ) -> "RunDirectory":
        """Create the folder of a run; with `overwrite`, replace a run that it already holds.

        `fill` writes the run's other files before `config.json`.
        """
        run = cls(path)

        def make() -> None:
            if run.config.exists() and not overwrite:
                raise UserError(
                    f"{path} already holds a run; continue it with 'grlu resume {path}', choose "
                    "another folder with --run, or replace it with --overwrite"
                )
            try:
                if path.is_dir() and any(path.iterdir()):
                    if not run.config.exists():
                        raise UserError(
                            f"{path} is not empty and holds no run; choose a new folder"
                        )
                    run.config.unlink()
                    run._clear()
                path.mkdir(parents=True, exist_ok=True)
                try:
                    fill(run)
                except BaseException:
                    run._clear()
                    raise
                write_atomically(run.config, config_json)
            except OSError as error:
                reason = error.strerror or error
                raise UserError(f"cannot write the run to {path}: {reason}") from error

        processes.by_first(make, f"creating {path}")
        return run

    def _clear(self) -> None:
        """Remove only the files that a run writes; all others belong to the user."""
        for folder in (self.checkpoints, self.stages, self.path / "linked", self.path / "report"):
            shutil.rmtree(folder, ignore_errors=True)
        events = self.path.glob("events.out.tfevents.*")
        for file in [self.metrics, self.log, self.samples, self.summary, *events]:
            file.unlink(missing_ok=True)

    @classmethod
    def open(cls, path: pathlib.Path) -> "RunDirectory":
        """Return an existing run."""
        run = cls(path)
        if not run.config.is_file():
            raise UserError(
                f"{path} holds no run: it has no config.json, which 'grlu train' writes"
            )
        return run

    @property
    def trained(self) -> bool:
        """Return True if a complete checkpoint exists."""
        return any(folder.name.isdigit() for folder in self.checkpoints.glob("*/"))

    def linked(self, kind: str) -> "RunDirectory":
        """Return the copy of the run linked as "features", "judge" or "reference"."""
        return RunDirectory(self.path / "linked" / kind)

    def stage(self, name: str) -> "RunDirectory":
        """Return the run of a pipeline's stage."""
        return RunDirectory(self.stages / name, pipeline=self.path)

    @contextlib.contextmanager
    def disk_errors(self) -> Iterator[None]:
        """Turn a failed write into a UserError that says how to continue."""
        try:
            yield
        except OSError as error:
            if error.errno not in _NOT_WRITTEN:
                raise
            raise UserError(
                f"cannot write to {self.path}: {error.strerror}; the checkpoints saved so far are "
                f"kept, make room and continue with 'grlu resume {self.resumed}'"
            ) from error


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Replace a file in one step: a reader sees the old text or the new one, never a part."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


class MetricsTable:
    """`metrics.csv`: one row per logged step, without wall-clock times.

    A resumed run continues the table at the checkpoint's step: the file equals that of a run that
    was never interrupted, byte for byte. Only the first process writes.
    """

    def __init__(self, path: pathlib.Path, columns: list[str], step: int):
        self._columns = columns
        if processes.first():
            kept = [row for row in read_metrics(path) if int(row["step"]) <= step and step > 0]
            text = io.StringIO()
            # A column that this version no longer reports is dropped.
            writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept)
            write_atomically(path, text.getvalue())
        else:
            path = pathlib.Path(os.devnull)
        self._file = path.open("a", newline="")
        self._writer = csv.DictWriter(self._file, columns, lineterminator="\n")

    def write(self, row: Mapping[str, float | int]) -> None:
        """Append a row; missing columns stay empty, floats keep all their digits."""
        self._writer.writerow({k: repr(v) for k, v in row.items()})
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: pathlib.Path) -> list[dict[str, str]]:
    """Return the complete rows of a `metrics.csv`, without a line that a crash cut short."""
    if not path.exists():
        return []
    text = path.read_text()
    rows = list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))
    return [row for row in rows if row.get("step") and None not in row.values()]


def latest_metrics(path: pathlib.Path) -> dict[str, float]:
    """Return the last value of each column of a `metrics.csv`, except step and epoch."""
    latest: dict[str, float] = {}
    for row in read_metrics(path):
        latest |= {k: float(v) for k, v in row.items() if v and k not in ("step", "epoch")}
    return latest


@contextlib.contextmanager
def logged_to(path: pathlib.Path) -> Iterator[None]:
    """Log to a file inside the context, in the first process only."""
    handler = logging.FileHandler(path if processes.first() else os.devnull)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    before = _log.level, _log.propagate
    _log.addHandler(handler)
    _log.setLevel(logging.INFO)
    _log.propagate = False  # Some libraries add their own handler to the root logger.
    try:
        yield
    finally:
        _log.removeHandler(handler)
        _log.level, _log.propagate = before
        handler.close()
