"""Construction of an experiment from a config, with checks that its parts fit."""

import math
from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict

import input_pipeline
from grlu.errors import UserError
from input_pipeline import Data
from models import MODELS
from trainers.config.schema import build
from trainers.devices import processes
from trainers.devices.mesh import MeshSettings, one_device_per_core
from trainers.gradient.settings import GradientSettings
from trainers.loop.experiment import Experiment, RunSettings
from trainers.loop.state import TrainState
from trainers.objectives.registry import OBJECTIVES, trait
from trainers.policies.settings import PreferenceSettings
from trainers.registry import TRAINERS

# Largest number of features of images that evaluation takes at once: 8 MB.
_FEATURES = 2**21
# Largest number of logits that evaluation holds at once: 0.5 GB.
_LOGITS = 2**27


def make_experiment(
    config: ConfigDict,
    data: Data | None = None,
    *,
    start: TrainState | None = None,
    judge: Any = None,
    reference: Any = None,
) -> Experiment:
    """Build data set, model and trainer, each from its own section.

    Args:
        config: a complete config.
        data: the data, by default the config's data set.
        start: a state with the weights to start from, by default new ones.
        judge: the reward model that scores a policy's completions.
        reference: the reference policy, if `trainer.reference` is the folder of a run.
    """
    one_device_per_core(config.run.seeds * config.mesh.population * config.mesh.data)
    data = data or build(input_pipeline.load, config.dataset, "dataset")
    entry = TRAINERS[config.trainer.name]
    settings = build(entry.settings, config.trainer, "trainer")
    run = build(RunSettings, config.run, "run")
    mesh = build(MeshSettings, config.mesh, "mesh")

    def make_model(rngs: nnx.Rngs) -> Any:
        sizes = data.example_shape, data.num_classes
        return build(MODELS[config.model.name], config.model, "model", *sizes, rngs=rngs)

    _require_data(config, data, settings, run)
    _require_judge(config, settings, judge)
    _require_mesh(config, data, settings, run, mesh)
    gradient = isinstance(settings, GradientSettings)
    if not gradient:
        _require_writer_model(config, make_model)
    given = {"judge": judge, "reference": reference}
    given = {name: value for name, value in given.items() if value is not None}
    steps = data.examples // settings.batch_size
    trainer: Any = entry.trainer(settings, make_model, steps, data, **given)
    if gradient:

        def answer(x: Any) -> Any:
            model = make_model(nnx.Rngs(0))
            return model, model(x)

        dtype = "float32" if data.tokenizer is None else "int32"
        example = jax.ShapeDtypeStruct((1, *data.example_shape), dtype)
        trainer.objective.require(config, data, *nnx.eval_shape(answer, example))
    return Experiment(
        seed=config.seed,
        trainer=trainer,
        train=data.train,
        validation=data.validation,
        test=data.test,
        preprocess=data.preprocess,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        run=run,
        mesh=mesh,
        by_seed=data.by_seed,
        streamed=data.streamed,
        evaluated_at_once=_evaluated_at_once(data, settings),
        augment=data.augment,
        start=start,
    )


def _evaluated_at_once(data: Data, settings: Any) -> int:
    """Return the number of examples that evaluation takes at once, to bound its memory."""
    limit = Experiment.evaluated_at_once
    if data.tokenizer is None:
        return max(1, min(limit, _FEATURES // math.prod(data.example_shape)))
    completions = getattr(settings, "eval_samples", 1)
    if isinstance(settings, PreferenceSettings):
        completions = 2 * settings.pairs
    logits = completions * data.example_shape[0] * data.num_classes
    return max(1, min(limit, _LOGITS // logits))


def _require_data(config: ConfigDict, data: Data, settings: Any, run: RunSettings) -> None:
    """Raise UserError if the data do not fit the trainer and the settings of the run."""
    if settings.batch_size > data.examples:
        raise UserError(
            f"trainer.batch_size is {settings.batch_size}, but {data.name} has only "
            f"{data.examples} training examples"
        )
    if data.by_seed and run.seeds != (seeds := len(data.train["label"])):
        raise UserError(
            f"run.seeds must equal the number of seeds of {data.name} ({seeds}), or be 1 for the "
            f"model that computes the features; got {run.seeds}"
        )
    if data.pairs and not isinstance(settings, PreferenceSettings):
        raise UserError(
            f"{data.name} holds preferences, from which trainer.name=reward_model or dpo learns, "
            f"and not {config.trainer.name}"
        )
    if run.patience is not None and data.validation is None:
        raise UserError("run.patience needs a validation split: give dataset.validation a size")
    text = data.tokenizer is not None
    if isinstance(settings, GradientSettings) and trait(settings.objective, "of_text") != text:
        fitting = [name for name in OBJECTIVES if trait(name, "of_text") == text]
        raise UserError(
            f"trainer.objective={settings.objective} does not go with {data.name}, which is "
            f"{'text' if text else 'images'}: use trainer.objective={' or '.join(fitting)}"
        )


def _require_judge(config: ConfigDict, settings: Any, judge: Any) -> None:
    """Raise UserError if a reward model is missing, or linked to a trainer without rewards."""
    linked = "judge" in config or judge is not None
    if "judge" in (vars(settings).get("rewards") or ()) and not linked:
        raise UserError(
            "the reward 'judge' needs a reward model: name its stage, or its run, by judge"
        )
    if linked and "rewards" not in vars(settings):
        raise UserError(
            "judge: a reward model scores completions: use trainer.name=grpo, or "
            "trainer.objective=completion_reward; got a trainer without rewards, "
            f"trainer.name={config.trainer.name}"
        )


def _require_mesh(
    config: ConfigDict, data: Data, settings: Any, run: RunSettings, mesh: MeshSettings
) -> None:
    """Raise UserError if the mesh cannot shard the run evenly."""
    if data.streamed and (run.seeds > 1 or mesh.size > 1 or processes.count() > 1):
        raise UserError(
            f"{data.name} is streamed from disk to one run on one device: run.seeds, "
            "mesh.population and mesh.data must be 1, in one process"
        )
    if run.seeds > 1 and mesh.size > 1:
        raise UserError(
            f"run.seeds is {run.seeds}: each seed runs on one device, so mesh must be 1 x 1, or "
            "run.seeds 1"
        )
    if settings.batch_size % mesh.data:
        raise UserError(
            f"mesh.data must divide trainer.batch_size ({settings.batch_size}), got {mesh.data}"
        )
    if mesh.population == 1:
        return
    by_rule = isinstance(settings, GradientSettings)
    name, group = settings.rule_class.dealt if by_rule else ("", 1)
    if not name:
        raise UserError(
            f"mesh.population is {mesh.population}, but trainer.name={config.trainer.name} has no "
            "noisy passes to shard: set it to 1, and use mesh.data"
        )
    passes, multiple = getattr(settings, name), group * mesh.population
    if passes == "auto" or passes % multiple:
        raise UserError(
            f"trainer.{name} must be a multiple of {multiple} for mesh.population="
            f"{mesh.population}, got {passes}"
        )


def _require_writer_model(config: ConfigDict, make_model: Any) -> None:
    """Raise UserError if the model is not one that can continue a text."""
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
