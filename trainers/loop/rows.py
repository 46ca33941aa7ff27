"""Rows of `metrics.csv`: their columns, and the check that their values are numbers."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grlu.errors import RunError
from trainers.loop.experiment import Experiment
from trainers.loop.run_dir import RunDirectory


def columns(experiment: Experiment) -> list[str]:
    """Return the names of all columns, such as `train_reward` and, for several seeds, its `_sd`."""
    trainer = experiment.trainer
    scales = trainer.scales(jnp.zeros((), jnp.int32))
    splits = ["train", *(["validation"] if experiment.validation is not None else []), "test"]
    ends = ["", "_sd"] if experiment.run.seeds > 1 else [""]
    names = [
        f"{split}_{name}{end}"
        for split in splits
        for name in (trainer.metrics if split == "train" else trainer.evaluated)
        for end in ends
    ]
    return ["step", "epoch", *scales, *names]


def prefixed(split: str, values: Mapping[str, jax.Array]) -> dict[str, float]:
    """Return metrics as numbers: over seeds, the mean and the sample standard deviation."""
    row = {}
    for name, value in values.items():
        by_seed = np.atleast_1d(np.asarray(value, np.float64))
        row[f"{split}_{name}"] = float(by_seed.mean())
        if len(by_seed) > 1:
            row[f"{split}_{name}_sd"] = float(by_seed.std(ddof=1))
    return row


def require_numbers(
    row: Mapping[str, float],
    experiment: Experiment,
    step: int,
    saved: int | None,
    run: RunDirectory,
) -> None:
    """Raise RunError if a metric is NaN."""
    if bad := next((name for name, value in row.items() if math.isnan(value)), None):
        raise failure(f"{bad} is not a number after step {step}", experiment, {}, saved, run)


def failure(
    what: str,
    experiment: Experiment,
    evidence: Mapping[str, Any],
    saved: int | None,
    run: RunDirectory,
) -> RunError:
    """Return the error of a run, with the reason that the trainer finds in the evidence."""
    kept = "no checkpoint was saved before"
    if saved is not None:
        kept = f"the checkpoint of step {saved} is kept"
    reason = experiment.trainer.reason(evidence)
    return RunError(f"{what} of the run in {run.path}, {kept}; {reason}")
