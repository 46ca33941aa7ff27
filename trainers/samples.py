"""Completions that a policy writes while it learns: `samples.jsonl`, one JSON object per line.

Only a line feed ends a line: a completion may hold others at which `str.splitlines` splits.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from trainers import processes
from trainers.protocol import Experiment
from trainers.run_directory import write_atomically
from trainers.state import TrainState

_SHOWN = 8  # prompts


def show(experiment: Experiment, state: TrainState, path: pathlib.Path, step: int) -> None:
    """Writes down what a model of text answers, if it is one model in one process."""
    if experiment.run.seeds > 1 or processes.count() > 1:
        return
    arrays = experiment.test if experiment.validation is None else experiment.validation
    batch = experiment.preprocess({name: a[:_SHOWN] for name, a in arrays.items()})
    if rows := experiment.trainer.examples(state, batch):
        write_samples(path, step, rows)


def write_samples(path: pathlib.Path, step: int, rows: Sequence[dict[str, Any]]) -> None:
    """Adds the completions of a step; those of this step or later, of a run before, are dropped."""
    kept = [line for line in read_lines(path) if json.loads(line)["step"] < step]
    new = [json.dumps({"step": step, **row}, ensure_ascii=False) for row in rows]
    write_atomically(path, "".join(f"{line}\n" for line in [*kept, *new]))


def read_lines(path: pathlib.Path) -> list[str]:
    """Return the lines of a `samples.jsonl`, none if there is no file."""
    if not path.is_file():
        return []
    *lines, last = path.read_text(encoding="utf-8").split("\n")
    return [*lines, last] if last else lines
