"""JSON files of the original project.

`{"model": {"layer_sizes": [784, 256, 10]}, "training": {"epochs": 10, "n_perturbations": 128, …}}`;
a file without perturbation keys describes the backprop baseline.
"""

from collections.abc import Callable, Mapping
from typing import Any

from grlu.errors import UserError

_PERTURBATION = {"n_perturbations", "noise_max", "noise_min", "k"}


def from_published(
    given: Mapping[str, Any], build: Callable[..., Any], rule: Callable[[int, float], Any]
) -> dict[str, Any]:
    """Return the sections of our config that run a config of the original project.

    As in the published runs, all 60,000 training images are used, without a validation split.

    Args:
        given: the config.
        build: `build(function, section, where, **given)` calls a function with a checked section.
        rule: returns the published rule with a number of pairs and a noise scale.
    """
    for name, section in given.items():
        if name not in ("model", "training"):
            raise UserError(
                f"the original configuration has no section {name!r}; known: model, training"
            )
        if not isinstance(section, Mapping):
            raise UserError(f"{name} must be a section of keys and values, got {section!r}")
    training = given.get("training", {})
    perturbed = bool(_PERTURBATION & set(training))
    defaults = {"epochs": 10, "batch_size": 1} if perturbed else {"epochs": 50, "batch_size": 256}
    sections = build(_training, defaults | training, "training", perturbed=perturbed, rule=rule)
    sections["model"] |= build(_layers, given.get("model", {}), "model")
    return sections | {"dataset": {"name": "mnist", "validation": 0}}


def _layers(*, layer_sizes: tuple[int, ...]) -> dict[str, Any]:
    if layer_sizes[:1] + layer_sizes[-1:] != (784, 10) or min(layer_sizes) < 1:
        raise UserError(
            "model.layer_sizes must be positive integers, from the 784 pixels of an MNIST image to "
            f"its 10 classes, got {list(layer_sizes)}"
        )
    return {"name": "mlp", "hidden": layer_sizes[1:-1], "layer_norm": True}


def _training(
    *,
    epochs: int,
    batch_size: int,
    n_perturbations: int = 128,
    noise_max: float = 0.1,
    noise_min: float = 0.0,
    lr_max: float = 0.1,
    lr_min: float = 0.0,
    k: float | None = None,
    seed: int = 42,
    perturbed: bool,
    rule: Callable[[int, float], Any],
) -> dict[str, Any]:
    trainer: dict[str, Any] = {"name": "backprop"}
    if perturbed:
        published = vars(rule(n_perturbations, noise_max))
        trainer = {key: value for key, value in published.items() if key not in ("wrt", "update")}
        trainer |= {"name": "grlu", "reward": "floored_log_likelihood"}
        trainer |= {"sigma_end": noise_min, "sigma_schedule": "cosine"}
    trainer |= {"epochs": epochs, "batch_size": batch_size, "optimizer": "sgd"}
    trainer |= {"learning_rate": lr_max, "learning_rate_end": lr_min}
    trainer |= {"schedule": "cosine", "schedule_per": "epoch"}
    activation = {"activation": "relu"} if k is None else {"activation": "topk", "topk": k}
    return {"seed": seed, "model": activation, "trainer": trainer}
