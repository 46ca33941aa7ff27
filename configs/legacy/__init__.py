"""YAML files of other projects.

The research code for variational autoencoders has likelihoods that are means over pixels, ours are
sums in nats: the same β weighs less here.
"""

import logging
from collections.abc import Mapping
from typing import Any

from grlu.errors import UserError

_log = logging.getLogger("grlu")

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
# Their section → their key → our section and key.
_MOVED = {
    "dataset": {"batch_size": "trainer.batch_size"},
    "model": {
        "z_dim": "model.latent",
        "lr": "trainer.learning_rate",
        "lr_inf": "trainer.svi_learning_rate",
        "svi_steps": "trainer.svi_steps",
        "beta": "trainer.beta",
        "weight_decay": "trainer.weight_decay",
        "init_weights": "run.init_from",
    },
    "train": {
        "grad_clip": "trainer.clip",
        "save_top_k": "run.keep_best",
        "patience": "run.patience",
    },
}


def is_vae(layout: Mapping[str, Any]) -> bool:
    """Tell whether a file has the layout of `from_vae`: a `model.type` of the research code."""
    model = layout.get("model")
    return isinstance(model, Mapping) and model.get("type") in _MODELS


def from_vae(layout: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections of our config.

    Other keys keep their names, and validation drops unknown ones with a warning.
    """
    if ignored := [where for where in layout if where not in (*_MOVED, "seed")]:
        _log.warning("ignored: %s is not supported", ", ".join(ignored))
    theirs = {where: layout.get(where) or {} for where in _MOVED}
    for where, section in theirs.items():
        _require_section(where, section)
    data, model, train = (dict(section) for section in theirs.values())
    kind = model.pop("type")
    iterative, name = kind == "ivae_iterative", _MODELS[kind]
    dataset = str(data.pop("name", "mnist")).lower()
    seed = train.pop("seed", layout.get("seed", 0))
    trainer: dict[str, Any] = {
        "name": "backprop",
        "objective": "elbo",
        "batch_size": 256,
        "epochs": 225,
        "optimizer": "adam",
        "schedule": "constant",
        "learning_rate": 1e-3,
        "beta": 2.0,
        "clip": 1.0,
    }
    if iterative:
        trainer |= {"name": "svi", "mode": "decoupled", "learning_rate": 1e-4, "beta": 1.0}
    sections: dict[str, dict[str, Any]] = {
        "dataset": {"name": dataset, "normalize": "unit", "flatten": name != "vae_conv"},
        "model": {"name": name},
        "trainer": trainer,
        "run": {"patience": 25, "keep_best": 5, "rows_per_epoch": 1},
    }
    stopping, half = train.pop("early_stopping", True), train.pop("use_amp", False)
    inherited: dict[str, list[str]] = {}
    for where, section in (("dataset", data), ("model", model), ("train", train)):
        for key, value in section.items():
            ours = "trainer" if where == "train" else where
            target, _, new = _MOVED[where].get(key, f"{ours}.{key}").partition(".")
            sections[target][new] = value
            inherited.setdefault(target, []).append(new)
    if stopping is False:
        sections["run"]["patience"] = None
    if half:
        trainer["precision"] = "bfloat16"
    if trainer.get("weight_decay"):
        trainer["optimizer"] = "adamw"
    return {"seed": seed, **sections, "inherited": inherited}


def _require_section(where: str, section: Any) -> None:
    if not isinstance(section, Mapping):
        raise UserError(f"{where} must be a section of keys and values, got {section!r}")
