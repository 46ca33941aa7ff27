"""Processes, on one or several hosts, that train one run; each gets the same command.

All processes compute, and hold the same values on the host. Only the first writes the run's folder,
except for the arrays of checkpoints, of which each process writes its own part through Orbax: all
processes must see the folder.
"""

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from grlu.errors import UserError


def join(coordinator: str, processes: int | None, process: int | None) -> None:
    """Connect this process to the others, before anything is computed.

    Args:
        coordinator: HOST:PORT of the first process, or "auto" if JAX can detect all three
            arguments, as on a TPU pod or under SLURM.
        processes: total number of processes.
        process: index of this process, from 0.
    """
    try:
        if coordinator == "auto":
            jax.distributed.initialize()
            return
        if processes is None or process is None or not 0 <= process < processes:
            raise UserError(
                f"--coordinator {coordinator} needs --processes N and --process I, from 0 to "
                f"N - 1; got {processes} and {process}"
            )
        jax.distributed.initialize(coordinator, processes, process)
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"--coordinator {coordinator}: cannot connect the processes: {reason}"
        ) from error


def count() -> int:
    """Return the total number of processes."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def first() -> bool:
    """Return True if this is the first process, which writes."""
    return count() == 1 or jax.process_index() == 0


def agreed(flag: bool) -> bool:
    """Return True if the flag is set in any process."""
    if count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def by_first(action: Callable[[], object], what: str) -> None:
    """Call `action`, named `what`, in the first process, while the others wait."""
    try:
        if first():
            action()
    except BaseException:
        agreed(True)
        raise
    if agreed(False):
        raise UserError(f"{what} failed in the first process; see its error")
