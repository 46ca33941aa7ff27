"""From a config to an experiment, and the three things one does with it."""

import logging
import pathlib
from collections.abc import Sequence
from typing import Any

from flax import nnx
from ml_collections import ConfigDict

import grlu
import input_pipeline
from grlu.errors import UserError
from models import MODELS
from trainers.config import build, load_config, source_name, to_json, validate
from trainers.devices import one_device_per_core
from trainers.gradient import GradientSettings, gradient_settings
from trainers.loop import (
    Experiment,
    Result,
    RunSettings,
    evaluate_state,
    fit,
    open_checkpoints,
)
from trainers.run_directory import RunDirectory, default_path, logged_to

_log = logging.getLogger("grlu")

# One trainer a rule: the gradient trainer with that rule. A new rule is one line here.
TRAINERS: dict[str, type[GradientSettings]] = {
    "backprop": gradient_settings("Backprop", grlu.Backprop, "The exact gradient, the yardstick."),
    "evolution": gradient_settings(
        "Evolution",
        grlu.EvolutionStrategy,
        "Evolution strategy: a population of noisy weights, ranked by reward.",
    ),
    "feedback_alignment": gradient_settings(
        "FeedbackAlignment",
        grlu.FeedbackAlignment,
        "The output's delta, sent back through random weights.",
    ),
    "forward_gradient": gradient_settings(
        "ForwardGradient",
        grlu.ForwardGradient,
        "Exact slopes along random directions, by forward-mode AD.",
    ),
    "grlu": gradient_settings(
        "GRLU", grlu.NodePerturbation, "Node perturbation: credit from noise and reward."
    ),
    "weight_perturbation": gradient_settings(
        "WeightPerturbation", grlu.WeightPerturbation, "Noise on all weights at once."
    ),
}

# What each section of a config builds.
SECTIONS: Any = {
    "dataset": input_pipeline.loader,
    "model": MODELS,
    "trainer": TRAINERS,
    "run": RunSettings,
}


def resolve(source: Any, overrides: Sequence[str] = ()) -> ConfigDict:
    """A complete, validated config from a name, a path, a ConfigDict or a dict.

    Raises:
        UserError: naming the key that is wrong, and the nearest right one.
    """
    return validate(load_config(source, overrides), SECTIONS)


def make_experiment(config: ConfigDict) -> Experiment:
    """Builds data set, model and trainer, each from its own section.

    Raises:
        UserError: if they don't fit each other, or the data are missing.
    """
    one_device_per_core(config.run.seeds)
    data = build(input_pipeline.load, config.dataset, "dataset")
    settings = build(TRAINERS[config.trainer.name], config.trainer, "trainer")
    model = MODELS[config.model.name]

    def make_model(rngs: nnx.Rngs) -> Any:
        sizes = data.example_shape, data.num_classes
        made = build(model, config.model, "model", *sizes, rngs=rngs)
        return settings.prepare(made, data.num_classes)

    examples = len(next(iter(data.train.values())))
    if settings.batch_size > examples:
        raise UserError(
            f"trainer.batch_size is {settings.batch_size}, but {data.name} has only {examples} "
            "training examples"
        )
    return Experiment(
        seed=config.seed,
        trainer=settings.build(make_model, examples // settings.batch_size),
        train=data.train,
        validation=data.validation,
        test=data.test,
        preprocess=data.preprocess,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        run=build(RunSettings, config.run, "run"),
    )


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
    config = resolve(source, overrides)
    experiment = make_experiment(config)
    path = pathlib.Path(run_dir) if run_dir else default_path(source_name(source))
    run = RunDirectory.create(path, to_json(config), overwrite=overwrite)
    with logged_to(run.log):
        _log.info("training in %s", run.path)
        return fit(experiment, run, progress=progress)


def resume(run_dir: str | pathlib.Path, *, progress: bool = True) -> Result:
    """Continues a run from its newest checkpoint: bit for bit as if it had never stopped.

    A run that is finished is only read. Raises what `train` raises.
    """
    run = RunDirectory.open(pathlib.Path(run_dir))
    experiment = make_experiment(resolve(run.config))
    with logged_to(run.log):
        return fit(experiment, run, progress=progress)


def evaluate(run_dir: str | pathlib.Path, *, best: bool = False) -> dict[str, Any]:
    """Metrics of a run's newest (or best) checkpoint on the test split.

    Returns:
        `{"run", "step", "test_accuracy", ...}`, every metric of the trainer with `test_` before;
        with several seeds their means, and with `_sd` after their standard deviations.

    Raises:
        UserError: if there is no run or no checkpoint.
    """
    run = RunDirectory.open(pathlib.Path(run_dir))
    experiment = make_experiment(resolve(run.config))
    with open_checkpoints(experiment, run) as checkpoints:
        if checkpoints.latest_step is None:
            raise UserError(f"{run.path} has no checkpoint yet; 'grlu resume {run.path}' trains it")
        restored = checkpoints.restore(experiment.init(), best=best)
    metrics = evaluate_state(experiment, restored.state, experiment.test)
    return {
        "run": str(run.path),
        "step": restored.step,
        **metrics,
    }
