"""Arrays of images in a file, read on demand."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from grlu.errors import UserError


class OnDisk:
    """Consecutive rows of bytes in a file, indexed like an array (N, ...) of uint8.

    Rows are read, not memory-mapped, because mapped pages count towards the process's memory for as
    long as the system keeps them.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = file.write(bytes(range(12)))
    ...     file.flush()
    ...     rows = OnDisk(Path(file.name), (2, 2))
    ...     len(rows), rows.shape, rows[1].tolist(), rows[[2, 0]].sum((1, 2)).tolist()
    (3, (3, 2, 2), [[4, 5], [6, 7]], [38, 6])

    Attributes:
        path: the file.
        shape: number of rows N, followed by the shape of a row.
        dtype: uint8.

    Raises:
        UserError: if the file cannot be read, or its last row is incomplete.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, path: Path, row: tuple[int, ...]):
        self.path, self._bytes = path, math.prod(row)
        size = path.stat().st_size
        if size % self._bytes:
            raise self._damaged()
        self.shape = (size // self._bytes, *row)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Read the rows of an index, a slice, or an array of indices."""
        chosen = np.arange(len(self))[rows]
        read = np.empty((chosen.size, self._bytes), np.uint8)
        with self.path.open("rb", buffering=0) as file:
            for i, row in enumerate(chosen.reshape(-1).tolist()):
                file.seek(row * self._bytes)
                if file.readinto(read[i]) != self._bytes:
                    raise self._damaged()
        return read.reshape(*chosen.shape, *self.shape[1:])

    def _damaged(self) -> UserError:
        return UserError(
            f"{self.path} is damaged: remove {self.path.parent} to decode the images again."
        )
