"""Forgetting of preceding tasks, when each stage starts from the preceding one.

Source: Chaudhry et al. (2018), "Riemannian Walk for Incremental Learning", arXiv:1801.10112.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trainers.loop.compiled import compile_evaluation
from trainers.loop.run_dir import RunDirectory
from trainers.pipelines.links import config_of
from trainers.pipelines.open import open_experiment, restored


def measured(run: RunDirectory, stages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Measure the last stage, and all stages that it started from, on each other's test sets.

    Returns:
        {"continual": metrics}, or {} without `start`. "tasks": names of the stages; "accuracy": a
        row per trained task, a column per tested task; "average_accuracy": mean over tasks after
        training the last; "forgetting": the best accuracy before the last task minus the accuracy
        after it, averaged over all tasks but the last. All are means over seeds; with several,
        "..._sd" are standard deviations.
    """
    by_name = {stage["name"]: stage for stage in stages}
    tasks = [stages[-1]["name"]]
    while (before := by_name[tasks[0]]["start"]) is not None:
        tasks.insert(0, before)
    if len(tasks) == 1:
        return {}
    runs = [run.stage(name) for name in tasks]
    experiments = [open_experiment(config_of(r), r, computed=("test",)) for r in runs]
    if "accuracy" not in experiments[-1].trainer.evaluated:
        return {}
    states = [restored(r, best=False, seen=e).state for r, e in zip(runs, experiments, strict=True)]
    columns = []
    for experiment in experiments:
        evaluate = compile_evaluation(experiment)
        values = [evaluate(state, experiment.test)["accuracy"] for state in states]
        columns.append(np.stack([np.atleast_1d(np.asarray(v, np.float64)) for v in values]))
    matrix = np.stack(columns, axis=1)  # (after, on, seeds)
    metrics = {
        "accuracy": matrix,
        "average_accuracy": matrix[-1].mean(0),
        "forgetting": forgetting(matrix),
    }
    summary: dict[str, Any] = {"tasks": tasks}
    for name, value in metrics.items():
        summary[name] = value.mean(-1).tolist()
        if value.shape[-1] > 1:
            summary[f"{name}_sd"] = value.std(-1, ddof=1).tolist()
    return {"continual": summary}


def forgetting(matrix: np.ndarray) -> np.ndarray:
    """Return the forgetting by seed of an accuracy matrix (after task, on task, seeds)."""
    best = matrix[:-1, :-1].max(axis=0)
    return (best - matrix[-1, :-1]).mean(axis=0)
