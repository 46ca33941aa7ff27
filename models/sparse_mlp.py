"""Sparse multi-layer perceptron: hidden layers compute only with their winners.

A hidden layer of n units has k winners. Its output is a `Code`, the values and indices of the
winners, and the next layer reads the k rows of its kernel that belong to them. The winners are
chosen behind a `stop_gradient`; the values that carry credit come from active rows and active
columns, k x k numbers of a kernel. A rule's perturbed passes keep the winners of the clean pass, so
each costs k² per layer instead of n², and perturb (hidden layers) x k + outputs units of an
example. With that many pairs of orthogonal noise, their credit is exact at any width.
"""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

import grlu
from models.layers import require_flat


class Code(NamedTuple):
    """Winners of a layer.

    Attributes:
        values: their activity, shape (B, k).
        indices: their positions among the units, shape (B, k), integers.
    """

    values: jax.Array
    indices: jax.Array


class Winners(nnx.Module):
    """Winner-take-all: chooses k of the n units of a layer.

    The k winners have the largest z or, in training with `sampled`, the largest z + Gumbel(0, 1),
    which samples k units without replacement with probabilities softmax(z) (Kool et al. 2019,
    arXiv:1903.06059). With `among="groups"` units compete locally: the layer has k groups of n / k
    units, with one winner each (Srivastava et al. 2013, "Compete to compute").

    Args:
        k: number of winners.
        among: "all" or "groups".
        sampled: sample the winners in training.
        rngs: source of the samples.
    """

    def __init__(self, k: int, among: Literal["all", "groups"], sampled: bool, *, rngs: nnx.Rngs):
        self.k, self.among = k, among
        self.deterministic = not sampled
        self.rngs = rngs.fork() if sampled else None

    def __call__(self, z: jax.Array) -> jax.Array:
        """Return the positions of the winners of `z`, shape (B, n), as integers (B, k)."""
        z = jax.lax.stop_gradient(z)
        if self.rngs is not None and not self.deterministic:
            z = z + jax.random.gumbel(self.rngs(), z.shape, z.dtype)
        return _of_groups(z, self.k) if self.among == "groups" else _of_all(z, self.k)


