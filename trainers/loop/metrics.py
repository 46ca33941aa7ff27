"""Means over examples, accumulated inside compiled loops."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from clu import metrics
from flax import struct


@struct.dataclass
class _GeometricMean(metrics.Average):
    """exp(mean(log value))."""

    @classmethod
    def from_model_output(cls, values: jax.Array, mask: Any = None, **_: Any) -> "_GeometricMean":
        return super().from_model_output(jnp.log(values), mask)

    def compute(self) -> Any:
        return jnp.exp(super().compute())


# Perplexity is exp of a mean: that of a text is the geometric mean over its parts.
_KINDS: dict[str, type[metrics.Average]] = {"perplexity": _GeometricMean}


def means(names: Iterable[str]) -> type[metrics.Collection]:
    """Return a collection of `clu.metrics` of means, geometric ones for perplexity."""
    kinds = {n: _KINDS.get(n, metrics.Average).from_output(n) for n in names}
    return metrics.Collection.create(**kinds)


def gather(
    collection: metrics.Collection, values: Mapping[str, jax.Array], mask: Any = None
) -> metrics.Collection:
    """Return the collection with a batch's values per example added, except those masked out."""
    given = dict(values) if mask is None else dict(values, mask=mask)
    return collection.merge(type(collection).single_from_model_output(**given))
