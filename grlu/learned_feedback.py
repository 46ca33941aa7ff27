"""Learned feedback: what the output's credit foretells of the hidden units' credit.

Perturbation finds a hidden unit's credit without bias but drowned by the other units' noise. Most
of it can be foretold: where the output layer's credit is δ, a hidden unit of slope f' has, in a
linear world, the credit f' Σ_o δ_o F_ou for some weights F. Subtracting the foretold part of each
pair's difference in reward before it is credited, and adding it to the credit afterwards, leaves
the estimate's mean as it was, whatever F is, and removes the foretold part's share of the noise: a
control variate. What perturbation finds beyond the prediction teaches F, by the delta rule. No
weight is transported and no gradient flows: F is a unit's own, learned from its own noise.

Source: Lansdell, Prakash & Kording (2020), "Learning to solve the credit assignment problem",
arXiv:1906.00889, in which the feedback takes perturbation's place instead of correcting it.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from grlu.errors import UserError
from grlu.tracing.network import Network, SiteInfo

# Of the delta rule's normalisation |δ|² + ε, in squared units of the reward per unit of logit.
_EPSILON = 1e-2

_ATTRIBUTE = "feedback"


class Feedback(nnx.Param):
    """Feedback weights from the outputs to a layer's units, shape (outputs, units)."""


def add_feedback(model: nnx.Module, outputs: int) -> None:
    """Gives every `nnx.Linear` of a model feedback weights, of zero, from its `outputs` units.

    They train with the other parameters, by a rule that uses them
    (`grlu.NodePerturbation(feedback=...)`); the model computes what it did before.
    """
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.Linear):
            weights = Feedback(jnp.zeros((outputs, module.out_features)))
            setattr(module, _ATTRIBUTE, weights)


class Prediction:
    """The credit that feedback weights foretell at the hidden sites that have them.

    Args:
        network: the traced objective.
        params: trainable state, the feedback weights among it.
        slopes: f'(z) of every site.
        rate: of the weights' learning, relative to that of the other parameters.

    Raises:
        UserError: if the model has no feedback weights, or not one output layer.
    """

    def __init__(self, network: Network, params: Any, slopes: list[jax.Array], rate: float):
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
        # By site, the index of its weights among the leaves of `params`.
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
        """Return the credit of a site that the output's, `delta`, foretells; zero without F."""
        if info.site.index not in self._weights:
            return jnp.zeros(info.shape, info.dtype)
        weights = self._leaves[self._weights[info.site.index]]
        foretold = info.by_loops(self.output.by_example(delta) @ weights)
        return foretold * self._slopes[info.site.index]

    def learned(self, ascent: Any, delta: jax.Array, surprise: Mapping[int, jax.Array]) -> Any:
        """Return `ascent` with the feedback weights' own: `rate` times the normalised delta rule.

        Args:
            ascent: a tree like the parameters.
            delta: the output's credit, of the mean reward.
            surprise: by site, the credit found beyond the prediction, of the mean reward.
        """
        leaves = jax.tree.leaves(ascent)
        # Of each example's own reward.
        delta = self.output.by_example(delta) * self._batch_size
        normed = delta / (jnp.sum(jnp.square(delta), axis=1, keepdims=True) + _EPSILON)
        for site, i in self._weights.items():
            taught = self._sites[site].by_example(surprise[site] * self._slopes[site])
            leaves[i] = self._rate * (normed.T @ taught)
        return jax.tree.unflatten(self._tree, leaves)
