"""Whether the parts of an experiment go together: data, model, objective, and devices."""

from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict

from grlu.errors import UserError
from input_pipeline import Data
from models import VAE
from trainers import processes
from trainers.devices import MeshSettings
from trainers.protocol import RunSettings
from trainers.rule_settings import GradientSettings


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


def require_fit(
    config: ConfigDict, data: Data, settings: GradientSettings, make_model: Any
) -> None:
    """Raises UserError where objective, model and data don't go together."""
    text = data.tokenizer is not None
    if text != (settings.objective in ("lm", "denoising", "completion_reward")):
        of_text = "lm, denoising or completion_reward"
        kind, fitting = ("text", of_text) if text else ("images", "classification")
        raise UserError(
            f"trainer.objective={settings.objective} does not go with {data.name}, which is {kind}:"
            f" use trainer.objective={fitting}"
        )

    def answer(x: Any) -> Any:
        model = make_model(nnx.Rngs(0))
        return model, model(x)

    example = jax.ShapeDtypeStruct((1, *data.example_shape), "int32" if text else "float32")
    model, answered = nnx.eval_shape(answer, example)
    shape = answered.shape
    if text:
        _require_language_model(config, data, settings, shape)
        return
    variational = settings.objective in ("elbo", "iwae")
    if variational and not isinstance(model, VAE):
        raise UserError(
            f"trainer.objective={settings.objective} needs a variational autoencoder such as "
            f"vae_mlp, and model.name is {config.model.name}"
        )
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
    where, has = ("model", model) if variational else ("trainer", settings)
    if getattr(has, "likelihood", None) == "bernoulli" and not unit:
        raise UserError(
            f"{where}.likelihood=bernoulli needs pixels in [0, 1]: set dataset.normalize=unit, "
            f"or {where}.likelihood=gaussian"
        )


def _require_language_model(
    config: ConfigDict,
    data: Data,
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
    causal = settings.objective != "denoising"
    if config.model.get("causal", causal) != causal:
        raise UserError(
            f"trainer.objective={settings.objective} needs a model that sees "
            f"{'only what comes before' if causal else 'the whole text'}: set "
            f"model.causal={str(causal).lower()}"
        )
