"""Logging to Weights & Biases; its failures never stop a run."""

import hashlib
import importlib
import json
import logging
from collections.abc import Mapping
from typing import Any

from grlu.errors import UserError
from trainers.loop.run_dir import RunDirectory

_log = logging.getLogger("grlu")


def import_wandb() -> Any:
    """Return the module, or raise UserError if it is not installed."""
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise UserError(
            "run.wandb=true needs wandb: run `pip install wandb`, or set it to false"
        ) from error


class WandbLogger:
    """Logger of rows to wandb; the first failure is logged in one line and ends the logging.

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
