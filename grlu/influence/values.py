"""Influence of a value on the rewards, and its changes as axes move."""

import functools
from collections.abc import Iterable
from typing import NamedTuple

from grlu.influence.rows import Digits, common, on_axes


class Influence(NamedTuple):
    """Influence of a value on the rewards; None stands for no influence.

    Attributes:
        digits: digits of the example that an element belongs to.
        through: True if some of the influence passes through another site.
        affine: True if the influence is affine with constant factors, so that the credit is known.
    """

    digits: Digits
    through: bool = False
    affine: bool = False


Maybe = Influence | None


def meet(values: Iterable[Maybe]) -> Maybe:
    """Return the influence of a value that is read in several places."""
    alive = [v for v in values if v is not None]
    if not alive:
        return None
    return Influence(
        functools.reduce(common, (v.digits for v in alive)),
        any(v.through for v in alive),
        all(v.affine for v in alive),
    )


def anywhere(value: Maybe) -> Maybe:
    """Return the influence of an input that may reach any element: only loop steps are kept."""
    return None if value is None else Influence(steps(value.digits), value.through)


def steps(digits: Digits) -> Digits:
    """Return the digits on loop axes."""
    return frozenset(d for d in digits if d.axis < 0)


def bent(value: Maybe) -> Maybe:
    """Return the influence through a nonlinear operation."""
    return None if value is None else value._replace(affine=False)


def mapped(value: Maybe, axes: dict[int, int]) -> Maybe:
    """Return the influence of an input, given the map from the output's axes to the input's."""
    return None if value is None else value._replace(digits=on_axes(value.digits, axes))


def keep(value: Maybe, axes: Iterable[int]) -> Maybe:
    """Return the influence of an input that shares only these axes with the output."""
    return mapped(value, {a: a for a in axes})
