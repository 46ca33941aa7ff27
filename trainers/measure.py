"""Means over examples, accumulated inside compiled loops."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
from clu import metrics


def means(names: Iterable[str]) -> type[metrics.Collection]:
    """A collection of `clu.metrics` with the mean of each value."""
    return metrics.Collection.create(**{n: metrics.Average.from_output(n) for n in names})


def gather(
    collection: metrics.Collection, values: Mapping[str, jax.Array], mask: Any = None
) -> metrics.Collection:
    """The collection with one batch's values per example added; those masked out don't count."""
    given = dict(values) if mask is None else dict(values, mask=mask)
    return collection.merge(type(collection).single_from_model_output(**given))
