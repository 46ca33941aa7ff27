"""Samples of a policy in training: `samples.jsonl`, one JSON object per line.

Only a line feed ends a line: completions may contain other characters at which `str.splitlines`
splits.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from trainers.devices import processes
from trainers.loop.experiment import Experiment
from trainers.loop.run_dir import write_atomically
from trainers.loop.state import TrainState

_PROMPTS = 8


def write_examples(
    experiment: Experiment, state: TrainState, path: pathlib.Path, step: int
) -> None:
    """Write the trainer's examples, if any, for a run with one seed in one process."""
    if experiment.run.seeds > 1 or processes.count() > 1:
        return
    arrays = experiment.test if experiment.validation is None else experiment.validation
    batch = experiment.preprocess({name: a[:_PROMPTS] for name, a in arrays.items()})
    if rows := experiment.trainer.examples(state, batch):
        write_samples(path, step, rows)


def write_samples(path: pathlib.Path, step: int, rows: Sequence[dict[str, Any]]) -> None:
    """Append the samples of a step, and drop those of this or later steps from an earlier run."""
    kept = [line for line in read_lines(path) if json.loads(line)["step"] < step]
    new = [json.dumps({"step": step, **row}, ensure_ascii=False) for row in rows]
    write_atomically(path, "".join(f"{line}\n" for line in [*kept, *new]))


def read_lines(path: pathlib.Path) -> list[str]:
    """Return the lines of a `samples.jsonl`, or none if there is no such file."""
    if not path.is_file():
        return []
    *lines, last = path.read_text(encoding="utf-8").split("\n")
    return [*lines, last] if last else lines
