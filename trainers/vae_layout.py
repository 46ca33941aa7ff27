"""YAML files of the research code for variational autoencoders, in the sections of our config.

Its sections are `dataset`, `model` and `train`. Here likelihoods are summed nats, so that its β,
for a mean over pixels, weighs less than it did there.
"""

import logging
from collections.abc import Mapping
from typing import Any

from grlu.errors import UserError

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
_NAMED = (("dataset", "name"), ("model", "type"), ("train", "early_stopping"), ("train", "use_amp"))
_log = logging.getLogger("grlu")


def is_vae(layout: Mapping[str, Any]) -> bool:
    """Whether a file is of this layout: it has `model.type`, one of its models."""
    model = layout.get("model")
    return isinstance(model, Mapping) and model.get("type") in _MODELS


def translate(layout: Mapping[str, Any]) -> dict[str, Any]:
    """Our sections out of `layout`; keys that mean nothing here are named in a warning.

    Raises:
        UserError: if there is something else in the place of a section.
    """
    from trainers.experiment import SECTIONS
    from trainers.schema import factory_of, schema

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
    left_out = []
    for where in layout:
        if where not in ("dataset", "model", "train", "seed"):
            left_out.append(where)
    for where, ours in (("dataset", "dataset"), ("model", "model"), ("train", "trainer")):
        section = layout.get(where) or {}
        if not isinstance(section, Mapping):
            raise UserError(f"{where} must be a section of keys and values, got {section!r}")
        if where == "dataset":
            sections["dataset"]["name"] = str(section.get("name", "mnist")).lower()
        known = schema(factory_of(SECTIONS[ours], sections[ours], ours))
        for key, value in section.items():
            if (where, key) in _NAMED:
                continue
            if (where, key) in _MOVED:
                target, new = _MOVED[where, key]
                sections[target][new] = value
            elif key in known:
                sections[ours][key] = value
            else:
                left_out.append(f"{where}.{key}")
    if (layout.get("train") or {}).get("early_stopping") is False:
        sections["run"]["patience"] = None
    if (layout.get("train") or {}).get("use_amp"):
        sections["trainer"]["precision"] = "bfloat16"
    if sections["trainer"].get("weight_decay"):
        sections["trainer"]["optimizer"] = "adamw"
    if not iterative:
        for key in ("svi_learning_rate", "svi_steps"):
            if sections["trainer"].pop(key, None) is not None:
                left_out.append(f"model.{'lr_inf' if key == 'svi_learning_rate' else key}")
    if left_out:
        _log.warning("%s: no meaning here, left out", ", ".join(left_out))
    return {**sections.pop(""), **sections}
