"""From a config to an experiment."""

import math
from typing import Any

from flax import nnx
from ml_collections import ConfigDict

import grlu
import input_pipeline
from grlu.errors import UserError
from models import MODELS
from trainers.compatibility import require_fit, require_shares, require_whole, require_writing
from trainers.config import build
from trainers.devices import MeshSettings, one_device_per_core
from trainers.pair_settings import DPO, PairSettings, RewardModel
from trainers.policy_settings import GRPO, PPO, Reinforce
from trainers.protocol import Experiment, RunSettings
from trainers.rule_settings import GradientSettings, gradient_settings
from trainers.state import TrainState
from trainers.svi import SVI

# One trainer a rule: the gradient trainer with that rule. A new rule is one line here.
TRAINERS: dict[str, Any] = {
    "backprop": gradient_settings("Backprop", grlu.Backprop, "The exact gradient, the yardstick."),
    "dpo": DPO,
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
    "grpo": GRPO,
    "grlu": gradient_settings(
        "GRLU", grlu.NodePerturbation, "Node perturbation: credit from noise and reward."
    ),
    "ppo": PPO,
    "reinforce": Reinforce,
    "reward_model": RewardModel,
    "svi": SVI,
    "weight_perturbation": gradient_settings(
        "WeightPerturbation", grlu.WeightPerturbation, "Noise on all weights at once."
    ),
}

# Features of images that evaluation takes at once: 8 MB, before what a network makes of them.
_FEATURES = 2**21
# Logits that evaluation may hold at once: 0.5 GB.
_LOGITS = 2**27

# What each section of a config builds.
SECTIONS: Any = {
    "dataset": input_pipeline.loader,
    "model": MODELS,
    "trainer": TRAINERS,
    "run": RunSettings,
    "mesh": MeshSettings,
}


def make_experiment(
    config: ConfigDict,
    data: input_pipeline.Data | None = None,
    *,
    start: TrainState | None = None,
    judge: Any = None,
    reference: Any = None,
) -> Experiment:
    """Builds data set, model and trainer, each from its own section.

    Args:
        config: a complete config.
        data: what is to be learned, by default the config's data set.
        start: a state with the weights to begin with, by default new ones.
        judge: the reward of a reward model, for a policy.
        reference: the reference of a policy whose `trainer.reference` is the folder of a run.

    Raises:
        UserError: if they don't fit each other, or the data are missing.
    """
    one_device_per_core(config.run.seeds * config.mesh.population * config.mesh.data)
    data = data or build(input_pipeline.load, config.dataset, "dataset")
    settings = build(TRAINERS[config.trainer.name], config.trainer, "trainer")
    model = MODELS[config.model.name]

    def make_model(rngs: nnx.Rngs) -> Any:
        sizes = data.example_shape, data.num_classes
        return build(model, config.model, "model", *sizes, rngs=rngs)

    run = build(RunSettings, config.run, "run")
    examples = data.examples
    if settings.batch_size > examples:
        raise UserError(
            f"trainer.batch_size is {settings.batch_size}, but {data.name} has only {examples} "
            "training examples"
        )
    if data.by_seed and run.seeds != len(data.train["label"]):
        raise UserError(
            f"run.seeds is {run.seeds}, but {data.name} are those of {len(data.train['label'])} "
            "seeds: it must be the same, or 1 for the model whose features they are"
        )
    if data.pairs and not isinstance(settings, PairSettings):
        raise UserError(
            f"{data.name} holds preferences, from which trainer.name=reward_model or dpo learns, "
            f"and not {config.trainer.name}"
        )
    if isinstance(settings, GradientSettings):
        require_fit(config, data, settings, make_model)
    else:
        require_writing(config, make_model)
    if "judge" in (vars(settings).get("rewards") or ()) and "judge" not in config:
        raise UserError(
            "the reward 'judge' needs a reward model: name its stage, or its run, by judge"
        )
    given = {"judge": judge, "reference": reference}
    given = {name: value for name, value in given.items() if value is not None}
    if judge is not None and isinstance(settings, PairSettings):
        raise UserError(
            "judge: a reward model pays what a model writes, and "
            f"trainer.name={config.trainer.name} is paid nothing"
        )
    mesh = build(MeshSettings, config.mesh, "mesh")
    require_shares(config.trainer.name, settings, run, mesh)
    require_whole(data, run, mesh)
    return Experiment(
        seed=config.seed,
        trainer=settings.build(make_model, examples // settings.batch_size, data, **given),
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
        evaluated_at_once=_at_once(data, settings),
        augment=data.augment,
        start=start,
    )


def _at_once(data: input_pipeline.Data, settings: Any) -> int:
    """How many examples evaluation takes at once: fewer of large ones, or answered at length."""
    if data.tokenizer is None:
        return max(1, min(Experiment.evaluated_at_once, _FEATURES // math.prod(data.example_shape)))
    answers = getattr(settings, "eval_samples", 1)  # Of what writes.
    if isinstance(settings, PairSettings):
        answers = 2 * settings.pairs
    logits = answers * data.example_shape[0] * data.num_classes
    return max(1, min(Experiment.evaluated_at_once, _LOGITS // logits))
