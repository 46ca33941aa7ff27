"""Alignment of a rule's estimate with the exact gradient."""

import dataclasses
from typing import Any

import jax
import numpy as np
from flax import nnx

from grlu.network import Batch, parameter_names
from grlu.rules.backprop import Backprop
from grlu.rules.rule import Model, RewardFn, Rule


@dataclasses.dataclass(frozen=True)
class Alignment:
    """Cosine and ratio of norms of an estimate and the exact gradient.

    Attributes:
        cosine: over all parameters together; 1 is perfect, 0 is noise.
        norm_ratio: norm of the estimate over norm of the gradient.
        difference: norm of their difference over norm of the gradient.
        parameters: `(cosine, norm_ratio)` by parameter path; both are nan if the exact gradient is
            zero.
    """

    cosine: float
    norm_ratio: float
    difference: float
    parameters: dict[str, tuple[float, float]]

    def __str__(self) -> str:
        rows = [("all", (self.cosine, self.norm_ratio)), *self.parameters.items()]
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:{width}}  {c:+.4f}  {n:.4f}" for name, (c, n) in rows]
        return "\n".join([f"{'':{width}}  cosine   norm ratio", *lines])


def alignment(
    rule: Rule, reward_fn: RewardFn, model: Model, batch: Batch, key: jax.Array
) -> Alignment:
    """Compare one estimate of a rule with the exact gradient of the same objective.

    Both use the same sample of the model's own randomness. Raises the rule's errors.

    >>> import grlu, jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    >>> reward_fn = lambda model, x: -(model(x) ** 2).sum(-1)
    >>> rule = grlu.NodePerturbation(samples=1024, sigma=0.1, noise="orthogonal")
    >>> round(grlu.alignment(rule, reward_fn, model, jnp.eye(3), jax.random.key(0)).cosine, 3)
    1.0
    """
    if _is_hashable(rule):
        estimated, exact = _compiled(rule, reward_fn, model, batch, key)
    else:
        estimated, exact = nnx.jit(lambda m, b, k: _both(rule, reward_fn, m, b, k))(
            model, batch, key
        )
    pairs = [
        (np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel())
        for a, b in zip(jax.tree.leaves(estimated), jax.tree.leaves(exact), strict=True)
    ]
    by_name = {
        name: _compare(a, b) for name, (a, b) in zip(parameter_names(exact), pairs, strict=True)
    }
    one, two = (np.concatenate(side) for side in zip(*pairs, strict=True))
    norm = np.linalg.norm(two)
    difference = float(np.linalg.norm(one - two) / norm) if norm else float(np.linalg.norm(one))
    return Alignment(*_compare(one, two), difference, by_name)


def _both(rule: Rule, reward_fn: RewardFn, model: Model, batch: Batch, key: jax.Array) -> Any:
    """Return the rule's gradient and the exact one."""
    _, estimated = rule(reward_fn)(model, batch, key)
    _, exact = Backprop(wrt=rule.wrt)(reward_fn)(model, batch, key)
    return estimated, exact


# Compiled once for all keys.
_compiled = nnx.jit(_both, static_argnums=(0, 1))


def _is_hashable(rule: Rule) -> bool:
    """Return True if a rule can key the cache of compiled functions: arrays and lists cannot."""
    try:
        hash(rule)
    except TypeError:
        return False
    return True


def _compare(estimate: np.ndarray, exact: np.ndarray) -> tuple[float, float]:
    norms = np.linalg.norm(estimate), np.linalg.norm(exact)
    if not norms[1]:
        return float("nan"), float("nan")
    cosine = estimate @ exact / (norms[0] * norms[1]) if norms[0] else 0.0
    return float(cosine), float(norms[0] / norms[1])
