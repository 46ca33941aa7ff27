"""Whether the parts of an experiment go together: data, model, objective, and devices."""

from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict

from grlu.errors import UserError
from input_pipeline import Data
from trainers import processes
from trainers.devices import MeshSettings
from trainers.objectives import OBJECTIVES, learns_from_text
from trainers.pairs import PairTrainer
from trainers.protocol import Experiment, RunSettings
from trainers.rule_settings import GradientSettings
from trainers.run_directory import RunDirectory


def require_whole(data: Data, run: RunSettings, mesh: MeshSettings) -> None:
    """Raises UserError where the data are not what the run's settings need."""
    if run.patience is not None and data.validation is None:
        raise UserError("run.patience needs a validation split: give dataset.validation a size")
    if data.streamed and (run.seeds > 1 or mesh.size > 1 or processes.count() > 1):
        raise UserError(
            f"{data.name} is streamed from disk to one run on one device: run.seeds, "
            "mesh.population and mesh.data must be 1, in one process"
        )


def require_vocabulary(what: str, data: Data, other: Data, path: Any) -> None:
    """Raises UserError where a run's data and those of another one have other tokens."""
    own, theirs = (d.tokenizer.vocabulary if d.tokenizer else None for d in (data, other))
    if own != theirs:
        raise UserError(
            f"{what}: the run in {path} has other tokens, {theirs or 'none'}, than this run's "
            f"data, {own or 'none'}: both need the same text, or dataset.tokenizer=byte or gpt2"
        )


def require_writer(run: RunDirectory, experiment: Experiment, data: Data) -> None:
    """Raise UserError, saying what the model of a run does, unless it writes text."""
    trainer = experiment.trainer
    if isinstance(trainer, PairTrainer) and trainer.settings.scores:
        raise UserError(
            f"{run.path} is a reward model, which scores texts and writes none: name the policy "
            "that it pays, or the language model with which it began"
        )
    if data.tokenizer is not None:
        return
    objective = getattr(trainer.settings, "objective", "")
    if objective in ("elbo", "iwae"):
        what = (
            f"a variational autoencoder of {data.name}: 'grlu report {run.path}' draws its images"
        )
    elif objective == "reconstruction":
        what = f"an autoencoder of {data.name}: 'grlu report {run.path}' draws what it gives back"
    else:
        what = f"a classifier of {data.name}: 'grlu evaluate {run.path}' tells how good it is"
    raise UserError(f"{run.path} writes no text, it is {what}")


def require_shares(trainer: str, settings: Any, run: RunSettings, mesh: MeshSettings) -> None:
    """Raises UserError where the mesh can't share out the run evenly."""
    if run.seeds > 1 and mesh.size > 1:
        raise UserError(
            f"run.seeds is {run.seeds}: several seeds are dealt to the devices whole, so mesh must "
            "be 1 x 1, or run.seeds 1"
        )
    if settings.batch_size % mesh.data:
        raise UserError(
            f"trainer.batch_size is {settings.batch_size}, and mesh.data {mesh.data} doesn't "
            "divide it"
        )
    if mesh.population == 1:
        return
    by_rule = isinstance(settings, GradientSettings)
    name, each = settings.rule_class.dealt if by_rule else (None, 1)
    if not name:
        raise UserError(
            f"mesh.population is {mesh.population}, but trainer.name={trainer} has no noisy "
            "passes to deal out: let it be 1, and use mesh.data"
        )
    passes = getattr(settings, name)
    if passes % (each * mesh.population):
        more = "" if each == 1 else f" in groups of {each}"
        raise UserError(
            f"trainer.{name} is {passes}, which can't be dealt{more} to mesh.population="
            f"{mesh.population} devices: it must be a multiple of {each * mesh.population}"
        )


def require_writing(config: ConfigDict, make_model: Any) -> None:
    """Raises UserError where a model can't continue a text."""
    model = nnx.eval_shape(lambda: make_model(nnx.Rngs(0)))
    if not hasattr(model, "cached"):
        raise UserError(
            f"trainer.name={config.trainer.name} needs a model that writes, such as gpt, and "
            f"model.name is {config.model.name}"
        )
    if not getattr(model, "causal", True):
        raise UserError(
            f"trainer.name={config.trainer.name} needs a model that sees only what comes before: "
            "set model.causal=true"
        )


def require_fit(
    config: ConfigDict, data: Data, settings: GradientSettings, make_model: Any
) -> None:
    """Raises UserError where objective, model and data don't go together."""
    text = data.tokenizer is not None
    if learns_from_text(settings.objective) != text:
        fitting = [name for name in OBJECTIVES if learns_from_text(name) == text]
        raise UserError(
            f"trainer.objective={settings.objective} does not go with {data.name}, which is "
            f"{'text' if text else 'images'}: use trainer.objective={' or '.join(fitting)}"
        )

    def answer(x: Any) -> Any:
        model = make_model(nnx.Rngs(0))
        return model, model(x)

    example = jax.ShapeDtypeStruct((1, *data.example_shape), "int32" if text else "float32")
    settings.make_objective(data).require(config, data, *nnx.eval_shape(answer, example))
