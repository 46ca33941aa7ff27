"""Tables of the names in a recipe, and shared parts of their entries."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.grlu.networks.recipes import Size, Step


class Weights:
    """Source of random values from NumPy: compiling a sampler for each shape takes long."""

    def __init__(self, seed: int):
        self._generator = np.random.default_rng(seed)
        self.rngs = nnx.Rngs(seed)

    def normal(self, *shape: int, scale: float = 1.0, shift: float = 0.0) -> jax.Array:
        drawn = self._generator.standard_normal(shape) * scale + shift
        return jnp.asarray(drawn, jnp.float32)

    def matrix(self, fan_in: int, units: int) -> jax.Array:
        return self.normal(fan_in, units, scale=fan_in**-0.5)

    def __call__(self, key: Any, shape: tuple[int, ...], dtype: Any = None) -> jax.Array:
        """Sample initial weights, like the initializers of NNX."""
        del key
        fan_in = max(1, int(np.prod(shape[:-1])))
        return self.normal(*shape, scale=fan_in**-0.5).astype(dtype or jnp.float32)

    def integers(self, high: int, *shape: int) -> jax.Array:
        return jnp.asarray(self._generator.integers(high, size=shape), jnp.int32)


class Layer(nnx.Module):
    """Module of parameters or an NNX module, and a function of them and two values."""

    def __init__(
        self, fn: Callable[..., jax.Array], inner: nnx.Module | None = None, **arrays: Any
    ):
        self.fn = fn
        if inner is not None:
            self.inner = inner
        for name, array in arrays.items():
            setattr(self, name, nnx.Param(array))

    def __call__(self, a: jax.Array, b: jax.Array) -> jax.Array:
        return self.fn(self, a, b)


def wide(v: Any, like: jax.Array) -> jax.Array:
    """Return a parameter with leading axes of size one."""
    v = v[...]
    return v.reshape((1,) * (like.ndim - v.ndim) + v.shape)


# (size, variant, initial values) -> a module of two values
LAYERS: dict[str, Callable[[Size, int, Weights], Layer]] = {}
# (two values, variant) -> a value
FUNCTIONS: dict[str, Callable[[jax.Array, jax.Array, int], jax.Array]] = {}
# (step, size, initial values) -> a module of several values, and the number of its bodies
REGIONS: dict[str, Callable[[Step, Size, Weights], Any]] = {}
BODIES: dict[str, int] = {}
# (model, its output (B, T, W), batch) -> rewards (B,)
REWARDS: dict[str, Callable[[Any, jax.Array, Any], jax.Array]] = {}
# (rewards, model, batch) -> other rewards
CHANGES: dict[str, Callable[[jax.Array, Any, Any], jax.Array]] = {}

# Names that need the examples on the first axis.
BATCHED: set[str] = set()
# Names that make a network not smooth, rounded, or give it a custom derivative.
KINKED: set[str] = set()
ROUNDED: set[str] = set()
OWN_VJP: set[str] = set()
# Names that sample random numbers.
RANDOM: set[str] = set()
# Names with a `stop_gradient`, which noise must not pass.
STOPPED: set[str] = set()


def layer(*marks: set[str]) -> Callable[[Any], Any]:
    return _entry(LAYERS, marks)


def function(*marks: set[str]) -> Callable[[Any], Any]:
    return _entry(FUNCTIONS, marks)


def region(bodies: int, *marks: set[str]) -> Callable[[Any], Any]:
    def add(make: Any) -> Any:
        BODIES[make.__name__] = bodies
        return _entry(REGIONS, marks)(make)

    return add


def reward(*marks: set[str]) -> Callable[[Any], Any]:
    return _entry(REWARDS, marks)


def change(*marks: set[str]) -> Callable[[Any], Any]:
    return _entry(CHANGES, marks)


def _entry(table: dict[str, Any], marks: tuple[set[str], ...]) -> Callable[[Any], Any]:
    def add(make: Any) -> Any:
        table[make.__name__] = make
        for mark in marks:
            mark.add(make.__name__)
        return make

    return add
