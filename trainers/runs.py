"""What one does with a run, or with a pipeline of them: train it, resume it, evaluate it."""

import functools
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from grlu.errors import UserError
from trainers import generative, hybrid, linked, remote
from trainers.compiled import require_step
from trainers.config import load_config, source_name, to_json, validate
from trainers.devices import placed
from trainers.experiment import SECTIONS
from trainers.features import config_of, open_experiment, restored
from trainers.loop import Result, evaluate_state, fit, require_numbers
from trainers.paths import absolute
from trainers.run_directory import RunDirectory, default_path, logged_to

_log = logging.getLogger("grlu")


def resolve(source: Any, overrides: Sequence[str] = ()) -> ConfigDict:
    """A complete, validated config from a name, a path, a ConfigDict or a dict.

    Raises:
        UserError: naming the key that is wrong, and the nearest right one.
    """
    config = load_config(source, overrides)
    return hybrid.complete(config) if "stages" in config else validate(config, SECTIONS)


def train(
    source: Any,
    run_dir: str | pathlib.Path | None = None,
    *,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    progress: bool = True,
) -> Result:
    """Trains what a config describes, and tests it once.

    Args:
        source: name of a config, path of a .py, .json or .yaml file, ConfigDict, or dict.
        run_dir: the run's folder; by default `runs/NAME-<time>`.
        overrides: changes such as "trainer.samples=16".
        overwrite: whether a run that is already in `run_dir` may be replaced.
        progress: whether to show a progress bar.

    Raises:
        UserError: on a mistake in the config, the data or the folder.
        RunError: if the run breaks.
        Interrupted: on SIGINT or SIGTERM, after saving.
    """
    config = absolute(resolve(source, overrides))
    path = RunDirectory(pathlib.Path(run_dir or default_path(source_name(source)))).path
    if "stages" in config:
        hybrid.check(config)
        run = RunDirectory.create(
            path, to_json(config), overwrite=overwrite, fill=functools.partial(hybrid.keep, config)
        )
        return hybrid.fit_stages(config, run, progress=progress)
    experiment = open_experiment(config, None)
    placed(experiment.run.seeds, experiment.mesh)
    require_step(experiment)
    remote.require(experiment.run.wandb)
    run = RunDirectory.create(
        path, to_json(config), overwrite=overwrite, fill=functools.partial(linked.keep, config)
    )
    with logged_to(run.log):
        _log.info("training in %s", run.path)
        return fit(experiment, run, progress=progress)


def resume(
    run_dir: str | pathlib.Path, *, overrides: Sequence[str] = (), progress: bool = True
) -> Result:
    """Continues a run from its newest checkpoint: bit for bit as if it had never stopped.

    A run, or a stage of a pipeline, that is finished is only read. Raises what `train` raises.

    Args:
        run_dir: the run's folder.
        overrides: such as "mesh.data=1", for other devices than before; nothing else may change.
            On another mesh sums are rounded in another order.
        progress: whether to show a progress bar.
    """
    for override in overrides:
        if not override.startswith("mesh."):
            raise UserError(f"{override!r}: of a run only the mesh may change, mesh.key=value")
    run = RunDirectory.open(pathlib.Path(run_dir))
    config = load_config(run.config)
    if "stages" in config:
        return hybrid.fit_stages(
            hybrid.complete(config), run, progress=progress, overrides=overrides
        )
    experiment = open_experiment(config_of(run, overrides), run)
    with logged_to(run.log):
        return fit(experiment, run, progress=progress)


def evaluate(
    run_dir: str | pathlib.Path,
    *,
    best: bool = False,
    effort: generative.Effort | None = None,
) -> dict[str, Any]:
    """Metrics of a run's newest (or best) checkpoint on the test split.

    Args:
        run_dir: the run's folder.
        best: whether the best checkpoint by validation is meant, as it always is of a run with
            `run.patience`.
        effort: how much a variational autoencoder is asked.

    Returns:
        `{"run", "step", "test_accuracy", ...}`, every metric of the trainer with `test_` before;
        with several seeds their means, and with `_sd` after their standard deviations. Of a
        pipeline: those of its last stage, end to end, and "continual" where stages start from
        each other (`trainers.continual`). Of a variational autoencoder also what
        `trainers.generative.measured` finds.

    Raises:
        UserError: if there is no run or no checkpoint.
        RunError: if one of them is not a number.
    """
    run = own = RunDirectory.open(pathlib.Path(run_dir))
    config, more = load_config(run.config), {}
    if "stages" in config:
        pipeline = hybrid.complete(config)
        own, more = hybrid.last_stage(pipeline, run), hybrid.continued(pipeline, run)
    config = config_of(own)
    generates = generative.is_generative(config)
    splits = ("train", "test") if generates else ("test",)
    experiment = open_experiment(config, own, computed=splits)
    found = restored(own, best=best, seen=experiment)
    metrics: dict[str, Any] = evaluate_state(experiment, found.state, experiment.test)
    require_numbers(metrics, experiment, found.state, found.step, found.step, own)
    if generates:
        metrics |= generative.measured(experiment, found.state, effort or generative.Effort())
    return {"run": str(run.path), "step": found.step, **metrics, **more}
