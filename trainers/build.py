"""Construction of an experiment from a config."""

import math
from typing import Any

from flax import nnx
from ml_collections import ConfigDict

import input_pipeline
from models import MODELS
from trainers import compatibility
from trainers.config.load import build
from trainers.devices.mesh import MeshSettings, one_device_per_core
from trainers.gradient.settings import GradientSettings
from trainers.loop.experiment import Experiment, RunSettings
from trainers.loop.state import TrainState
from trainers.policies.settings import PreferenceSettings
from trainers.registry import TRAINERS

# Largest number of features of images that evaluation takes at once: 8 MB.
_FEATURES = 2**21
# Largest number of logits that evaluation holds at once: 0.5 GB.
_LOGITS = 2**27


def make_experiment(
    config: ConfigDict,
    data: input_pipeline.Data | None = None,
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

    Raises:
        UserError: if the parts do not fit, or the data are missing.
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

    compatibility.require_data(config, data, settings, run)
    compatibility.require_judge(config, settings, judge)
    compatibility.require_mesh(config, data, settings, run, mesh)
    gradient = isinstance(settings, GradientSettings)
    if not gradient:
        compatibility.require_writer_model(config, make_model)
    given = {"judge": judge, "reference": reference}
    given = {name: value for name, value in given.items() if value is not None}
    steps = data.examples // settings.batch_size
    trainer: Any = entry.trainer(settings, make_model, steps, data, **given)
    if gradient:
        compatibility.require_fit(config, data, trainer.objective, make_model)
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


def _evaluated_at_once(data: input_pipeline.Data, settings: Any) -> int:
    """Return the number of examples that evaluation takes at once, to bound its memory."""
    limit = Experiment.evaluated_at_once
    if data.tokenizer is None:
        return max(1, min(limit, _FEATURES // math.prod(data.example_shape)))
    completions = getattr(settings, "eval_samples", 1)
    if isinstance(settings, PreferenceSettings):
        completions = 2 * settings.pairs
    logits = completions * data.example_shape[0] * data.num_classes
    return max(1, min(limit, _LOGITS // logits))
