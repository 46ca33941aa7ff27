"""Configs of other projects: the original project's JSON, and YAML files of research code.

The original project writes `{"model": {"layer_sizes": [784, 256, 10]}, "training": {"epochs": 10,
"n_perturbations": 128, …}}`; a file without keys of the perturbation describes the backprop
baseline. The research code for variational autoencoders has likelihoods that are means over pixels,
ours are sums in nats: the same β weighs less here.
"""

import logging
from collections.abc import Mapping
from typing import Any

from grlu import NodePerturbation
from grlu.errors import UserError
from trainers.config.schema import INHERITED, build, unknown

_log = logging.getLogger("grlu")

_PIXELS, _DIGITS = 784, 10
_PERTURBATION = {"n_perturbations", "noise_max", "noise_min", "k"}


def from_original(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections of our config that run a config of the original project.

    As in the published runs, all 60,000 training images are used, without a validation split.

    Raises:
        UserError: for an unknown key, a wrong type, or layers that do not fit MNIST.
    """
    for key in given:
        if key not in ("model", "training"):
            message = f"the original configuration has no section {key!r}"
            raise unknown(message, key, ["model", "training"])
    for section, values in given.items():
        _require_section(section, values)
    model, training = given.get("model", {}), given.get("training", {})
    trainer = _perturbation if _PERTURBATION & set(training) else _backprop
    seed, activation, own = build(trainer, training, "training")
    epochwise = {"optimizer": "sgd", "schedule": "cosine", "schedule_per": "epoch"}
    return {
        "seed": seed,
        "dataset": {"name": "mnist", "validation": 0},
        "model": build(_layers, model, "model") | activation,
        "trainer": own | epochwise,
    }


def _layers(*, layer_sizes: tuple[int, ...]) -> dict[str, Any]:
    if len(layer_sizes) < 2 or min(layer_sizes) < 1:
        raise UserError(
            f"model.layer_sizes must be two or more positive integers, got {list(layer_sizes)}"
        )
    if (layer_sizes[0], layer_sizes[-1]) != (_PIXELS, _DIGITS):
        raise UserError(
            f"model.layer_sizes must start with the {_PIXELS} pixels of an MNIST image and end "
            f"with its {_DIGITS} classes, got {list(layer_sizes)}"
        )
    return {"name": "mlp", "hidden": layer_sizes[1:-1], "layer_norm": True}


def _backprop(
    *,
    epochs: int = 50,
    batch_size: int = 256,
    lr_max: float = 0.1,
    lr_min: float = 0.0,
    seed: int = 42,
) -> tuple[int, dict[str, Any], dict[str, Any]]:
    rates = {"learning_rate": lr_max, "learning_rate_end": lr_min}
    trainer = {"name": "backprop", "epochs": epochs, "batch_size": batch_size, **rates}
    return seed, {"activation": "relu"}, trainer


def _perturbation(
    *,
    epochs: int = 10,
    batch_size: int = 1,
    n_perturbations: int = 128,
    noise_max: float = 0.1,
    noise_min: float = 0.0,
    lr_max: float = 0.1,
    lr_min: float = 0.0,
    k: float | None = None,
    seed: int = 42,
) -> tuple[int, dict[str, Any], dict[str, Any]]:
    seed, relu, common = _backprop(
        epochs=epochs, batch_size=batch_size, lr_max=lr_max, lr_min=lr_min, seed=seed
    )
    rule = vars(NodePerturbation.published(n_perturbations, noise_max))
    trainer = common | {key: v for key, v in rule.items() if key not in ("wrt", "update")}
    trainer |= {"name": "grlu", "reward": "floored_log_likelihood"}
    trainer |= {"sigma_end": noise_min, "sigma_schedule": "cosine"}
    return seed, relu if k is None else {"activation": "topk", "topk": k}, trainer


_RENAMED = {
    ("model", "type"): ("model", "name"),
    ("dataset", "batch_size"): ("trainer", "batch_size"),
}
_IGNORED = {
    "dataset": ("num_workers", "pin_memory", "shuffle"),
    "trainer": ("device", "save_dir"),
}


def from_yaml(layout: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections of our config; `layout` may use our own names as well.

    `train` becomes `trainer`, `model.type` becomes `model.name`, and `dataset.batch_size` becomes
    `trainer.batch_size`. Keys that have no effect here are dropped with a warning.

    Raises:
        UserError: if a key is given under both names.
    """
    sections: dict[str, Any] = {}
    for where, section in layout.items():
        name = "trainer" if where == "train" else where
        if name in sections:
            raise UserError("train and trainer are the same section: give one of them")
        if name in ("seed", "stages"):
            sections[name] = section
            continue
        _require_section(name, {} if section is None else section)
        sections[name] = dict(section or {})
    for (where, key), (new_where, new_key) in _RENAMED.items():
        if key in sections.get(where, {}):
            target = sections.setdefault(new_where, {})
            if new_key in target:
                raise UserError(f"{where}.{key} and {new_where}.{new_key} are the same: give one")
            target[new_key] = sections[where].pop(key)
    for where, keys in _IGNORED.items():
        for key in keys:
            if key in sections.get(where, {}):
                del sections[where][key]
                _log.warning("ignored: %s.%s is not supported", where, key)
    return sections


_MODELS = {"vae_mlp": "vae_mlp", "vae_conv": "vae_conv", "ivae_iterative": "ivae"}
# (their section, their key) -> (our section, our key)
_MOVED = {
    ("dataset", "batch_size"): ("trainer", "batch_size"),
    ("model", "z_dim"): ("model", "latent"),
    ("model", "lr"): ("trainer", "learning_rate"),
    ("model", "lr_inf"): ("trainer", "svi_learning_rate"),
    ("model", "svi_steps"): ("trainer", "svi_steps"),
    ("model", "beta"): ("trainer", "beta"),
    ("model", "weight_decay"): ("trainer", "weight_decay"),
    ("model", "init_weights"): ("run", "init_from"),
    ("train", "epochs"): ("trainer", "epochs"),
    ("train", "grad_clip"): ("trainer", "clip"),
    ("train", "save_top_k"): ("run", "keep_best"),
    ("train", "patience"): ("run", "patience"),
    ("train", "seed"): ("", "seed"),
}
# Keys that `from_vae` reads by name.
_NAMED = (("dataset", "name"), ("model", "type"), ("train", "early_stopping"), ("train", "use_amp"))
_SECTIONS = {"dataset": "dataset", "model": "model", "train": "trainer"}


def is_vae(layout: Mapping[str, Any]) -> bool:
    """Tell whether a file has this layout: a `model.type` of the research code."""
    model = layout.get("model")
    return isinstance(model, Mapping) and model.get("type") in _MODELS


def from_vae(layout: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections of our config.

    Other keys keep their names, and validation drops unknown ones with a warning.

    Raises:
        UserError: if a section is not a mapping.
    """
    iterative = layout["model"]["type"] == "ivae_iterative"
    name = _MODELS[layout["model"]["type"]]
    trainer = "svi" if iterative else "backprop"
    sections: dict[str, dict[str, Any]] = {
        "": {"seed": layout.get("seed", 0)},
        "dataset": {"name": "mnist", "normalize": "unit", "flatten": name != "vae_conv"},
        "model": {"name": name},
        "trainer": {
            "name": trainer,
            "objective": "elbo",
            "batch_size": 256,
            "epochs": 225,
            "optimizer": "adam",
            "schedule": "constant",
            "learning_rate": 1e-4 if iterative else 1e-3,
            "beta": 1.0 if iterative else 2.0,
            "clip": 1.0,
        }
        | ({"mode": "decoupled"} if iterative else {}),
        "run": {"patience": 25, "keep_best": 5, "rows_per_epoch": 1},
    }
    if ignored := [where for where in layout if where not in (*_SECTIONS, "seed")]:
        _log.warning("ignored: %s is not supported", ", ".join(ignored))
    inherited: dict[str, list[str]] = {}
    for where, ours in _SECTIONS.items():
        section = layout.get(where) or {}
        _require_section(where, section)
        for key, value in section.items():
            if (where, key) in _NAMED:
                continue
            target, new = _MOVED.get((where, key), (ours, key))
            sections[target][new] = value
            inherited.setdefault(target, []).append(new)
    given, train = layout.get("dataset") or {}, layout.get("train") or {}
    sections["dataset"]["name"] = str(given.get("name", "mnist")).lower()
    if train.get("early_stopping") is False:
        sections["run"]["patience"] = None
    if train.get("use_amp"):
        sections["trainer"]["precision"] = "bfloat16"
    if sections["trainer"].get("weight_decay"):
        sections["trainer"]["optimizer"] = "adamw"
    return {**sections.pop(""), **sections, INHERITED: inherited}


def _require_section(where: str, section: Any) -> None:
    if not isinstance(section, Mapping):
        raise UserError(f"{where} must be a section of keys and values, got {section!r}")
