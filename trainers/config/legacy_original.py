"""Configuration files of the original project.

`{"model": {"layer_sizes": [784, 256, 10]}, "training": {"epochs": 10, "n_perturbations": 128, …}}`;
a file without keys of the perturbation describes the backprop baseline.
"""

from collections.abc import Mapping
from typing import Any

from grlu import NodePerturbation
from grlu.errors import UserError
from trainers.config.schema import build, unknown

_PIXELS, _DIGITS = 784, 10
_PERTURBATION = {"n_perturbations", "noise_max", "noise_min", "k"}


def translate(original: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections of our config that run `original`.

    As in the published runs, all 60,000 training images are used, without a validation split.

    Raises:
        UserError: for an unknown key, a wrong type, or layers that do not fit MNIST.
    """
    for key in original:
        if key not in ("model", "training"):
            raise unknown(
                f"the original configuration has no section {key!r}", key, ["model", "training"]
            )
    for section, values in original.items():
        if not isinstance(values, Mapping):
            raise UserError(f"{section} must be a section of keys and values, got {values!r}")
    training = original.get("training", {})
    perturbed = _PERTURBATION & set(training)
    sections = build(_perturbation if perturbed else _backprop, training, "training")
    model = build(_model, original.get("model", {}), "model")
    return {
        "seed": sections["seed"],
        "dataset": {"name": "mnist", "validation": 0},
        "model": model | sections["activation"],
        "trainer": sections["trainer"]
        | {"optimizer": "sgd", "schedule": "cosine", "schedule_per": "epoch"},
    }


def _model(*, layer_sizes: tuple[int, ...]) -> dict[str, Any]:
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
) -> dict[str, Any]:
    rule = vars(NodePerturbation.published(n_perturbations, noise_max))
    return {
        "seed": seed,
        "activation": {"activation": "relu"} if k is None else {"activation": "topk", "topk": k},
        "trainer": {
            "name": "grlu",
            "reward": "floored_log_likelihood",
            **{key: value for key, value in rule.items() if key not in ("wrt", "update")},
            "sigma_end": noise_min,
            "sigma_schedule": "cosine",
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": lr_max,
            "learning_rate_end": lr_min,
        },
    }


def _backprop(
    *,
    epochs: int = 50,
    batch_size: int = 256,
    lr_max: float = 0.1,
    lr_min: float = 0.0,
    seed: int = 42,
) -> dict[str, Any]:
    return {
        "seed": seed,
        "activation": {"activation": "relu"},
        "trainer": {
            "name": "backprop",
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": lr_max,
            "learning_rate_end": lr_min,
        },
    }
