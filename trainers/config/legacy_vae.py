"""YAML files of the research code for variational autoencoders.

Our likelihoods are sums over pixels in nats, theirs means: the same β weighs less here.
"""

import logging
from collections.abc import Mapping
from typing import Any

from grlu.errors import UserError
from trainers.config.schema import INHERITED

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
# Keys that `translate` reads by name.
_NAMED = (("dataset", "name"), ("model", "type"), ("train", "early_stopping"), ("train", "use_amp"))
_SECTIONS = {"dataset": "dataset", "model": "model", "train": "trainer"}
_log = logging.getLogger("grlu")


def is_vae(layout: Mapping[str, Any]) -> bool:
    """Tell whether a file has this layout: a `model.type` of the research code."""
    model = layout.get("model")
    return isinstance(model, Mapping) and model.get("type") in _MODELS


def translate(layout: Mapping[str, Any]) -> dict[str, Any]:
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
        if not isinstance(section, Mapping):
            raise UserError(f"{where} must be a section of keys and values, got {section!r}")
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
