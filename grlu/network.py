"""Networks: traced objectives with access to their sites."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from grlu.errors import UserError
from grlu.influence.analysis import influences
from grlu.influence.rows import Rows, rows
from grlu.jaxprs.widening import holds_low, is_low
from grlu.tracing.build import build
from grlu.tracing.program import Arrival, Outcome, Program, Site, Visit
from grlu.tracing.run import run

Params: TypeAlias = Any
"""Pytree of trainable arrays, such as an `nnx.State`."""

State: TypeAlias = Any
"""Pytree of a model's other arrays, such as an `nnx.State`."""

Batch: TypeAlias = Any
"""Pytree of arrays with a leading axis of B examples."""

Aux: TypeAlias = Any
"""Pytree of auxiliary values of an objective."""

Objective: TypeAlias = Callable[[Params, State, Batch], tuple[jax.Array, Aux]]
"""`(params, state, batch) -> (rewards, aux)`, with rewards of shape (B,)."""


@dataclasses.dataclass(frozen=True)
class SiteInfo:
    """Static properties of a site.

    Attributes:
        site: the site in the program.
        name: path of its layer in the model, with `#n` for a later call.
        shape: shape of its values, with the axes of enclosing loops first.
        dtype: dtype that a visitor sees.
        rows: the examples whose rewards each element affects.
        live: True if the reward depends on it.
        output: True if the reward depends on it without another site in between, as on logits.
        penalty: True if it is a term of the reward that depends on parameters only, such as a
            weight decay, whose credit is known without noise.
    """

    site: Site
    name: str
    shape: tuple[int, ...]
    dtype: Any
    rows: Rows
    live: bool
    output: bool
    penalty: bool

    @property
    def axis(self) -> int | None:
        """Return the axis that runs over examples, or None."""
        return self.rows.axis

    @property
    def steps(self) -> tuple[int, ...]:
        """Return the lengths of the enclosing loops; 1 for a loop over examples, as in a map."""
        examples = {(digit.axis, digit.size) for digit in self.rows.digits}
        return tuple(1 if (i, n) in examples else n for i, n in enumerate(self.site.loops))

    @property
    def vectors(self) -> bool:
        """Return True if it has one vector of units per example, the same units for all."""
        if self.site.indexed:
            return False
        plain = not self.site.loops and len(self.shape) == 2
        return plain or (self.rows.each and self.rows.units == self.shape[-1])

    def by_example(self, x: jax.Array) -> jax.Array:
        """Reshape an array like the site's values to (B, units), if `vectors`."""
        return self.rows.split(x) if self.site.loops else x

    def by_loops(self, x: jax.Array) -> jax.Array:
        """Reshape an array (B, units) to one like the site's values, if `vectors`."""
        return self.rows.join(x) if self.site.loops else x

    @property
    def moved(self) -> bool:
        """Return True if its credit must be estimated by noise."""
        return self.live and not self.penalty


@dataclasses.dataclass(frozen=True)
class Network:
    """Objective as a program, with its sites in the order of execution.

    Attributes:
        program: program of `(*params, *consts, *batch, *closed_over)`.
        out_tree: structure of the objective's result.
        names: path of every parameter leaf.
        batch_size: B.
        closed_over: arrays that the objective closes over.
        sites: the sites.
        wide: True if bfloat16 and float16 operations run in float32.
        low: True if the objective has bfloat16 or float16 operations.
    """

    program: Program
    out_tree: Any
    names: tuple[str, ...]
    batch_size: int
    closed_over: tuple[Any, ...] = ()
    sites: tuple[SiteInfo, ...] = ()
    wide: bool = False
    low: bool = False

    def widened(self) -> "Network":
        """Return the network with all 16-bit operations in float32.

        Noise is lost in bfloat16: rules perturb this network, which equals the model up to
        rounding.
        """
        if not self.low:
            return self
        sites = [
            dataclasses.replace(info, dtype=jnp.dtype(jnp.float32)) if _low(info.dtype) else info
            for info in self.sites
        ]
        return dataclasses.replace(self, wide=True, sites=tuple(sites))

    def outcome(
        self, params: Params, consts: State, batch: Batch, visit: Visit, **given: Any
    ) -> Outcome:
        """Run one pass; see `grlu.tracing.run` for `given` and `stops`."""
        leaves = [*jax.tree.leaves(params), *jax.tree.leaves(consts), *jax.tree.leaves(batch)]
        return run(self.program, [*leaves, *self.closed_over], visit, wide=self.wide, **given)

    def unflatten(self, outcome: Outcome) -> tuple[jax.Array, Aux]:
        """Return the rewards (B,) and auxiliary values of a pass."""
        return jax.tree.unflatten(self.out_tree, outcome.outs)

    def run(
        self, params: Params, consts: State, batch: Batch, visit: Visit, **given: Any
    ) -> tuple[jax.Array, Aux]:
        """Run one pass; return its rewards (B,) and auxiliary values."""
        return self.unflatten(self.outcome(params, consts, batch, visit, **given))

    def rewards(self, params: Params, consts: State, batch: Batch) -> jax.Array:
        """Return the rewards (B,) of the traced network, which equal the model's."""
        return self.run(params, consts, batch, untouched)[0]

    def clean(
        self, params: Params, consts: State, batch: Batch, *, slopes: bool = False
    ) -> "CleanPass":
        """Run an unperturbed pass, cut at every site so that a site's VJP stops at its own layer.

        Args:
            params: trainable state.
            consts: the model's other state.
            batch: the batch.
            slopes: record each site's activation and slope.
        """

        def visit(at: Arrival) -> tuple[jax.Array, Any]:
            z = jax.lax.stop_gradient(at.z)
            if not slopes:
                return at.fn(z), (at.z, None)
            response = jax.jvp(at.fn, (z,), (jnp.ones_like(z),))
            return response[0], (at.z, jax.lax.stop_gradient(response))

        def cut(params: Params) -> tuple[list[jax.Array], Any]:
            outcome = self.outcome(params, consts, batch, visit, keep_stops=True)
            recorded = [outcome.records[info.site.index] for info in self.sites]
            responses = [response for _, response in recorded]
            return [z for z, _ in recorded], (self.unflatten(outcome), responses, outcome.stopped)

        zs, vjp, ((rewards, aux), responses, stopped) = jax.vjp(cut, params, has_aux=True)
        return CleanPass(zs, responses, stopped, rewards, aux, lambda credits: vjp(credits)[0])


