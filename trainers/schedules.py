"""Learning-rate and noise schedules, and the optimizers of optax by name."""

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from grlu.errors import UserError

ScheduleName = Literal["constant", "cosine", "warmup_cosine"]
OptimizerName = Literal["sgd", "normalized", "momentum", "adam", "adamw"]

Schedule = Callable[[jax.Array], jax.Array]


def schedule(
    name: ScheduleName, start: float, end: float, steps: int, *, warmup: int, hold: int = 1
) -> Schedule:
    """A value as a function of the step.

    Args:
        name: "constant" stays at `start`; "cosine" falls from `start` to `end` over `steps`;
            "warmup_cosine" first rises from 0 over `warmup` steps.
        start: highest value.
        end: last value.
        steps: length of the run.
        warmup: steps of the rise.
        hold: steps for which a value is held: the steps of an epoch, for a schedule by epoch.
    """
    if name == "constant":
        by_step = optax.constant_schedule(start)
    elif name == "cosine":
        by_step = optax.cosine_decay_schedule(start, steps, alpha=end / start if start else 0.0)
    else:
        if not 0 < warmup < steps:
            raise UserError(
                f"warmup must be between 0 and the run's {steps} steps, got {warmup} steps"
            )
        by_step = optax.warmup_cosine_decay_schedule(0.0, start, warmup, steps, end)
    return lambda step: jnp.asarray(by_step(step // hold * hold), jnp.float32)


def optimizer(
    name: OptimizerName,
    learning_rate: Schedule,
    *,
    momentum: float,
    weight_decay: float,
    clip: float | None,
) -> optax.GradientTransformation:
    """An optimizer of optax, after clipping by global norm if `clip` is given."""
    if name == "sgd":
        transformation = optax.sgd(learning_rate)
    elif name == "normalized":
        # Steps of the rate's length: an example of large credit does not outweigh the others.
        transformation = optax.chain(
            optax.normalize_by_update_norm(eps=1e-12), optax.sgd(learning_rate)
        )
    elif name == "momentum":
        transformation = optax.sgd(learning_rate, momentum=momentum)
    elif name == "adam":
        transformation = optax.adam(learning_rate)
    else:
        transformation = optax.adamw(learning_rate, weight_decay=weight_decay)
    if clip is None:
        return transformation
    return optax.chain(optax.clip_by_global_norm(clip), transformation)


def require(where: str, value: float | None, low: float, high: float = math.inf) -> None:
    """Raises UserError unless `low <= value <= high`; None passes."""
    if value is not None and not low <= value <= high:
        span = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise UserError(f"{where} must be {span}, got {value:g}")
