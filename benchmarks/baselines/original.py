"""The published algorithm as published: one compiled call per example, inputs tiled N times.

Written from the published description alone, in plain `jax.numpy`, as the baseline of the speed
table: it shares no code with the learning rules that are compared with it. It is what a
competent user would write: parameters stay on the device and are donated, the key is split inside
the call, and no call waits for the previous one.

Each of the N copies of an example goes through every layer twice, with its noise and with the noise
negated: layer norm of the input, `x̂ W + b`, ReLU or top-k winner-take-all, and the noise on top of
the result. The change of a layer is the mean over the copies of `x̂ ⊗ noise · (r₊ - r₋)/2`.
"""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

# One (weights (fan-in, units), biases (units,)) per layer.
Params = list[tuple[jax.Array, jax.Array]]


def init(key: jax.Array, sizes: Sequence[int]) -> Params:
    """Return He-normal weights and zero biases for layers of the given sizes."""
    pairs = list(itertools.pairwise(sizes))
    keys = jax.random.split(key, len(pairs))
    return [
        (jax.random.normal(k, pair) * jnp.sqrt(2 / pair[0]), jnp.zeros(pair[1]))
        for k, pair in zip(keys, pairs, strict=True)
    ]


def normalise(x: jax.Array) -> jax.Array:
    """Apply a parameter-free layer norm over the last axis (population standard deviation)."""
    return (x - jnp.mean(x, -1, keepdims=True)) / (jnp.std(x, -1, keepdims=True) + 1e-8)


def forward(
    params: Params,
    x: jax.Array,
    noises: Sequence[jax.Array],
    gumbels: Sequence[jax.Array],
    winners: int | None,
) -> tuple[jax.Array, list[jax.Array]]:
    """Return logits (N, classes) of N perturbed copies `x` (N, features), and each layer's input.

    Args:
        params: weights and biases.
        x: the copies.
        noises: noise (N, units) of each layer, added after the activation.
        gumbels: Gumbel noise (N, units) of each hidden layer, for the choice of winners.
        winners: number of winning units per hidden layer, or None for ReLU.
    """
    inputs = []
    for i, (weights, biases) in enumerate(params):
        inputs.append(normalise(x))
        x = inputs[-1] @ weights + biases[None]
        if i < len(params) - 1:
            if winners is None:
                x = jax.nn.relu(x)
            else:
                scores = x + gumbels[i]
                threshold = jax.lax.top_k(scores, winners)[0][:, -1:]
                x = x * (scores >= threshold)
        x = x + noises[i]
    return x, inputs


def update(
    params: Params,
    image: jax.Array,
    label: jax.Array,
    noises: Sequence[jax.Array],
    gumbels: Sequence[jax.Array],
    learning_rate: jax.Array | float,
    winners: int | None,
) -> tuple[Params, jax.Array]:
    """Return the parameters after one image (features,), and the mean reward of its copies."""
    samples = noises[0].shape[0]
    x = jnp.tile(image, (samples, 1))
    rewards, inputs = [], []
    for sign in (1, -1):
        logits, seen = forward(params, x, [sign * n for n in noises], gumbels, winners)
        rewards.append(jnp.log(jax.nn.softmax(logits)[:, label] + 1e-10))
        inputs.append(seen)
    half = (rewards[0] - rewards[1])[:, None] / 2
    changed = []
    for (weights, biases), noise, plus, minus in zip(params, noises, *inputs, strict=True):
        change = noise * (half * (learning_rate / samples))
        weights = weights + ((plus + minus) / 2).T @ change
        changed.append((weights, biases + jnp.sum(change, axis=0)))
    return changed, jnp.mean(rewards[0] + rewards[1]) / 2


@functools.partial(jax.jit, static_argnames=("samples", "winners"), donate_argnums=0)
def step(
    params: Params,
    key: jax.Array,
    image: jax.Array,
    label: jax.Array,
    learning_rate: jax.Array | float,
    sigma: jax.Array | float,
    *,
    samples: int,
    winners: int | None,
) -> tuple[Params, jax.Array, jax.Array]:
    """Learn from one example; return parameters, next key and reward."""
    key, *keys = jax.random.split(key, 2 * len(params))
    shapes = [(samples, biases.shape[0]) for _, biases in params]
    noises = [sigma * jax.random.normal(k, s) for k, s in zip(keys[::2], shapes, strict=True)]
    gumbels = (
        []
        if winners is None
        else [jax.random.gumbel(k, s) for k, s in zip(keys[1::2], shapes[:-1], strict=True)]
    )
    params, reward = update(params, image, label, noises, gumbels, learning_rate, winners)
    return params, key, reward


@functools.partial(jax.jit, donate_argnums=0)
def backprop_step(
    params: Params, image: jax.Array, label: jax.Array, learning_rate: jax.Array | float
) -> tuple[Params, jax.Array]:
    """Take an exact gradient step on one example, with ReLU; also return the reward."""

    def reward(params: Params) -> jax.Array:
        still = [jnp.zeros((1, biases.shape[0])) for _, biases in params]
        logits, _ = forward(params, image[None], still, [], None)
        return jax.nn.log_softmax(logits)[0, label]

    value, ascent = jax.value_and_grad(reward)(params)
    return jax.tree.map(lambda p, a: p + learning_rate * a, params, ascent), value


def train(
    params: Params,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    key: jax.Array,
    learning_rate: float,
    sigma: float,
    samples: int,
    winners: int | None,
) -> Params:
    """Learn from every example in turn, one call each; wait for the last alone."""
    for image, label in zip(images, labels, strict=True):
        params, key, _ = step(
            params, key, image, label, learning_rate, sigma, samples=samples, winners=winners
        )
    return jax.block_until_ready(params)


def train_by_backprop(
    params: Params, images: np.ndarray, labels: np.ndarray, *, learning_rate: float
) -> Params:
    """Train as `train` does, with the exact gradient."""
    for image, label in zip(images, labels, strict=True):
        params, _ = backprop_step(params, image, label, learning_rate)
    return jax.block_until_ready(params)
