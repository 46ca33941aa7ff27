"""Where runs with several seeds compute: every device takes its share of the seeds.

Seeds never meet, so nothing crosses the devices. On a CPU the devices are its cores.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def one_device_per_core(seeds: int) -> None:
    """Makes the CPU's cores devices, if there are several seeds and nothing has run yet."""
    if seeds == 1 or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        jax.config.update("jax_num_cpu_devices", cores)
    except RuntimeError:
        # JAX has started, by another run in this process: its devices are what there is.
        return


class Seeds:
    """The seeds of a run, dealt to the devices in equal shares.

    Args:
        count: number of seeds; the devices used are the largest number that divides it.
    """

    def __init__(self, count: int):
        self.count = count
        devices = jax.local_devices()
        shares = max(n for n in range(1, len(devices) + 1) if count % n == 0)
        self._mesh = Mesh(np.array(devices[:shares]), ("seeds",))

    def mapped(self, fn: Callable, in_axes: Sequence[int | None]) -> Callable:
        """`fn` over the leading axis of the arguments whose axis is 0; `fn` itself for one seed."""
        if self.count == 1:
            return fn
        over = jax.vmap(fn, in_axes=tuple(in_axes))
        if self._mesh.size == 1:
            return over
        specs = tuple(PartitionSpec() if axis is None else self._spec for axis in in_axes)
        return jax.shard_map(
            over, mesh=self._mesh, in_specs=specs, out_specs=self._spec, check_vma=False
        )

    def dealt(self, tree: Any) -> Any:
        """Puts what has a leading axis of seeds where it computes."""
        return self._put(tree, self._spec)

    def copied(self, tree: Any) -> Any:
        """Puts what all seeds share on every device."""
        return self._put(tree, PartitionSpec())

    @property
    def _spec(self) -> PartitionSpec:
        return PartitionSpec("seeds")

    def _put(self, tree: Any, spec: PartitionSpec) -> Any:
        if self.count == 1 or self._mesh.size == 1:
            return jax.device_put(tree)
        return jax.device_put(tree, NamedSharding(self._mesh, spec))
