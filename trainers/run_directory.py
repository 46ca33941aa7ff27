"""A run's folder: all that `resume`, `evaluate` and `report` need."""

import contextlib
import csv
import dataclasses
import errno
import io
import logging
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping

from grlu.errors import UserError
from input_pipeline.local import local
from trainers import processes

_log = logging.getLogger("grlu")


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """Paths of a run: `config.json`, `metrics.csv`, `log.txt`, `checkpoints/`, TensorBoard events,
    and of a policy `samples.jsonl`.

    `config.json` is written last when a run is created: a folder that has it holds a run. `linked/`
    holds copies of the runs and files that it needs later (`trainers/linked.py`). A pipeline has
    `stages/NAME/`, a run each, and `summary.json` instead of metrics and checkpoints.

    Attributes:
        path: the folder.
        whole: the folder of the pipeline of which the run is a stage, or None.

    Raises:
        UserError: if the folder is remote.
    """

    path: pathlib.Path
    whole: pathlib.Path | None = None

    def __post_init__(self) -> None:
        local(self.path, "the run")

    @classmethod
    def create(
        cls,
        path: pathlib.Path,
        config_json: str,
        *,
        overwrite: bool,
        fill: Callable[["RunDirectory"], None] = lambda run: None,
    ) -> "RunDirectory":
        """Make the folder of a run.

        Args:
            path: the folder.
            config_json: text of `config.json`.
            overwrite: whether to replace a run that the folder already holds.
            fill: writes what else a run needs from the beginning.

        Raises:
            UserError: if the folder holds a run (unless `overwrite`) or something else, or cannot
                be written.
        """
        run = cls(path)
        processes.by_first(lambda: run._make(config_json, overwrite, fill), f"making {path}")
        return run

    def _make(
        self, config_json: str, overwrite: bool, fill: Callable[["RunDirectory"], None]
    ) -> None:
        run, path = self, self.path
        if run.config.exists() and not overwrite:
            raise UserError(
                f"{path} already holds a run; continue it with 'grlu resume {path}', choose "
                "another folder with --run, or replace it with --overwrite"
            )
        try:
            if path.is_dir() and any(path.iterdir()):
                if not run.config.exists():
                    raise UserError(f"{path} is not empty and holds no run; choose a new folder")
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
            raise UserError(f"cannot write the run to {path}: {error.strerror or error}") from error

    def _clear(self) -> None:
        """Remove only what a run writes: anything else in the folder is the user's."""
        for folder in (self.checkpoints, self.stages, self.path / "linked", self.path / "report"):
            shutil.rmtree(folder, ignore_errors=True)
        events = self.path.glob("events.out.tfevents.*")
        for file in [self.metrics, self.log, self.samples, self.summary, *events]:
            file.unlink(missing_ok=True)

    @classmethod
    def open(cls, path: pathlib.Path) -> "RunDirectory":
        """An existing run.

        Raises:
            UserError: if the folder holds none.
        """
        run = cls(path)
        if not run.config.is_file():
            raise UserError(
                f"{path} holds no run: it has no config.json, which 'grlu train' writes"
            )
        return run

    @property
    def config(self) -> pathlib.Path:
        return self.path / "config.json"

    @property
    def metrics(self) -> pathlib.Path:
        return self.path / "metrics.csv"

    @property
    def log(self) -> pathlib.Path:
        return self.path / "log.txt"

    @property
    def samples(self) -> pathlib.Path:
        return self.path / "samples.jsonl"

    @property
    def checkpoints(self) -> pathlib.Path:
        return self.path / "checkpoints"

    @property
    def trained(self) -> bool:
        """Whether there is a checkpoint; a save that was cut off is none."""
        return any(folder.name.isdigit() for folder in self.checkpoints.glob("*/"))

    @property
    def files(self) -> pathlib.Path:
        """Folder of copies of the user's files."""
        return self.path / "linked" / "files"

    @property
    def stages(self) -> pathlib.Path:
        return self.path / "stages"

    @property
    def summary(self) -> pathlib.Path:
        return self.path / "summary.json"

    @property
    def resumed(self) -> pathlib.Path:
        """The folder to give to `grlu resume`."""
        return self.whole or self.path

    def linked(self, kind: str) -> "RunDirectory":
        """The copy of a run that this one links to as its "features", "judge" or "reference"."""
        return RunDirectory(self.path / "linked" / kind)

    def stage(self, name: str) -> "RunDirectory":
        """The run of a pipeline's stage."""
        return RunDirectory(self.stages / name, whole=self.path)


def default_path(name: str) -> pathlib.Path:
    """`runs/NAME-<time>`."""
    return pathlib.Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Replaces a file in one step: a reader sees the old text or the new, never a part."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


class MetricsTable:
    """`metrics.csv`: one row a logged step; it never holds wall-clock time.

    A resumed run continues it at the checkpoint's step, so that its bytes are those of a run that
    was never interrupted. Of several processes the first writes it.
    """

    def __init__(self, path: pathlib.Path, columns: list[str], step: int):
        self._columns = columns
        if processes.first():
            kept = [row for row in read_metrics(path) if int(row["step"]) <= step and step > 0]
            text = io.StringIO()
            writer = csv.DictWriter(text, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept)
            write_atomically(path, text.getvalue())
        else:
            path = pathlib.Path(os.devnull)
        self._file = path.open("a", newline="")
        self._writer = csv.DictWriter(self._file, columns, lineterminator="\n")

    def write(self, row: Mapping[str, float | int]) -> None:
        """Adds a row; missing columns stay empty, floats keep all their digits."""
        self._writer.writerow({k: repr(v) for k, v in row.items()})
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: pathlib.Path) -> list[dict[str, str]]:
    """The complete rows of a `metrics.csv`; a line cut short by a crash is left out."""
    if not path.exists():
        return []
    text = path.read_text()
    rows = list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))
    return [row for row in rows if row.get("step") and None not in row.values()]


def latest_metrics(path: pathlib.Path) -> dict[str, float]:
    """The last value of each column of a `metrics.csv`, but for the step and the epoch."""
    latest: dict[str, float] = {}
    for row in read_metrics(path):
        latest |= {k: float(v) for k, v in row.items() if v and k not in ("step", "epoch")}
    return latest


@contextlib.contextmanager
def logged_to(path: pathlib.Path) -> Iterator[None]:
    """Sends the log of everything inside to a file; of several processes that of the first."""
    handler = logging.FileHandler(path if processes.first() else os.devnull)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    before = _log.level, _log.propagate
    _log.addHandler(handler)
    _log.setLevel(logging.INFO)
    _log.propagate = False  # Some libraries give the root logger a handler of their own.
    try:
        yield
    finally:
        _log.removeHandler(handler)
        _log.level, _log.propagate = before
        handler.close()


@contextlib.contextmanager
def disk_errors(run: RunDirectory) -> Iterator[None]:
    """Turns the system's refusal to write into one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS):
            raise
        raise UserError(
            f"cannot write to {run.path}: {error.strerror}; the checkpoints saved so far are kept, "
            f"make room and continue with 'grlu resume {run.resumed}'"
        ) from error
