"""Rows: the examples whose rewards an element of an array affects.

The number of an example is written in mixed radix. A *digit* of this number can be read from the
position of an element along one axis: `weight * (position // stride % size)`. An array (B, units)
has one digit, of weight 1 and size B; after a reshape to (B/2, 2, units) it has two. An element
affects the rewards of all examples that agree with its known digits: one example if all digits are
known, all examples if none is, and a group if, say, rewards are compared within groups.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np


class Digit(NamedTuple):
    """Digit of an example's number, read along one axis.

    Attributes:
        weight: value of one unit of the digit.
        size: number of values of the digit.
        axis: the axis; -1 - l for the step axis of enclosing loop l, counted from the outermost.
        stride: number of positions along the axis before the digit changes.
    """

    weight: int
    size: int
    axis: int
    stride: int


Digits = frozenset[Digit]


def every_example(batch_size: int) -> Digits:
    """Return the digits of an array (B, ...)."""
    return frozenset({Digit(1, batch_size, 0, 1)} if batch_size > 1 else ())


def common(one: Digits, two: Digits) -> Digits:
    """Return the digits on which two descriptions of one array agree."""
    if one == two:
        return one
    found = set()
    for a in one:
        for b in two:
            if a.axis != b.axis or a.stride * b.weight != b.stride * a.weight:
                continue
            low = max(a.weight, b.weight)
            high = min(a.weight * a.size, b.weight * b.size)
            exact = not (low % a.weight or low % b.weight or high % low) if low < high else False
            if exact:
                found.add(Digit(low, high // low, a.axis, a.stride * low // a.weight))
    return frozenset(found)


def on_axes(digits: Digits, axes: dict[int, int]) -> Digits:
    """Return the digits whose axes are among the keys, on the axes they are mapped to.

    Loop axes are kept.
    """
    return frozenset(
        d if d.axis < 0 else d._replace(axis=axes[d.axis])
        for d in digits
        if d.axis < 0 or d.axis in axes
    )


def reshaped(digits: Digits, before: Sequence[int], after: Sequence[int]) -> Digits:
    """Return the digits of an array after a row-major reshape."""
    found = {d for d in digits if d.axis < 0}
    for d in digits:
        if d.axis < 0:
            continue
        first = d.stride * math.prod(before[d.axis + 1 :])
        last = first * d.size
        for axis, size in enumerate(after):
            inner = math.prod(after[axis + 1 :])
            low, high = max(first, inner), min(last, inner * size)
            if low >= high or low % first or low % inner or high % low or (inner * size) % high:
                continue
            found.add(Digit(d.weight * (low // first), high // low, axis, low // inner))
    return frozenset(found)


@dataclasses.dataclass(frozen=True)
class Rows:
    """View of an array as groups of units: one group per set of examples that its elements affect.

    Attributes:
        shape: shape of the array, loop axes first.
        digits: digits of the examples' numbers; axes refer to `shape`.
        batch_size: B.
    """

    shape: tuple[int, ...]
    digits: Digits
    batch_size: int

    @property
    def ordered(self) -> list[Digit]:
        """Return the digits from the highest to the lowest."""
        return sorted(self.digits, reverse=True)

    @property
    def groups(self) -> int:
        """Return the number of groups G, which is B if every element belongs to one example."""
        return math.prod(d.size for d in self.digits)

    @property
    def units(self) -> int:
        """Return the number of elements U of a group."""
        return math.prod(self.shape) // self.groups

    @property
    def each(self) -> bool:
        """Return True if every element affects the reward of exactly one example."""
        return self.groups == self.batch_size

    @property
    def axis(self) -> int | None:
        """Return the axis that runs over the examples, or None."""
        if len(self.digits) != 1 or not self.each:
            return None
        (digit,) = self.digits
        return digit.axis if digit.size == self.shape[digit.axis] else None

    def split(self, x: Any) -> Any:
        """Reshape an array (..., *shape) to (..., G, U)."""
        sizes, order = self._layout()
        lead = x.shape[: x.ndim - len(self.shape)]
        x = x.reshape(*lead, *sizes)
        if order != sorted(order):
            x = x.transpose(*range(len(lead)), *(len(lead) + i for i in order))
        return x.reshape(*lead, self.groups, self.units)

    def join(self, x: Any) -> Any:
        """Reshape an array (..., G, U) to (..., *shape)."""
        sizes, order = self._layout()
        lead = x.shape[:-2]
        x = x.reshape(*lead, *(sizes[i] for i in order))
        if order != sorted(order):
            back = np.argsort(order)
            x = x.transpose(*range(len(lead)), *(len(lead) + int(i) for i in back))
        return x.reshape(*lead, *self.shape)

    def of_groups(self, values: Any, reduce: Any = jnp.sum) -> Any:
        """Sum values of the examples (..., B) over each group; return shape (..., G)."""
        if self.each and len(self.digits) <= 1:
            return values
        sizes, known = self._radices()
        lead = values.shape[:-1]
        values = values.reshape(*lead, *sizes)
        missing = tuple(len(lead) + i for i, k in enumerate(known) if not k)
        return reduce(values, axis=missing).reshape(*lead, self.groups)

    def of_examples(self, values: Any) -> Any:
        """Broadcast values of the groups (..., G) to their examples (..., B)."""
        sizes, known = self._radices()
        lead = values.shape[:-1]
        values = values.reshape(*lead, *(s if k else 1 for s, k in zip(sizes, known, strict=True)))
        library = np if isinstance(values, np.ndarray) else jnp
        return library.broadcast_to(values, (*lead, *sizes)).reshape(*lead, self.batch_size)

    def _layout(self) -> tuple[list[int], list[int]]:
        """Return the shape split at the digits, and the order that moves them to the front."""
        sizes: list[int] = []
        places: dict[Digit, int] = {}
        for axis, size in enumerate(self.shape):
            left = size
            for d in sorted((d for d in self.digits if d.axis == axis), key=lambda d: -d.stride):
                sizes += [left // (d.size * d.stride), d.size]
                places[d] = len(sizes) - 1
                left = d.stride
            sizes.append(left)
        front = [places[d] for d in self.ordered]
        order = [*front, *(i for i in range(len(sizes)) if i not in front)]
        ones = {i for i, s in enumerate(sizes) if s == 1}
        # Moving axes of size one needs no transposition.
        kept = [i for i in range(len(sizes)) if i not in ones]
        renumbered = {i: n for n, i in enumerate(kept)}
        return [sizes[i] for i in kept], [renumbered[i] for i in order if i not in ones]

    def _radices(self) -> tuple[list[int], list[bool]]:
        """Return the sizes of all digits of an example's number, highest first, and known flags."""
        sizes, known, above = [], [], self.batch_size
        for d in self.ordered:
            sizes += [above // (d.weight * d.size), d.size]
            known += [False, True]
            above = d.weight
        return [*sizes, above], [*known, False]


def rows(shape: Iterable[int], digits: Digits, loops: int, batch_size: int) -> Rows:
    """Return the rows of a site inside `loops` loops, from the digits of one step's value."""
    placed = (
        d._replace(axis=-1 - d.axis if d.axis < 0 else d.axis + loops) for d in digits if d.size > 1
    )
    return Rows(tuple(shape), _distinct(placed), batch_size)


def _distinct(digits: Iterable[Digit]) -> Digits:
    """Return the digits without overlaps: keep one of any two that overlap."""
    kept: list[Digit] = []
    for d in sorted(digits, key=lambda d: (-d.size, d)):
        overlap = any(d.weight < k.weight * k.size and k.weight < d.weight * d.size for k in kept)
        same_place = any(
            k.axis == d.axis and d.stride < k.stride * k.size and k.stride < d.stride * d.size
            for k in kept
        )
        if not overlap and not same_place:
            kept.append(d)
    return frozenset(kept)
