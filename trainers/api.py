"""Train, resume and evaluate runs and pipelines."""

import functools
import logging
import pathlib
import time
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from grlu.errors import UserError
from trainers.config.load import load_config, source_name, to_json
from trainers.config.paths import absolute
from trainers.config.schema import validate
from trainers.evaluation import generative
from trainers.loop.loop import Result, evaluate_checkpoint, fit, require_runnable
from trainers.loop.run_dir import RunDirectory, logged_to
from trainers.pipelines import links, stages
from trainers.pipelines.forgetting import measured
from trainers.pipelines.links import config_of
from trainers.pipelines.open import open_experiment, restored
from trainers.registry import SECTIONS

_log = logging.getLogger("grlu")


def resolve(source: Any, overrides: Sequence[str] = ()) -> ConfigDict:
    """Return a complete, validated config from a name, a path, a ConfigDict or a dict.

    Raises:
        UserError: on a mistake, naming the key and the nearest valid one.
    """
    config = load_config(source, overrides)
    return stages.complete(config) if "stages" in config else validate(config, SECTIONS)


def train(
    source: Any,
    run_dir: str | pathlib.Path | None = None,
    *,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    progress: bool = True,
) -> Result:
    """Train the model of a config, and test it at the end.

    Args:
        source: name of a config, path of a .py, .json or .yaml file, ConfigDict, or dict.
        run_dir: the run's folder; by default `runs/NAME-<time>`.
        overrides: changes such as "trainer.samples=16".
        overwrite: replace a run that is already in `run_dir`.
        progress: show a progress bar.

    Raises:
        UserError: on a mistake in the config, the data or the folder.
        RunError: if the run fails.
        Interrupted: on SIGINT or SIGTERM, after saving.
    """
    config = absolute(resolve(source, overrides))
    default = f"runs/{source_name(source)}-{time.strftime('%Y%m%d-%H%M%S')}"
    path = RunDirectory(pathlib.Path(run_dir or default)).path
    pipeline = "stages" in config
    if pipeline:
        stages.check(config)
    else:
        experiment = open_experiment(config, None)
        require_runnable(experiment)
    fill = functools.partial(stages.keep if pipeline else links.keep, config)
    run = RunDirectory.create(path, to_json(config), overwrite=overwrite, fill=fill)
    if pipeline:
        return stages.fit_stages(config, run, progress=progress)
    with logged_to(run.log):
        _log.info("training in %s", run.path)
        return fit(experiment, run, progress=progress)


def resume(
    run_dir: str | pathlib.Path, *, overrides: Sequence[str] = (), progress: bool = True
) -> Result:
    """Continue a run from its newest checkpoint, bit-identical to a run that never stopped.

    Finished runs, and finished stages of a pipeline, are only read.

    Args:
        run_dir: the run's folder.
        overrides: changes of the mesh, such as "mesh.data=1"; nothing else may change. Another mesh
            rounds sums in another order.
        progress: show a progress bar.

    Raises:
        UserError: on a mistake in the overrides, the data or the folder.
        RunError: if the run fails.
        Interrupted: on SIGINT or SIGTERM, after saving.
    """
    for override in overrides:
        if not override.startswith("mesh."):
            raise UserError(f"{override!r}: only the mesh may change on resume, as in mesh.data=1")
    run = RunDirectory.open(pathlib.Path(run_dir))
    config = load_config(run.config)
    if "stages" in config:
        pipeline = stages.complete(config)
        return stages.fit_stages(pipeline, run, progress=progress, overrides=overrides)
    experiment = open_experiment(config_of(run, overrides), run)
    with logged_to(run.log):
        return fit(experiment, run, progress=progress)


def evaluate(
    run_dir: str | pathlib.Path, *, best: bool = False, effort: generative.Effort | None = None
) -> dict[str, Any]:
    """Return the test metrics of a run's newest (or best) checkpoint.

    Args:
        run_dir: the run's folder.
        best: use the best checkpoint by validation; always done with `run.patience`.
        effort: numbers of samples and images for a variational autoencoder.

    Returns:
        `{"run", "step", "test_accuracy", ...}`, with every metric of the trainer under `test_...`;
        for several seeds, means, and standard deviations under `..._sd`. For a pipeline, the
        metrics of its last stage, evaluated end to end, and "continual" if stages start from each
        other (`trainers.pipelines.forgetting`). For a variational autoencoder also those of
        `trainers.evaluation.generative.measured`.

    Raises:
        UserError: if there is no run or no checkpoint.
        RunError: if a metric is not a number.
    """
    run = own = RunDirectory.open(pathlib.Path(run_dir))
    config, continual = load_config(run.config), {}
    if "stages" in config:
        pipeline = stages.complete(config)
        own, continual = stages.last_stage(pipeline, run), measured(run, pipeline["stages"])
    config = config_of(own)
    is_generative = generative.is_generative(config)
    splits = ("train", "test") if is_generative else ("test",)
    experiment = open_experiment(config, own, computed=splits)
    checkpoint = restored(own, best=best, seen=experiment)
    state, step = checkpoint.state, checkpoint.step
    metrics: dict[str, Any] = evaluate_checkpoint(experiment, state, own, step)
    if is_generative:
        metrics |= generative.measured(experiment, state, effort or generative.Effort())
    return {"run": str(run.path), "step": step, **metrics, **continual}
