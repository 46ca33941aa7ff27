"""A traced objective: rewards as a function of parameters, with the sites laid open."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp

from grlu.errors import UserError
from grlu.sites import Output, Site, Stop, Visit, evaluate

# (params, consts, batch) -> (rewards of shape (B,), aux)
Objective = Callable[[Any, Any, Any], tuple[jax.Array, Any]]


@dataclasses.dataclass(frozen=True)
class SiteInfo:
    """What is known of a site before anything runs.

    Attributes:
        site: its place in the network.
        name: the path of its layer in the model, with `#n` for a later call.
        shape: shape of the pre-activation, the batch axis included.
        dtype: dtype of the pre-activation.
        axis: the axis that runs over examples; None if all of it belongs to every example.
        live: whether the reward depends on it.
        output: whether the reward depends on it without another site between.
    """

    site: Site
    name: str
    shape: tuple[int, ...]
    dtype: Any
    axis: int | None
    live: bool
    output: bool


@dataclasses.dataclass(frozen=True)
class Network:
    """An objective as a jaxpr, and its sites in the order of execution."""

    closed: jex.ClosedJaxpr
    out_tree: Any
    names: tuple[str, ...]
    batch_size: int
    sites: tuple[SiteInfo, ...] = ()

    def outputs(
        self, params: Any, consts: Any, batch: Any, visit: Visit, stop: Stop | None = None
    ) -> list[Output]:
        """The flat outputs of one pass, each with the sites that it depends on."""
        leaves = (jax.tree.leaves(params), jax.tree.leaves(consts), jax.tree.leaves(batch))
        return evaluate(self.closed, *leaves, visit, self.names, stop)

    def run(
        self, params: Any, consts: Any, batch: Any, visit: Visit, stop: Stop | None = None
    ) -> tuple[jax.Array, Any]:
        """Rewards (B,) and aux of one pass in which `visit` handles the sites.

        `stop` chooses what passes a `stop_gradient`; by default what comes to it.
        """
        outs = self.outputs(params, consts, batch, visit, stop)
        return jax.tree.unflatten(self.out_tree, [o.value for o in outs])

    def clean(self, params: Any, consts: Any, batch: Any, *, slopes: bool = False) -> "CleanPass":
        """One unperturbed pass, cut at every site, so that a site's VJP reaches its layer alone.

        Args:
            params: trainable state.
            consts: the model's other state.
            batch: the batch.
            slopes: whether to note each site's response and slope.
        """

        def cut(params: Any) -> tuple[list[jax.Array], Any]:
            zs, responses, stops = [], [], []

            def stop(value: jax.Array) -> jax.Array:
                stops.append(value)
                return value

            def visit(site: Site, z: jax.Array, fn: Callable) -> jax.Array:
                zs.append(z)
                z = jax.lax.stop_gradient(z)
                if not slopes:
                    return fn(z)
                responses.append(jax.jvp(fn, (z,), (jnp.ones_like(z),)))
                return responses[-1][0]

            out = self.run(params, consts, batch, visit, stop)
            return zs, (out, responses, stops)

        zs, vjp, ((rewards, aux), responses, stops) = jax.vjp(cut, params, has_aux=True)
        return CleanPass(zs, responses, stops, rewards, aux, lambda credits: vjp(credits)[0])


@dataclasses.dataclass(frozen=True)
class CleanPass:
    """What an unperturbed pass leaves behind.

    Attributes:
        zs: each site's pre-activation.
        responses: each site's activation f(z) and slope f'(z), if they were asked for.
        stops: what passed each `stop_gradient` behind a site.
        rewards: shape (B,).
        aux: what the objective gives besides.
        local_update: from credits (arrays like `zs`) to a tree like the parameters: what each layer
            makes of its own input and its own credit.
    """

    zs: list[jax.Array]
    responses: list[tuple[jax.Array, jax.Array]]
    stops: list[jax.Array]
    rewards: jax.Array
    aux: Any
    local_update: Callable[[list[jax.Array]], Any]

    def stop(self) -> Stop:
        """For another pass: what passed here passes there, whatever noise comes to it."""
        passed = iter(self.stops)
        return lambda value: next(passed)


def trace(objective: Objective, params: Any, consts: Any, batch: Any) -> Network:
    """Traces an objective and finds its sites.

    Raises:
        UserError: if the rewards are not of shape (B,), a parameter is not a float, or a site
            mixes examples in a way that credit cannot follow.
    """
    names = tuple(parameter_names(params))
    require_floats(params)
    closed, out_shape = jax.make_jaxpr(objective, return_shape=True)(params, consts, batch)
    rewards = out_shape[0]
    network = Network(closed, jax.tree.structure(out_shape), names, rewards.shape[0])
    found, live = _discover(network, params, consts, batch)
    if names and not live:
        raise UserError(
            "the reward depends on no trainable parameter of the model given to the estimate: it "
            "is the same whatever the model does, or not computed from the `model` and `batch` "
            "that the reward function receives"
        )
    axes = _batch_axes(objective, network, found, params, consts, batch)
    inner = frozenset().union(*(site.upstream for site, _ in found if site.index in live))
    sites, seen = [], dict[str, int]()
    for (site, shape), axis in zip(found, axes, strict=True):
        name = _common_path([names[i] for i in sorted(site.params)])
        seen[name] = seen.get(name, -1) + 1
        name = f"{name}#{seen[name]}" if seen[name] else name
        alive = site.index in live
        output = alive and site.index not in inner
        sites.append(SiteInfo(site, name, shape.shape, shape.dtype, axis, alive, output))
    return dataclasses.replace(network, sites=tuple(sites))


def require_floats(params: Any) -> None:
    """Raises UserError if a parameter is not a floating-point array."""
    for name, leaf in zip(parameter_names(params), jax.tree.leaves(params), strict=True):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise UserError(
                f"{name}: a rule trains floating-point parameters, this one is "
                f"{jnp.result_type(leaf)}; hold it in another nnx.Variable type than nnx.Param"
            )


def parameter_names(params: Any) -> list[str]:
    """The path of every leaf, such as `layers.0.kernel`."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    named = []
    for path in paths:
        keys = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path]
        named.append(".".join(keys[:-1] if len(keys) > 1 and keys[-1] == "value" else keys))
    return named


