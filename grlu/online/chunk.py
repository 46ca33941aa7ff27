"""Exact chunked online learning: per-example updates without writing full weight matrices.

**First layers.** With plain SGD, a first dense layer's pre-activation for example t of a chunk is

    z_t = x_t W + b + sum over s < t of (x_t · x_s + 1) u_s

where u_s is the change that example s makes to the layer's pre-activation per unit of input. The
products x W and the Gram matrix are therefore computed for the whole chunk at once, the steps in
between carry only the small u, and W is updated once, at the end.

**Gathered parameters.** A parameter that a model reads only at indices chosen by the data, such as
the active rows and columns of a sparse layer's kernel, is read and updated only at these indices.

The arithmetic is that of updating after every example; only its order differs. This holds for every
rule that updates a layer by its input times a credit of its output (`Rule.local`): instead of the
layer's parameters, the rule gets a shift of the pre-activation, or the gathered elements, and
estimates their gradient. The rule itself needs no change.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from grlu.network import Batch, Objective, Params, State, trace
from grlu.online.layers import FirstLayer, first_layers, gathers
from grlu.tracing.program import Arrival


class Moving(NamedTuple):
    """Parameters within a chunk.

    Attributes:
        kept: leaves that are updated as a whole, by path.
        gathered: leaves that are updated only at gathered indices, by path.
        us: changes u of each first layer, (T, B, units); zero for later examples.
    """

    kept: dict[str, jax.Array]
    gathered: dict[str, jax.Array]
    us: list[jax.Array]


class Chunk:
    """Chunk of T batches of B examples, with the products of the first layers precomputed.

    Args:
        objective: `(params, rest, batch) -> (rewards, aux)`.
        params: trainable state.
        rest: the model's other state at the beginning of the chunk.
        batches: the chunk's batches, stacked: leaves (T, B, ...).
        sparse: update gathered parameters only at their indices.

    Attributes:
        layers: the first layers; a model with neither these nor gathered parameters gains nothing.
        start: the parameters before the first batch.
    """

    def __init__(
        self, objective: Objective, params: Params, rest: State, batches: Batch, sparse: bool = True
    ):
        network = trace(objective, params, rest, jax.tree.map(lambda b: b[0], batches))
        self._network, self.layers = network, first_layers(network)
        self._leaves, self._tree = jax.tree.flatten(params)
        moved = {i for layer in self.layers for i in layer.leaves}
        self._gathers = {
            i: gathers(network, network.program.ins[i]) if sparse and i not in moved else []
            for i in range(len(self._leaves))
        }
        self._kept = {
            name: i
            for i, name in enumerate(network.names)
            if i not in moved and not self._gathers[i]
        }
        inputs = [layer.x for layer in self.layers]

        def read(batch: Batch) -> list[jax.Array]:
            return network.outcome(params, rest, batch, _unchanged, read=inputs).outs

        self._xs = jax.vmap(read)(batches)
        self._zs, self._grams = [], []
        for layer, x in zip(self.layers, self._xs, strict=True):
            z = x @ self._leaves[layer.kernel]
            bias = layer.bias
            self._zs.append(z if bias is None else z + self._leaves[bias][None, None])
            gram = jnp.einsum("tbi,sci->tbsc", x, x)
            self._grams.append(gram if bias is None else gram + 1.0)
        self.start = Moving(
            {name: self._leaves[i] for name, i in self._kept.items()},
            {network.names[i]: self._leaves[i] for i, found in self._gathers.items() if found},
            [jnp.zeros_like(z) for z in self._zs],
        )

    def at(self, t: jax.Array, moving: Moving, rest: State, batch: Batch) -> "Step":
        """Return the parameters and data of update t, with the model's PRNG streams in `rest`."""
        # The changes of later examples are still zero.
        given = {
            layer.z: z[t] + jnp.einsum("bsc,sco->bo", gram[t], u)
            for layer, z, gram, u in zip(self.layers, self._zs, self._grams, moving.us, strict=True)
        }
        reads = [g for found in self._gathers.values() for g in found]
        chosen = [layer.chosen for layer in self.layers if layer.chosen]
        wanted = [v for g in [*reads, *chosen] for v in (g.indices, g.out)]
        values = dict(given)
        if wanted:
            leaves = dict(enumerate(self._leaves))
            leaves |= {i: moving.kept[name] for name, i in self._kept.items()}
            names = self._network.names
            leaves |= {i: moving.gathered[names[i]] for i, g in self._gathers.items() if g}
            params = jax.tree.unflatten(self._tree, [leaves[i] for i in range(len(leaves))])
            outs = self._network.outcome(
                params, rest, batch, _unchanged, replace=given, read=wanted
            ).outs
            values |= zip(wanted, outs, strict=True)
        params = {**moving.kept, **{f"gathered.{g.out}": values[g.out] for g in reads}}
        shifted = {layer.name: values[_read(layer)] for layer in self.layers}
        params |= {f"{name}.shift": jnp.zeros_like(z) for name, z in shifted.items()}
        # The operation that chooses units also reads z.
        return Step(params, (batch, shifted, list(given.values())), values)

    def objective(self, params: Mapping[str, Any], rest: State, batch: Batch) -> Any:
        """Return `(rewards, aux)` for the parameters and the batch of a `Step`."""
        batch, shifted, zs = batch
        leaves = list(self._leaves)
        for name, i in self._kept.items():
            leaves[i] = params[name]
        reads = [g for found in self._gathers.values() for g in found]
        replace = {g.out: params[f"gathered.{g.out}"] for g in reads}
        replace |= {layer.z: z for layer, z in zip(self.layers, zs, strict=True)}
        replace |= {
            _read(layer): shifted[layer.name] + params[f"{layer.name}.shift"]
            for layer in self.layers
        }
        params = jax.tree.unflatten(self._tree, leaves)
        return self._network.run(params, rest, batch, _unchanged, replace=replace)

    def moved(
        self, t: jax.Array, moving: Moving, step: "Step", updates: Mapping[str, Any]
    ) -> Moving:
        """Return the parameters after update t, with `updates` of the step's parameters."""
        kept = {name: leaf + updates[name] for name, leaf in moving.kept.items()}
        gathered = dict(moving.gathered)
        for i, found in self._gathers.items():
            name = self._network.names[i]
            for g in found:
                change = updates[f"gathered.{g.out}"]
                gathered[name] = g.add(gathered[name], step.values[g.indices], change)
        us = []
        for layer, u in zip(self.layers, moving.us, strict=True):
            change, chosen = updates[f"{layer.name}.shift"], layer.chosen
            if chosen is not None:
                indices = step.values[chosen.indices]
                change = chosen.add(jnp.zeros_like(u[0]), indices, change)
            us.append(u.at[t].set(change))
        return Moving(kept, gathered, us)

    def split(self, params: Params) -> dict[str, jax.Array]:
        """Return the leaves of a tree like `params` that are updated as a whole, by path."""
        leaves = jax.tree.leaves(params)
        return {name: leaves[i] for name, i in self._kept.items()}

    def absorbed(self, params: Params, moving: Moving) -> Any:
        """Return the parameters after the chunk, from those before it."""
        leaves = jax.tree.leaves(params)
        for i, name in enumerate(self._network.names):
            leaves[i] = moving.kept.get(name, moving.gathered.get(name, leaves[i]))
        for layer, x, u in zip(self.layers, self._xs, moving.us, strict=True):
            leaves[layer.kernel] = leaves[layer.kernel] + jnp.einsum("tbi,tbo->io", x, u)
            if layer.bias is not None:
                leaves[layer.bias] = leaves[layer.bias] + jnp.sum(u, (0, 1))
        return jax.tree.unflatten(self._tree, leaves)


class Step(NamedTuple):
    """Data of one update.

    Attributes:
        params: parameters for `Chunk.objective`.
        batch: batch for `Chunk.objective`.
        values: values of variables, by number.
    """

    params: dict[str, jax.Array]
    batch: Any
    values: dict[int, jax.Array]


def _read(layer: FirstLayer) -> int:
    """Return the variable that replaces a first layer."""
    return layer.z if layer.chosen is None else layer.chosen.out


def _unchanged(at: Arrival) -> tuple[jax.Array, None]:
    return at.fn(at.z), None
