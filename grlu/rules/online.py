"""Exact chunked online learning: one-by-one updates of first layers at matrix-product speed.

With plain SGD, a first dense layer's pre-activation for example t of a chunk is

    z_t = x_t W + b + sum over s < t of (x_t · x_s + 1) u_s

where u_s is the change that example s makes to the layer's pre-activation per unit of input. The
products x W and the Gram matrix are therefore computed for the whole chunk at once, the steps in
between carry only the small u, and W is updated a single time, at the end. The arithmetic is that
of updating after every example; only its order differs.

This holds for every rule whose update of a dense layer is its input times a credit of its output
(`Rule.local`): a shift v of the pre-activation replaces the layer, and the gradient of v is that
credit. The rule itself needs no change.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from grlu.network import Batch, Network, Objective, Params, State, trace
from grlu.tracing.program import Arrival


@dataclasses.dataclass(frozen=True)
class FirstLayer:
    """Dense layer that sees only the data.

    Attributes:
        name: path of the layer.
        site: index of its site.
        kernel: index of its kernel among the parameter leaves.
        bias: index of its bias among the parameter leaves, or None.
    """

    name: str
    site: int
    kernel: int
    bias: int | None

    @property
    def leaves(self) -> list[int]:
        """Return the indices of its parameter leaves."""
        return [self.kernel, *([] if self.bias is None else [self.bias])]


def first_layers(network: Network) -> list[FirstLayer]:
    """Return the dense layers without a preceding site whose parameters are used nowhere else."""
    uses = [i for info in network.sites for i in info.site.params]
    found = []
    for info in network.sites:
        dense = info.site.dense
        # A layer that an example passes several times updates by more than one outer product.
        if dense is None or not info.site.first or len(info.shape) != 2:
            continue
        rank = len(network.program.avals[dense.x].shape)
        if rank != 2 or dense.kernel.cast or (dense.bias is not None and dense.bias.cast):
            continue
        if any(uses.count(i) > 1 for i in info.site.params):
            continue
        bias = None if dense.bias is None else dense.bias.leaf
        layer = FirstLayer(info.name, info.site.index, dense.kernel.leaf, bias)
        if set(layer.leaves) == info.site.params:
            found.append(layer)
    return found


class Chunk:
    """Chunk of T batches of B examples, with the products of the first layers precomputed.

    Args:
        objective: `(params, rest, batch) -> (rewards, aux)`.
        params: trainable state.
        rest: the model's other state at the beginning of the chunk.
        batches: the chunk's batches, stacked: leaves (T, B, ...).

    Attributes:
        layers: the first layers; if there are none, chunks bring no gain.
        kept: the leaves of `params` that belong to other layers, by path.
        zs: pre-activations of the first layers, each (T, B, units), at the initial parameters.
    """

    def __init__(self, objective: Objective, params: Params, rest: State, batches: Batch):
        network = trace(objective, params, rest, jax.tree.map(lambda b: b[0], batches))
        self._network, self.layers = network, first_layers(network)
        layers = self.layers
        self.leaves, self._tree = jax.tree.flatten(params)
        moved = {i for layer in layers for i in layer.leaves}
        self._kept = {name: i for i, name in enumerate(network.names) if i not in moved}
        self.kept = self.split(params)

        def inputs(batch: Batch) -> list[jax.Array]:
            outcome = network.outcome(params, rest, batch, lambda at: (at.fn(at.z), at.x))
            return [outcome.records[layer.site] for layer in layers]

        self.xs = jax.vmap(inputs)(batches)
        self.zs = []
        for layer, x in zip(layers, self.xs, strict=True):
            z = x @ self.leaves[layer.kernel]
            self.zs.append(z if layer.bias is None else z + self.leaves[layer.bias][None, None])

    def gram(self) -> list[jax.Array]:
        """Return each layer's Gram matrix (T, B, T, B): the effect of one update on another z."""
        return [
            jnp.einsum("tbi,sci->tbsc", x, x) + (0.0 if layer.bias is None else 1.0)
            for layer, x in zip(self.layers, self.xs, strict=True)
        ]

    def shifted(self) -> Objective:
        """Return the objective of `(chunk.joined(kept, [v]), rest, (batch, [z]))`."""

        def objective(params: Params, rest: State, batch: Batch) -> tuple[jax.Array, Any]:
            batch, zs = batch
            leaves = list(self.leaves)
            kept, shifts = self.parted(params)
            for name, i in self._kept.items():
                leaves[i] = kept[name]
            given = {layer.site: z + v for layer, z, v in zip(self.layers, zs, shifts, strict=True)}

            def visit(at: Arrival) -> tuple[jax.Array, None]:
                return at.fn(at.z if at.given is None else at.given), None

            params = jax.tree.unflatten(self._tree, leaves)
            return self._network.run(params, rest, batch, visit, given=given)

        return objective

    def joined(self, kept: Mapping[str, Any], shifts: Sequence[Any]) -> dict[str, Any]:
        """Join other leaves and shifts to the shifted objective's parameters, named by layer."""
        named = zip(self.layers, shifts, strict=True)
        return {**kept, **{f"{layer.name}.shift": v for layer, v in named}}

    def parted(self, joined: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any]]:
        """Split the result of `joined` into `(kept, shifts)`."""
        kept = {name: joined[name] for name in self._kept}
        return kept, [joined[f"{layer.name}.shift"] for layer in self.layers]

    def split(self, params: Params) -> dict[str, jax.Array]:
        """Return the leaves of a tree like `params` that belong to other layers, by path."""
        leaves = jax.tree.leaves(params)
        return {name: leaves[i] for name, i in self._kept.items()}

    def absorbed(
        self, params: Params, kept: Mapping[str, jax.Array], updates: Sequence[jax.Array]
    ) -> Any:
        """Return the parameters after the chunk.

        Args:
            params: the parameters before the chunk.
            kept: the other layers' leaves after the chunk.
            updates: the changes u of each first layer, shape (T, B, units).
        """
        leaves = jax.tree.leaves(params)
        for name, i in self._kept.items():
            leaves[i] = kept[name]
        for layer, x, u in zip(self.layers, self.xs, updates, strict=True):
            leaves[layer.kernel] = leaves[layer.kernel] + jnp.einsum("tbi,tbo->io", x, u)
            if layer.bias is not None:
                leaves[layer.bias] = leaves[layer.bias] + jnp.sum(u, (0, 1))
        return jax.tree.unflatten(self._tree, leaves)
