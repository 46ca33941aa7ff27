"""Parameters that learn online in chunks: those of first layers, and gathered parameters."""

import dataclasses
from typing import Any

import jax

from grlu.network import Network
from grlu.tracing.program import Bind


@dataclasses.dataclass(frozen=True)
class Gather:
    """Operation that reads the elements of an array at integer indices.

    Attributes:
        eqn: its equation.
        indices: variable of the indices.
        out: variable of the elements.
    """

    eqn: Any
    indices: int
    out: int

    def add(self, array: jax.Array, indices: jax.Array, changes: jax.Array) -> jax.Array:
        """Add changes, shaped like the elements, to the array that they were read from."""
        numbers = self.eqn.params["dimension_numbers"]
        return jax.lax.scatter_add(
            array,
            indices,
            changes,
            jax.lax.ScatterDimensionNumbers(
                numbers.offset_dims,
                numbers.collapsed_slice_dims,
                numbers.start_index_map,
                numbers.operand_batching_dims,
                numbers.start_indices_batching_dims,
            ),
            indices_are_sorted=self.eqn.params["indices_are_sorted"],
            unique_indices=self.eqn.params["unique_indices"],
            mode=self.eqn.params["mode"],
        )


@dataclasses.dataclass(frozen=True)
class FirstLayer:
    """Dense layer whose input depends on the data alone.

    Attributes:
        name: path of the layer.
        kernel: index of its kernel among the parameter leaves.
        bias: index of its bias among the parameter leaves, or None.
        x: variable of its input.
        z: variable of its pre-activation.
        chosen: the operation that chooses units of z, if nothing else reads z; else None.
    """

    name: str
    kernel: int
    bias: int | None
    x: int
    z: int
    chosen: Gather | None

    @property
    def leaves(self) -> list[int]:
        """Return the indices of its parameter leaves."""
        return [self.kernel, *([] if self.bias is None else [self.bias])]


def first_layers(network: Network) -> list[FirstLayer]:
    """Return the dense layers without a preceding site whose parameters are used nowhere else."""
    uses = [i for info in network.sites for i in info.site.params]
    found = []
    for info in network.sites:
        dense = info.site.dense or info.site.chosen
        # If an example passes a layer several times, the update is a sum of outer products.
        if dense is None or not info.site.first or len(info.shape) != 2:
            continue
        rank = len(network.program.avals[dense.x].shape)
        if rank != 2 or dense.kernel.cast or (dense.bias is not None and dense.bias.cast):
            continue
        if any(uses.count(i) > 1 for i in info.site.params):
            continue
        bias = None if dense.bias is None else dense.bias.leaf
        chosen = gathers(network, dense.out)[0] if info.site.chosen else None
        layer = FirstLayer(info.name, dense.kernel.leaf, bias, dense.x, dense.out, chosen)
        if set(layer.leaves) == info.site.params:
            found.append(layer)
    return found


def gathers(network: Network, variable: int) -> list[Gather]:
    """Return the operations that read a variable if all gather from it, else an empty list.

    A `stop_gradient` is not counted as a reader.
    """
    found = []
    for op in network.program.ops:
        if variable not in op.ins:
            continue
        name = "" if op.eqn is None else op.eqn.primitive.name
        if name == "stop_gradient":
            continue
        if (
            not (isinstance(op, Bind) and name == "gather")
            or op.ins[0] != variable
            or not isinstance(op.ins[1], int)
        ):
            return []
        found.append(Gather(op.eqn, op.ins[1], op.outs[0]))
    return [] if variable in network.program.outs else found
