"""Conversion between a state (any pytree) and its form on disk: a flat dict of arrays, and a table.

The dict's keys are the leaves' paths, such as `.params['hidden']['kernel'].value`; a typed PRNG
key becomes its data, a Python number a 0-d array. The table holds the shape and dtype of every
leaf, so that a mismatch of structure can be distinguished from a damaged checkpoint.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Table = dict[str, list[Any]]
"""Path -> [shape, dtype]."""

RETIRED = frozenset({".fault", ".rest['fault'].value"})
"""Paths of leaves that older versions saved and this one ignores."""


def by_path(state: Any) -> dict[str, Any]:
    """Return the leaves of `state` by path, in order."""
    return {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]
    }


def table(state: Any) -> Table:
    """Return the table of `state`, which may be abstract."""
    return {path: [list(np.shape(leaf)), _dtype(leaf)] for path, leaf in by_path(state).items()}


def pack(state: Any) -> dict[str, Any]:
    """Return the arrays to write, without empty ones, which Orbax rejects; the table keeps them."""
    return {path: _plain(leaf) for path, leaf in by_path(state).items() if np.size(leaf) > 0}


def targets(like: Any, found: Table) -> dict[str, Any]:
    """Return restore targets for Orbax: arrays on the devices of the leaves in `like`, or in numpy.

    Leaves without devices are read as numpy arrays, so that the restored array is uncommitted and
    can be combined with any other. Orbax reads all leaves or none, so it also reads retired leaves
    in `found`.
    """
    retired = {path: np.empty(*found[path]) for path in RETIRED & found.keys()}
    wanted = {path: _target(leaf) for path, leaf in by_path(like).items() if np.size(leaf) > 0}
    return retired | wanted


def unpack(like: Any, arrays: Mapping[str, Any]) -> Any:
    """Return a state like `like` (structure, dtypes, devices) with the values of `arrays`."""
    leaves = [_restored(leaf, arrays.get(path)) for path, leaf in by_path(like).items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def difference(expected: Table, found: Table) -> str | None:
    """Describe the first leaf in which two tables differ; return None if they agree."""
    for path, (shape, dtype) in expected.items():
        if path not in found:
            return f"{path}, of shape {tuple(shape)}, is missing in the checkpoint"
        if found[path] != [shape, dtype]:
            return (
                f"{path} is {found[path][1]} of shape {tuple(found[path][0])} in the checkpoint "
                f"and {dtype} of shape {tuple(shape)} by the config"
            )
    for path, (shape, _) in found.items():
        if path not in expected and path not in RETIRED:
            return f"{path}, of shape {tuple(shape)}, is in the checkpoint but not in the config"
    return None


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _number(leaf: Any) -> type | None:
    """Return int, float or bool for a Python number or its weakly typed JAX array, else None."""
    if isinstance(leaf, bool | int | float) and not isinstance(leaf, np.generic):
        return type(leaf)
    if getattr(leaf, "weak_type", False) and leaf.shape == ():
        return next((kind for kind in (int, float) if leaf.dtype == jnp.result_type(kind)), None)
    return None


def _dtype(leaf: Any) -> str:
    number = _number(leaf)
    return number.__name__ if number else str(leaf.dtype)


def _plain(leaf: Any) -> Any:
    if _is_key(leaf):
        return jax.random.key_data(leaf)
    return leaf if isinstance(leaf, jax.Array) and not _number(leaf) else np.asarray(leaf)


def _target(leaf: Any) -> Any:
    if _is_key(leaf):
        data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
        devices = _devices(leaf)
        if isinstance(devices, jax.sharding.NamedSharding):  # Key data has one more axis.
            return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=devices)
        return np.empty(data.shape, data.dtype)
    if number := _number(leaf):
        return np.empty((), number)
    devices = _devices(leaf)
    if devices is None:
        return np.empty(leaf.shape, leaf.dtype)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=devices)


def _key(like: Any, data: jax.Array) -> jax.Array:
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(jnp.empty((), like.dtype)))


def _devices(leaf: Any) -> jax.sharding.Sharding | None:
    """Return the sharding to which `leaf` is committed, or None."""
    if isinstance(leaf, jax.Array) and not leaf.committed:
        return None
    return getattr(leaf, "sharding", None)


def _restored(like: Any, array: Any) -> Any:
    if array is None:  # no elements
        array = np.empty(like.shape, like.dtype)
    if isinstance(like, np.ndarray):
        return array
    if isinstance(like, np.generic):
        return like.dtype.type(array)
    if isinstance(array, jax.Array):  # read directly onto its devices
        return _key(like, array) if _is_key(like) else array
    if number := _number(like):
        value = number(array)
        if isinstance(like, number):
            return value
        array = jnp.asarray(value)
    elif _is_key(like):
        array = _key(like, jnp.array(array))
    else:
        array = jnp.array(array)
    devices = _devices(like)
    return array if devices is None else jax.device_put(array, devices)
