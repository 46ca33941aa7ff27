"""Devices of a run: one device, a mesh of devices for one run, or devices for the seeds of a run.

Seeds are independent, so their devices exchange nothing. The axis "population" of a mesh shards
noisy passes (`grlu.noise.spread`), the axis "data" the examples of a batch; XLA's partitioner does
the rest. The devices of a CPU are its cores.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from grlu.errors import UserError
from grlu.noise.spread import POPULATION
from trainers.config.values import require
from trainers.devices import processes

DATA = "data"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshSettings:
    """The config's `mesh` section: population × data devices for one run.

    Attributes:
        population: number of devices that share the noisy passes of a rule.
        data: number of devices that share the examples of a batch.
        fully_sharded: also shard the state (weights, optimizer, frozen parts) over `data`, each
            array along its largest divisible axis, instead of replicating it.
    """

    population: int = 1
    data: int = 1
    fully_sharded: bool = False

    def __post_init__(self) -> None:
        require("mesh.population", self.population, 1)
        require("mesh.data", self.data, 1)

    @property
    def size(self) -> int:
        return self.population * self.data


def one_device_per_core(wanted: int) -> None:
    """Turn the CPU's cores into devices, if several are wanted and JAX has not started."""
    if wanted == 1 or processes.count() > 1:
        return
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    with contextlib.suppress(RuntimeError):  # Another run in this process has started JAX.
        jax.config.update("jax_num_cpu_devices", cores)


def placed(seeds: int, settings: MeshSettings) -> "Seeds | Devices":
    """Return the devices of a run with this number of seeds."""
    return Devices(settings) if settings.size > 1 or processes.count() > 1 else Seeds(seeds)


class Seeds:
    """Devices for a run's `count` seeds: as many as divide the seeds evenly."""

    size = 1

    def __init__(self, count: int):
        self.count = count
        devices = jax.local_devices()
        used = max(n for n in range(1, len(devices) + 1) if count % n == 0)
        self._mesh = Mesh(np.array(devices[:used]), ("seeds",))
        self._spec = PartitionSpec("seeds")

    def compiled(
        self, fn: Callable, in_axes: Sequence[int | None], like: Any = None, **options: Any
    ) -> Callable:
        """Compile `fn`, mapped over the seeds, as one program, with options of `jax.jit`.

        Args:
            fn: the function.
            in_axes: for each argument, 0 if it has a leading axis of seeds, or None.
            like: a state, if `fn` returns a new state and two more values.
        """
        if self.count > 1:
            fn = jax.vmap(fn, in_axes=tuple(in_axes))
        if self._mesh.size > 1:
            specs = tuple(PartitionSpec() if axis is None else self._spec for axis in in_axes)
            fn = jax.shard_map(
                fn, mesh=self._mesh, in_specs=specs, out_specs=self._spec, check_vma=False
            )
        return jax.jit(fn, **options)

    def state(self, tree: Any) -> Any:
        """Put a state with a leading axis of seeds on the devices."""
        return self.data(tree, by_seed=True)

    def data(self, arrays: Any, *, by_seed: bool) -> Any:
        """Put a split on the devices: sharded over seeds with `by_seed`, otherwise replicated."""
        if self._mesh.size == 1:
            return jax.device_put(arrays)
        spec = self._spec if by_seed else PartitionSpec()
        return jax.device_put(arrays, NamedSharding(self._mesh, spec))

    def batch(self, tree: Any) -> Any:
        """Shard a batch, inside a program, over the devices that share its examples."""
        return tree


class Devices:
    """Mesh of devices for one run, of one or several processes, with the methods of `Seeds`."""

    def __init__(self, settings: MeshSettings):
        devices = jax.devices()
        shape = f"mesh.population {settings.population} x mesh.data {settings.data}"
        if settings.size > len(devices):
            raise UserError(f"{shape} needs {settings.size} devices, and there are {len(devices)}")
        if processes.count() > 1 and settings.size < len(devices):
            raise UserError(
                f"{shape} is {settings.size}, but the {processes.count()} processes have "
                f"{len(devices)} devices: several processes must use all their devices"
            )
        grid = np.array(devices[: settings.size]).reshape(settings.population, settings.data)
        self.size = settings.size
        self._settings = settings
        self._mesh = Mesh(grid, (POPULATION, DATA))
        self._replicated = NamedSharding(self._mesh, PartitionSpec())

    def compiled(
        self, fn: Callable, in_axes: Sequence[int | None], like: Any = None, **options: Any
    ) -> Callable:
        layout: Any = self._replicated
        if like is not None:
            layout = jax.tree.map(self._sharding, like), layout, layout
        program = jax.jit(fn, out_shardings=layout, **options)

        def call(*args: Any) -> Any:
            with jax.set_mesh(self._mesh):
                return program(*args)

        return call

    def state(self, tree: Any) -> Any:
        return jax.tree.map(lambda leaf: _put(leaf, self._sharding(leaf)), tree)

    def data(self, arrays: Any, *, by_seed: bool) -> Any:
        return jax.tree.map(lambda leaf: _put(leaf, self._replicated), arrays)

    def batch(self, tree: Any) -> Any:
        free = PartitionSpec.UNCONSTRAINED

        def shard(x: jax.Array) -> jax.Array:
            spec = PartitionSpec(DATA, *[free] * (x.ndim - 1))
            return jax.lax.with_sharding_constraint(x, spec)

        return jax.tree.map(shard, tree)

    def _sharding(self, leaf: Any) -> NamedSharding:
        """Return the sharding of an array of the state, by its shape alone."""
        shape = np.shape(leaf)
        spec: list[str | None] = [None] * len(shape)
        axes = [i for i, n in enumerate(shape) if n and n % self._settings.data == 0]
        if axes and self._settings.fully_sharded:
            spec[max(axes, key=lambda i: shape[i])] = DATA
        return NamedSharding(self._mesh, PartitionSpec(*spec))


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """Put a value that all processes have on the devices of all processes."""
    if jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key):
        words = _put(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    values = np.asarray(leaf)
    return jax.make_array_from_callback(values.shape, sharding, lambda part: values[part])