def _common_path(paths: Sequence[str]) -> str:
    split = [p.split(".") for p in paths]
    if len(split) == 1:
        return ".".join(split[0][:-1]) or paths[0]
    common = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common) or "+".join(paths)


def _discover(
    network: Network, params: Any, consts: Any, batch: Any
) -> tuple[list[tuple[Site, jax.ShapeDtypeStruct]], frozenset[int]]:
    found: list[tuple[Site, jax.ShapeDtypeStruct]] = []
    live: frozenset[int] = frozenset()

    def visit(site: Site, z: jax.Array, fn: Callable) -> jax.Array:
        found.append((site, jax.ShapeDtypeStruct(z.shape, z.dtype)))
        return fn(z)

    def run(params: Any, consts: Any, batch: Any) -> list[jax.Array]:
        nonlocal live
        outs = network.outputs(params, consts, batch, visit)
        live = outs[0].upstream
        return [o.value for o in outs]

    jax.eval_shape(run, params, consts, batch)
    return found, live


def _batch_axes(
    objective: Objective,
    network: Network,
    found: Sequence[tuple[Site, jax.ShapeDtypeStruct]],
    params: Any,
    consts: Any,
    batch: Any,
) -> list[int | None]:
    """The axis of each site that grows when the batch does: sizes alone can coincide."""
    size = network.batch_size
    if size == 1:
        return [None] * len(found)

    def grow(leaf: Any) -> Any:
        shape = jnp.shape(leaf)
        if shape and shape[0] == size:
            shape = (size + 1, *shape[1:])
        return jax.ShapeDtypeStruct(shape, jnp.result_type(leaf))

    more = jax.tree.map(grow, batch)
    try:
        closed = jax.make_jaxpr(objective)(params, consts, more)
    except (TypeError, ValueError):
        # Something outside the batch has the batch's size, such as an array closed over.
        return [_leading(shape.shape, size) for _, shape in found]
    larger, _ = _discover(dataclasses.replace(network, closed=closed), params, consts, more)
    axes: list[int | None] = []
    for (_, one), (_, two) in zip(found, larger, strict=True):
        grown = [i for i, (a, b) in enumerate(zip(one.shape, two.shape, strict=True)) if a != b]
        if grown and (len(grown) > 1 or two.shape[grown[0]] - one.shape[grown[0]] != 1):
            raise UserError(
                f"a layer's output of shape {one.shape} mixes the {size} examples of the batch "
                "with another axis, so that rewards cannot be assigned to them; keep the batch an "
                "axis of its own (nnx.Linear and nnx.Conv accept further axes)"
            )
        axes.append(grown[0] if grown else None)
    return axes


def _leading(shape: tuple[int, ...], size: int) -> int | None:
    if shape and shape[0] == size:
        return 0
    raise UserError(
        f"a layer's output of shape {shape} has no leading batch axis of size {size}, and the "
        "reward function does not accept another batch size from which to tell its batch axis; "
        "pass every array of the batch's size through `batch`"
    )
