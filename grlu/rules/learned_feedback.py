"""Learned feedback: a prediction of the hidden units' credit from the output's credit.

Perturbation estimates a hidden unit's credit without bias, but other units' noise swamps it.
Most of the credit is predictable: if the output layer's credit is δ, a hidden unit of slope f' has,
in a linear approximation, the credit f' Σ_o δ_o F_ou for some weights F. The predicted part is
subtracted from each pair's reward difference before the estimate and added to the credit
afterwards. This control variate leaves the mean of the estimate unchanged for any F, and removes
the predicted part of the noise. The delta rule trains F on the residual that perturbation measures.
No weight is transported and no gradient flows: each unit learns its own F from its own noise.

Source: Lansdell, Prakash & Kording (2020), "Learning to solve the credit assignment problem",
arXiv:1906.00889, in which the feedback replaces perturbation instead of correcting it.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from grlu.errors import UserError
from grlu.network import Network, Params, SiteInfo

# ε in the delta rule's normalisation |δ|² + ε, in squared units of reward per unit of logit.
_EPSILON = 1e-2

_ATTRIBUTE = "feedback"


class Feedback(nnx.Param):
    """Feedback weights from the outputs to a layer's units, shape (outputs, units)."""


def add_feedback(model: nnx.Module, outputs: int) -> None:
    """Add zero feedback weights from the `outputs` output units to every `nnx.Linear` of a model.

    A rule that uses them (`grlu.NodePerturbation(feedback=...)`) trains them with the other
    parameters; the model's output does not change.
    """
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.Linear):
            weights = Feedback(jnp.zeros((outputs, module.out_features)))
            setattr(module, _ATTRIBUTE, weights)


class Prediction:
    """Prediction of credit by feedback weights, at the hidden sites that have them.

    Args:
        network: the traced objective.
        params: trainable state, including the feedback weights.
        slopes: f'(z) of every site.
        rate: learning rate of the feedback weights, relative to that of the other parameters.

    Raises:
        UserError: if the model has no feedback weights, or not exactly one output layer.
    """

    def __init__(self, network: Network, params: Params, slopes: list[jax.Array], rate: float):
        outputs = [info for info in network.sites if info.output]
        if len(outputs) != 1 or not outputs[0].vectors:
            shapes = ", ".join(f"{info.name} {info.shape}" for info in outputs)
            raise UserError(
                f"feedback needs one output layer of shape (batch, outputs), the model has {shapes}"
            )
        (self.output,) = outputs
        self._batch_size = network.batch_size
        self._leaves, self._tree = jax.tree.flatten(params)
        self._sites, self._slopes, self._rate = network.sites, slopes, rate
        # Site index -> index of its feedback weights among the leaves of `params`.
        self._weights = {
            info.site.index: network.names.index(f"{info.name}.{_ATTRIBUTE}")
            for info in network.sites
            if info.live
            and not info.output
            and info.rows.each
            and info.vectors
            and f"{info.name}.{_ATTRIBUTE}" in network.names
        }
        if not self._weights:
            raise UserError(
                "feedback needs a model with feedback weights and a hidden nnx.Linear: call "
                "grlu.add_feedback(model, outputs) first"
            )

    def credit(self, info: SiteInfo, delta: jax.Array) -> jax.Array:
        """Predict a site's credit from the output's credit `delta`; 0 without feedback weights."""
        if info.site.index not in self._weights:
            return jnp.zeros(info.shape, info.dtype)
        weights = self._leaves[self._weights[info.site.index]]
        predicted = info.by_loops(self.output.by_example(delta) @ weights)
        return predicted * self._slopes[info.site.index]

    def learned(self, ascent: Params, delta: jax.Array, residuals: Mapping[int, jax.Array]) -> Any:
        """Return `ascent` with updates of the feedback weights by the normalised delta rule.

        Args:
            ascent: a pytree with the structure of the parameters.
            delta: credit of the output for the mean reward.
            residuals: by site, the credit for the mean reward minus its prediction.
        """
        leaves = jax.tree.leaves(ascent)
        # Credit for each example's own reward.
        delta = self.output.by_example(delta) * self._batch_size
        normed = delta / (jnp.sum(jnp.square(delta), axis=1, keepdims=True) + _EPSILON)
        for site, i in self._weights.items():
            target = self._sites[site].by_example(residuals[site] * self._slopes[site])
            leaves[i] = self._rate * (normed.T @ target)
        return jax.tree.unflatten(self._tree, leaves)