class SparseDense(nnx.Module):
    """Dense layer that maps a code to the winners among its own units.

    Weights are he-normal, biases zero.

    Args:
        fan_in: number of units of the preceding layer.
        units: number of units.
        winners: chooses the winners.
        rngs: source of the initial weights.
    """

    def __init__(self, fan_in: int, units: int, winners: Winners, *, rngs: nnx.Rngs):
        init = nnx.initializers.he_normal()
        self.kernel = nnx.Param(init(rngs.params(), (fan_in, units), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(units))
        self.winners = winners

    def __call__(self, code: Code) -> Code:
        """Return the pre-activations of the winners, and their indices."""
        fixed = jax.lax.stop_gradient((self.kernel[...], self.bias[...], code.values))
        winners = self.winners(_rows(*fixed, code.indices))
        kernel = _at(self.kernel[...], code.indices[:, :, None], winners[:, None, :])
        z = jnp.einsum("bi,bio->bo", code.values, kernel) + _at(self.bias[...], winners)
        return Code(z, winners)


class SparseMLP(nnx.Module):
    """Multi-layer perceptron with k winners in each hidden layer, and a readout from every layer.

    The first hidden layer is dense: it sees all inputs. Each code is scaled to mean square 1 over
    all units of the layer, losers included. The logits are the sum of the readouts of all layers:
    without them, a deep stack of sparse layers does not train even with exact gradients.

    Args:
        example_shape: shape of one example, `(features,)`.
        outputs: number of outputs.
        hidden: number of units of each hidden layer.
        winners: number of winners k: one number for all layers or one per layer.
        among: "all": the k largest units win; "groups": the largest of each of k groups.
        winners_mode: "hard", or "gumbel" (winners sampled in training).
        rngs: source of the initial weights and of the sampled winners.

    Raises:
        UserError: if examples are not flat, or a size is out of range.
    """

    def __init__(
        self,
        example_shape: tuple[int, ...],
        outputs: int,
        *,
        hidden: tuple[int, ...] = (1000, 1000, 1000),
        winners: tuple[int, ...] = (20,),
        among: Literal["all", "groups"] = "all",
        winners_mode: Literal["gumbel", "hard"] = "hard",
        rngs: nnx.Rngs,
    ):
        counts = winners * len(hidden) if len(winners) == 1 else winners
        fan_in = require_flat("sparse_mlp", example_shape)
        if not hidden or len(counts) != len(hidden):
            raise grlu.UserError(
                f"sparse_mlp needs one number of winners, or one per hidden layer: got {winners} "
                f"for {len(hidden)} layers"
            )
        for n, k in zip(hidden, counts, strict=True):
            if not 0 < k <= n or (among == "groups" and n % k):
                groups = " and divide them into groups" if among == "groups" else ""
                raise grlu.UserError(
                    f"the winners of a layer must be 1 to its {n} units{groups}, got {k}"
                )
        sampled = winners_mode == "gumbel"
        self.first = nnx.Linear(
            fan_in, hidden[0], kernel_init=nnx.initializers.he_normal(), rngs=rngs
        )
        choose = [Winners(k, among, sampled, rngs=rngs) for k in counts]
        self.winners = choose[0]
        self.layers = nnx.List(
            SparseDense(below, units, chosen, rngs=rngs)
            for below, units, chosen in zip(hidden[:-1], hidden[1:], choose[1:], strict=True)
        )
        self.hidden = hidden
        init = nnx.initializers.normal(1 / math.sqrt(len(hidden)))
        self.readouts = nnx.List(
            nnx.Param(init(rngs.params(), (n, outputs), jnp.float32)) for n in hidden
        )
        self.bias = nnx.Param(jnp.zeros(outputs))

    def codes(self, x: jax.Array) -> list[Code]:
        """Map `x`, shape (B, features), to the scaled codes of the hidden layers."""
        z = self.first(x)
        winners = self.winners(z)
        codes = [self._scaled(Code(jnp.take_along_axis(z, winners, axis=1), winners), 0)]
        for number, layer in enumerate(self.layers, start=1):
            codes.append(self._scaled(layer(codes[-1]), number))
        return codes

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `x`, shape (B, features), to logits, shape (B, outputs)."""
        codes = self.codes(x)
        # Readouts get codes of unit length, so that one learning rate suits all layers.
        scales = [1 / math.sqrt(n) for n in self.hidden]
        scaled = [code.values * c for code, c in zip(codes, scales, strict=True)]
        values = jnp.concatenate(scaled, axis=1)
        pairs = zip(codes, self.readouts, strict=True)
        readouts = jnp.concatenate([_at(r[...], code.indices) for code, r in pairs], axis=1)
        return jnp.einsum("bk,bko->bo", values, readouts) + self.bias[...][None]

    def _scaled(self, code: Code, layer: int) -> Code:
        square = jnp.sum(jnp.square(code.values), axis=1, keepdims=True)
        scale = jax.lax.rsqrt(square / self.hidden[layer] + 1e-12)
        return Code(code.values * scale, code.indices)


def _at(array: jax.Array, *indices: jax.Array) -> jax.Array:
    """Index an array with indices that are known to be in bounds."""
    return array.at[indices].get(mode="promise_in_bounds")


def _rows(kernel: jax.Array, bias: jax.Array, values: jax.Array, indices: jax.Array) -> jax.Array:
    """Return all pre-activations (B, n) from the active rows of a kernel."""
    if len(values) > 1:
        return jnp.einsum("bk,bkn->bn", values, _at(kernel, indices)) + bias[None]
    # For one example XLA fuses the rows into their sum without copying them.
    z = bias[None]
    for i in range(values.shape[1]):
        z = z + values[:, i, None] * _at(kernel, indices[:, i])
    return z


def _of_groups(z: jax.Array, k: int) -> jax.Array:
    """Return the largest of the units c, c + k, c + 2 k, ... for each c < k."""
    units = z.reshape(len(z), -1, k)
    largest = units == jnp.max(units, axis=1, keepdims=True)
    place = jnp.arange(units.shape[1])[None, :, None]
    return jnp.max(jnp.where(largest, place, 0), axis=1) * k + jnp.arange(k)[None]


def _of_all(z: jax.Array, k: int) -> jax.Array:
    """Return the k largest units.

    They lie in the k groups with the largest maxima: on a CPU, two small sorts are faster than
    sorting all units.
    """
    n, parts = z.shape[-1], 5
    if n % parts or n // parts <= 2 * k:
        return jax.lax.top_k(z, k)[1]
    units = z.reshape(len(z), parts, -1)
    groups = jax.lax.top_k(jnp.max(units, axis=1), k)[1]
    candidates = jnp.take_along_axis(units, groups[:, None, :], axis=2).reshape(len(z), -1)
    best = jax.lax.top_k(candidates, k)[1]
    group = jnp.take_along_axis(groups, best % k, axis=1)
    return best // k * (n // parts) + group
