"""Where a run computes: on one device, or on a mesh of them, or with a share of its seeds on each.

Seeds never meet, so nothing crosses their devices. A mesh computes one run: along its axis
"population" noisy passes are dealt out (`grlu.spread`), along "data" the examples of a batch; all
else XLA's partitioner makes of that, for every trainer alike. On a CPU the devices are its cores.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from grlu.errors import UserError
from grlu.spread import POPULATION
from trainers import processes
from trainers.schedules import require

DATA = "data"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshSettings:
    """The config's `mesh` section: the devices that compute one run, population times data.

    Attributes:
        population: devices among which the noisy passes of a rule are dealt.
        data: devices among which the examples of a batch are dealt.
        fully_sharded: whether the state (weights, optimizer, frozen parts) is dealt over `data`,
            too: of each array the largest axis that allows it. Else every device has it whole.
    """

    population: int = 1
    data: int = 1
    fully_sharded: bool = False

    def __post_init__(self) -> None:
        require("mesh.population", self.population, 1)
        require("mesh.data", self.data, 1)

    @property
    def size(self) -> int:
        """Number of devices."""
        return self.population * self.data


def one_device_per_core(wanted: int) -> None:
    """Makes the CPU's cores devices, if several are wanted and nothing has run yet."""
    if wanted == 1 or processes.count() > 1:
        return
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        jax.config.update("jax_num_cpu_devices", cores)
    except RuntimeError:
        # JAX has started, by another run in this process: its devices are what there is.
        return


def placed(seeds: int, settings: MeshSettings) -> "Seeds | Devices":
    """Where a run of so many seeds computes.

    Raises:
        UserError: if there are not the devices for it.
    """
    if settings.size > 1 or processes.count() > 1:
        return Devices(settings)
    return Seeds(seeds)


class Seeds:
    """The seeds of a run, dealt to the devices in equal shares.

    Args:
        count: number of seeds; the devices used are the largest number that divides it.
    """

    size = 1

    def __init__(self, count: int):
        self.count = count
        devices = jax.local_devices()
        shares = max(n for n in range(1, len(devices) + 1) if count % n == 0)
        self._mesh = Mesh(np.array(devices[:shares]), ("seeds",))

    def compiled(
        self, fn: Callable, in_axes: Sequence[int | None], like: Any = None, **options: Any
    ) -> Callable:
        """`fn` over the leading axis of the arguments whose axis is 0, as one program.

        Args:
            fn: what to compile.
            in_axes: of each argument, 0 if it has a leading axis of seeds where there are several.
            like: of a function that returns a new state before other things, a state.
            options: of `jax.jit`.
        """
        return jax.jit(self._mapped(fn, in_axes), **options)

    def state(self, tree: Any) -> Any:
        """Puts the state, which has a leading axis of seeds, where it computes."""
        return self._put(tree, self._spec)

    def data(self, arrays: Any, *, by_seed: bool) -> Any:
        """Puts a split there: with `by_seed` dealt like the state, else the same for all."""
        return self._put(arrays, self._spec if by_seed else PartitionSpec())

    def batch(self, tree: Any) -> Any:
        """Inside a program: a batch, dealt to the devices that share its examples."""
        return tree

    def _mapped(self, fn: Callable, in_axes: Sequence[int | None]) -> Callable:
        if self.count == 1:
            return fn
        over = jax.vmap(fn, in_axes=tuple(in_axes))
        if self._mesh.size == 1:
            return over
        specs = tuple(PartitionSpec() if axis is None else self._spec for axis in in_axes)
        return jax.shard_map(
            over, mesh=self._mesh, in_specs=specs, out_specs=self._spec, check_vma=False
        )

    @property
    def _spec(self) -> PartitionSpec:
        return PartitionSpec("seeds")

    def _put(self, tree: Any, spec: PartitionSpec) -> Any:
        if self.count == 1 or self._mesh.size == 1:
            return jax.device_put(tree)
        return jax.device_put(tree, NamedSharding(self._mesh, spec))


class Devices:
    """One run on a mesh of devices, which may belong to several processes.

    It has the methods of `Seeds`.

    Raises:
        UserError: if there are fewer devices, or a process would have none of them.
    """

    def __init__(self, settings: MeshSettings):
        devices = jax.devices()
        shape = f"mesh.population {settings.population} x mesh.data {settings.data}"
        if settings.size > len(devices):
            raise UserError(f"{shape} needs {settings.size} devices, and there are {len(devices)}")
        if processes.count() > 1 and settings.size < len(devices):
            raise UserError(
                f"{shape} is {settings.size}, but {processes.count()} processes have "
                f"{len(devices)} devices together: with several processes, all must be used"
            )
        grid = np.array(devices[: settings.size]).reshape(settings.population, settings.data)
        self.size = settings.size
        self._settings = settings
        self._mesh = Mesh(grid, (POPULATION, DATA))

    def compiled(
        self, fn: Callable, in_axes: Sequence[int | None], like: Any = None, **options: Any
    ) -> Callable:
        whole = NamedSharding(self._mesh, PartitionSpec())
        layout = whole if like is None else (jax.tree.map(self._home, like), whole, whole)
        program = jax.jit(fn, out_shardings=layout, **options)

        def call(*args: Any) -> Any:
            with jax.set_mesh(self._mesh):
                return program(*args)

        return call

    def state(self, tree: Any) -> Any:
        return jax.tree.map(lambda leaf: _put(leaf, self._home(leaf)), tree)

    def data(self, arrays: Any, *, by_seed: bool) -> Any:
        whole = NamedSharding(self._mesh, PartitionSpec())
        return jax.tree.map(lambda leaf: _put(leaf, whole), arrays)

    def batch(self, tree: Any) -> Any:
        free = PartitionSpec.UNCONSTRAINED

        def dealt(x: jax.Array) -> jax.Array:
            spec = PartitionSpec(DATA, *[free] * (x.ndim - 1))
            return jax.lax.with_sharding_constraint(x, spec)

        return jax.tree.map(dealt, tree)

    def _home(self, leaf: Any) -> NamedSharding:
        """Where an array of the state is, by its shape alone: what belongs together is together."""
        shape, axes = np.shape(leaf), []
        if self._settings.fully_sharded:
            axes = [i for i, n in enumerate(shape) if n and n % self._settings.data == 0]
        spec: list[str | None] = [None] * len(shape)
        if axes:
            spec[max(axes, key=lambda i: shape[i])] = DATA
        return NamedSharding(self._mesh, PartitionSpec(*spec))


def _put(leaf: Any, home: NamedSharding) -> jax.Array:
    """A value that all processes have, on the devices of all."""
    if jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key):
        words = _put(jax.random.key_data(leaf), home)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
    if home.is_fully_addressable:
        return jax.device_put(leaf, home)
    values = np.asarray(leaf)
    return jax.make_array_from_callback(values.shape, home, lambda part: values[part])
