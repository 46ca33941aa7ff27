"""Several processes, on one host or on many, that train one run: each is given the same command.

All compute and hold the same values on the host. The first alone writes the run's folder, but for
the checkpoints' arrays, of which Orbax has each process write its own part; so the folder must be
one that all can see.
"""

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from grlu.errors import UserError


def join(coordinator: str, processes: int | None, process: int | None) -> None:
    """Joins this process to the others, before anything is computed.

    Args:
        coordinator: HOST:PORT on which the first process listens, or "auto" where JAX can ask its
            surroundings for all three, as on a TPU pod or under SLURM.
        processes: how many there are.
        process: the number of this one, from 0.

    Raises:
        UserError: if they don't fit each other, or the others can't be reached.
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
            f"--coordinator {coordinator}: the processes don't meet: {reason}"
        ) from error


def count() -> int:
    """How many processes train this run."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def first() -> bool:
    """Whether this is the process that writes; without others, it is."""
    return count() == 1 or jax.process_index() == 0


def agreed(flag: bool) -> bool:
    """Whether any process says so."""
    if count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def by_first(action: Callable[[], None], what: str) -> None:
    """The first process acts, while the others wait.

    Raises:
        UserError: in the others, if the first one failed; in it, whatever it met.
    """
    try:
        if first():
            action()
    except BaseException:
        agreed(True)
        raise
    if agreed(False):
        raise UserError(f"{what} failed in the first process, which says why")
