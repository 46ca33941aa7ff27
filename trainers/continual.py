"""What is kept of earlier tasks when stages start from each other, one task after the other.

Forgetting is that of Chaudhry et al. (2018), "Riemannian Walk for Incremental Learning",
arXiv:1801.10112.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trainers.compiled import compile_evaluation
from trainers.features import config_of, open_experiment, restored
from trainers.run_directory import RunDirectory


def measured(run: RunDirectory, stages: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The accuracy of the last stage, and of those it started from, on each other's test sets.

    Returns:
        "tasks": names of the stages; "accuracy": row by row, after each task that on every task,
        also on those to come; "average_accuracy": after the last task, the mean over the tasks;
        "forgetting": the mean over all tasks but the last of the best accuracy that there was
        before the last task, less that after it. All are means over seeds; with several, "..._sd"
        are their standard deviations. None if the last stage starts from none.
    """
    by_name = {stage["name"]: stage for stage in stages}
    tasks = [stages[-1]["name"]]
    while (before := by_name[tasks[0]]["start"]) is not None:
        tasks.insert(0, before)
    if len(tasks) == 1:
        return None
    runs = [run.stage(name) for name in tasks]
    experiments = [open_experiment(config_of(r), r, computed=("test",)) for r in runs]
    if "accuracy" not in experiments[-1].trainer.evaluated:
        return None
    states = [restored(r, best=False, seen=e).state for r, e in zip(runs, experiments, strict=True)]
    columns = []
    for experiment in experiments:
        evaluate = compile_evaluation(experiment)
        values = [evaluate(state, experiment.test)["accuracy"] for state in states]
        columns.append(np.stack([np.atleast_1d(np.asarray(v, np.float64)) for v in values]))
    matrix = np.stack(columns, axis=1)  # (after, on, seeds)
    found = {
        "accuracy": matrix,
        "average_accuracy": matrix[-1].mean(0),
        "forgetting": forgetting(matrix),
    }
    summary: dict[str, Any] = {"tasks": tasks}
    for name, value in found.items():
        summary[name] = value.mean(-1).tolist()
        if value.shape[-1] > 1:
            summary[f"{name}_sd"] = value.std(-1, ddof=1).tolist()
    return summary


def forgetting(matrix: np.ndarray) -> np.ndarray:
    """By seed, of an accuracy matrix (after task, on task, seeds)."""
    best = matrix[:-1, :-1].max(axis=0)
    return (best - matrix[-1, :-1]).mean(axis=0)
