"""From a config to an experiment."""

from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict

import grlu
import input_pipeline
from grlu.errors import UserError
from models import MODELS
from trainers.config import build
from trainers.devices import MeshSettings, one_device_per_core
from trainers.gradient import GradientSettings, gradient_settings
from trainers.pairs import DPO, RewardModel
from trainers.policy_settings import GRPO, PPO, PolicySettings, Reinforce
from trainers.protocol import Experiment, RunSettings
from trainers.state import TrainState

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
    "mesh": MeshSettings,
}


def make_experiment(
    config: ConfigDict,
    data: input_pipeline.Data | None = None,
    *,
    start: TrainState | None = None,
    judge: Any = None,
) -> Experiment:
    """Builds data set, model and trainer, each from its own section.

    Args:
        config: a complete config.
        data: what is to be learned, by default the config's data set.
        start: a state with the weights to begin with, by default new ones.
        judge: the reward of a reward model, for a policy.

    Raises:
        UserError: if they don't fit each other, or the data are missing.
    """
    one_device_per_core(config.run.seeds * config.mesh.population * config.mesh.data)
    data = data or build(input_pipeline.load, config.dataset, "dataset")
    settings = build(TRAINERS[config.trainer.name], config.trainer, "trainer")
    model = MODELS[config.model.name]

    def make_model(rngs: nnx.Rngs) -> Any:
        sizes = data.example_shape, data.num_classes
        made = build(model, config.model, "model", *sizes, rngs=rngs)
        return settings.prepare(made, data.num_classes)

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
    about: Any = data
    if isinstance(settings, GradientSettings):
        _require_fit(config, data, settings, make_model)
        about = data.num_classes
    given = {} if judge is None else {"judge": judge}
    if given and not isinstance(settings, PolicySettings):
        raise UserError(
            f"judge: a reward model pays a policy, and trainer.name={config.trainer.name} is none"
        )
    mesh = build(MeshSettings, config.mesh, "mesh")
    _require_shares(config.trainer.name, settings, run, mesh)
    return Experiment(
        seed=config.seed,
        trainer=settings.build(make_model, examples // settings.batch_size, about, **given),
        train=data.train,
        validation=data.validation,
        test=data.test,
        preprocess=data.preprocess,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        run=run,
        mesh=mesh,
        by_seed=data.by_seed,
        start=start,
    )


def _require_shares(trainer: str, settings: Any, run: RunSettings, mesh: MeshSettings) -> None:
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


def _require_fit(
    config: ConfigDict, data: input_pipeline.Data, settings: GradientSettings, make_model: Any
) -> None:
    """Raises UserError where objective, model and data don't go together."""
    text = data.tokenizer is not None
    if text != (settings.objective in ("lm", "denoising")):
        kind, fitting = ("text", "lm or denoising") if text else ("images", "classification")
        raise UserError(
            f"trainer.objective={settings.objective} does not go with {data.name}, which is {kind}:"
            f" use trainer.objective={fitting}"
        )

    def answer(x: Any) -> Any:
        return make_model(nnx.Rngs(0))(x)

    example = jax.ShapeDtypeStruct((1, *data.example_shape), "int32" if text else "float32")
    shape = nnx.eval_shape(answer, example).shape
    if text:
        _require_language_model(config, data, settings, shape)
        return
    if settings.objective == "classification" and shape[-1:] != (data.num_classes,):
        raise UserError(
            f"trainer.objective=classification needs a model with an answer for each of the "
            f"{data.num_classes} classes, and {config.model.name} gives one of shape {shape[1:]}; "
            "an autoencoder learns by trainer.objective=reconstruction"
        )
    if settings.objective == "reconstruction" and shape[1:] != data.example_shape:
        raise UserError(
            f"trainer.objective=reconstruction needs a model that gives back examples of shape "
            f"{data.example_shape}, an autoencoder, and {config.model.name} gives {shape[1:]}"
        )
    unit = "features" not in config and config.dataset.get("normalize", "unit") == "unit"
    if (settings.objective, settings.likelihood) == ("reconstruction", "bernoulli") and not unit:
        raise UserError(
            "trainer.likelihood=bernoulli needs pixels in [0, 1]: set dataset.normalize=unit, "
            "or trainer.likelihood=gaussian"
        )
    if settings.objective == "fast_learner" and settings.rule_class.local:
        raise UserError(
            "trainer.objective=fast_learner rewards a batch as a whole, so that no credit goes to "
            "single examples: use trainer.name=evolution or weight_perturbation"
        )


def _require_language_model(
    config: ConfigDict,
    data: input_pipeline.Data,
    settings: GradientSettings,
    shape: tuple[int, ...],
) -> None:
    wanted = (*data.example_shape, data.num_classes)
    if shape[1:] != wanted:
        raise UserError(
            f"trainer.objective={settings.objective} needs a model with an answer for each of the "
            f"{data.num_classes} tokens at each of the {data.example_shape[0]} places, such as gpt,"
            f" and {config.model.name} gives one of shape {shape[1:]}"
        )
    causal = settings.objective == "lm"
    if config.model.get("causal", causal) != causal:
        raise UserError(
            f"trainer.objective={settings.objective} needs a model that sees "
            f"{'only what comes before' if causal else 'the whole text'}: set "
            f"model.causal={str(causal).lower()}"
        )
