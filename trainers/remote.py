"""Weights & Biases, for who wants a run's rows there, too: it may fail, and never stops a run."""

import hashlib
import importlib
import json
import logging
from collections.abc import Mapping
from typing import Any

from grlu.errors import UserError
from trainers.run_directory import RunDirectory

_log = logging.getLogger("grlu")


def require(wanted: bool) -> None:
    """Raises UserError where wandb is wanted and not installed."""
    if wanted:
        _wandb()


class Remote:
    """Sends rows; after the first failure, of which the log tells in one line, it does nothing.

    A resumed run goes on under the same id, made of its folder and of when that was made.
    """

    def __init__(self, run: RunDirectory):
        wandb = _wandb()
        made = f"{run.path.resolve()} {run.config.stat().st_mtime_ns}"
        self._run: Any = None
        self._run = self._tried(
            lambda: wandb.init(
                project="grlu",
                name=run.path.name,
                id=hashlib.sha256(made.encode()).hexdigest()[:16],
                resume="allow",
                dir=str(run.path),
                config=json.loads(run.config.read_text()),
            )
        )

    def row(self, step: int, values: Mapping[str, float]) -> None:
        """Sends the metrics of a step."""
        if self._run is not None:
            self._tried(lambda: self._run.log(dict(values), step=step))

    def close(self) -> None:
        if self._run is not None:
            self._tried(lambda: self._run.finish())

    def _tried(self, action: Any) -> Any:
        try:
            return action()
        except Exception as error:  # whatever a network, a login or another program does
            about = str(error).partition("\n")[0]
            _log.warning("wandb: %s: %s; the run goes on without it", type(error).__name__, about)
            self._run = None
            return None


def _wandb() -> Any:
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise UserError(
            "run.wandb=true needs wandb: run `pip install wandb`, or leave it out"
        ) from error