@dataclasses.dataclass(frozen=True)
class CleanPass:
    """Results of an unperturbed pass.

    Attributes:
        zs: pre-activation of each site.
        responses: activation f(z) and slope f'(z) of each site, or None if not requested.
        stops: value at each `stop_gradient` behind a site, reused in other passes.
        rewards: rewards, shape (B,).
        aux: the objective's auxiliary values.
        local_update: maps credits (arrays like `zs`) to a tree like the parameters, in which each
            layer's update depends on its own input and its own credit only.
    """

    zs: list[jax.Array]
    responses: list[Any]
    stops: Mapping[int, Any]
    rewards: jax.Array
    aux: Aux
    local_update: Callable[[list[jax.Array]], Params]


def untouched(at: Arrival) -> tuple[jax.Array, Any]:
    """Visit a site without changing its value."""
    return at.fn(at.z), None


def trace(objective: Objective, params: Params, consts: State, batch: Batch) -> Network:
    """Trace an objective and find its sites.

    Raises:
        UserError: if the rewards depend on no parameter, a parameter is not a float, or credit
            would leak through a `stop_gradient`.
    """
    names = tuple(parameter_names(params))
    require_floats(params)
    closed, out_shape = jax.make_jaxpr(objective, return_shape=True)(params, consts, batch)
    program = build(closed, len(names), len(jax.tree.leaves(consts)), names)
    size = out_shape[0].shape[0]
    found = influences(program, size)
    if names and not any(f.live for f in found.values()):
        raise UserError(
            "the reward depends on no trainable parameter of the model given to the estimate: it "
            "is constant, or is not computed from the `model` and `batch` that the reward function "
            "receives"
        )
    sites, seen = [], dict[str, int]()
    for site in sorted(program.sites, key=lambda site: site.index):
        name = _common_path([names[i] for i in sorted(site.params)])
        seen[name] = seen.get(name, -1) + 1
        name = f"{name}#{seen[name]}" if seen[name] else name
        what, shape = found[site.index], (*site.loops, *site.shape)
        split = rows(shape, what.digits, len(site.loops), size)
        sites.append(
            SiteInfo(
                site,
                name,
                shape,
                site.dtype,
                split,
                what.live,
                what.output and not what.penalty,
                what.penalty,
            )
        )
    low = holds_low(closed.jaxpr) or any(is_low(v.aval) for v in closed.jaxpr.invars)
    return Network(
        program,
        jax.tree.structure(out_shape),
        names,
        size,
        tuple(closed.consts),
        tuple(sites),
        low=low,
    )


def require_floats(params: Params) -> None:
    """Raise UserError if a parameter is not an array of real floating-point numbers."""
    for name, leaf in zip(parameter_names(params), jax.tree.leaves(params), strict=True):
        if jnp.iscomplexobj(leaf):
            raise UserError(
                f"{name}: a rule trains real parameters, this one is {jnp.result_type(leaf)}; "
                "store its real and imaginary parts as two parameters and combine them with "
                "jax.lax.complex in the model"
            )
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise UserError(
                f"{name}: a rule trains floating-point parameters, this one is "
                f"{jnp.result_type(leaf)}; store it in an nnx.Variable type other than nnx.Param"
            )


def parameter_names(params: Params) -> list[str]:
    """Return the path of every leaf, such as `layers.0.kernel`."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    named = []
    for path in paths:
        keys = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path]
        named.append(".".join(keys[:-1] if len(keys) > 1 and keys[-1] == "value" else keys))
    return named


def _low(dtype: Any) -> bool:
    return is_low(jax.ShapeDtypeStruct((), dtype))


def _common_path(paths: Sequence[str]) -> str:
    split = [p.split(".") for p in paths]
    if len(split) == 1:
        return ".".join(split[0][:-1]) or paths[0]
    common = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common) or ("+".join(paths) if len(paths) < 4 else f"{len(paths)} parameters")
