"""Functions of two values, without parameters."""

import jax
import jax.numpy as jnp
from flax import nnx

import grlu
from tests.grlu.networks.tables import BATCHED, KINKED, OWN_VJP, ROUNDED, STOPPED, function


@function()
def add(a: jax.Array, b: jax.Array, pick: int) -> jax.Array:
    return [a + b, a - b, a * b, a + jnp.tanh(b)][pick % 4]


@function()
def smooth(a: jax.Array, b: jax.Array, pick: int) -> jax.Array:
    return [
        jnp.tanh,
        nnx.softplus,
        nnx.gelu,
        nnx.silu,
        jnp.sin,
        lambda a: a * jax.nn.sigmoid(a),
        lambda a: a - jnp.exp(-jnp.square(a)),
        grlu.activation(lambda z: z / (1 + jnp.exp(-z))),
        lambda a: nnx.elu(a) + nnx.sigmoid(a),
    ][pick % 9](a)


@function(KINKED)
def kinked(a: jax.Array, b: jax.Array, pick: int) -> jax.Array:
    return [
        nnx.relu,
        lambda a: jnp.clip(a, -0.3, 0.3),
        lambda a: a - jnp.clip(a, -0.3, 0.3),
        jnp.abs,
        lambda a: jnp.where(a > 0.1, a, 0.2 * jnp.exp(a)),
        lambda a: jnp.maximum(a, b),
        lambda a: jnp.sort(a, axis=-1),
        lambda a: a * (a > b),
        lambda a: jax.lax.cummax(a, axis=a.ndim - 2),
        lambda a: a.max(-1, keepdims=True) + b,
    ][pick % 10](a)


@function()
def normalised(a: jax.Array, b: jax.Array, pick: int) -> jax.Array:
    return [
        lambda: nnx.softmax(a, axis=-1) * b.shape[-1],
        lambda: nnx.log_softmax(a, axis=-2),
        lambda: a - a.mean(-1, keepdims=True),
        lambda: a / jnp.sqrt(1 + jnp.square(a).sum(-2, keepdims=True)),
        lambda: jax.nn.logsumexp(a, axis=-1, keepdims=True) + b,
    ][pick % 5]()


@function()
def rearranged(a: jax.Array, b: jax.Array, pick: int) -> jax.Array:
    steps, width = a.shape[-2:]
    return [
        lambda: a[..., ::-1, :],
        lambda: jnp.roll(a, 1, axis=-1),
        lambda: jnp.cumsum(a, axis=-2),
        lambda: a.reshape(*a.shape[:-2], width, steps).swapaxes(-1, -2),
        lambda: jnp.pad(a, [(0, 0)] * (a.ndim - 2) + [(1, 0), (0, 0)])[..., :-1, :],
        lambda: jnp.concatenate([a[..., :1], b[..., 1:]], axis=-1),
        lambda: jnp.concatenate([a, b], axis=-2)[..., ::2, :],
        lambda: a[..., jnp.arange(steps) // 2, :],
        lambda: a.at[..., 0].add(b[..., -1]),
        lambda: jax.lax.dynamic_update_slice(a, b[..., :1, :] ** 2 / 2, (0,) * a.ndim),
        lambda: nnx.avg_pool(a[..., None, :, :], (steps,), (1,), "SAME")[..., 0, :, :],
        lambda: jax.lax.optimization_barrier((a, b))[0] - b / 2,
    ][pick % 12]()


@function(KINKED)
def looked_up(a: jax.Array, b: jax.Array, pick: int) -> jax.Array:
    """Gather by indices that other values choose."""
    index = (
        jnp.argsort(b, axis=-1)
        if pick % 2
        else (jnp.abs(b) + 0.017).astype(jnp.int32) % a.shape[-1]
    )
    return jnp.take_along_axis(a, index, axis=-1)


@function(STOPPED)
def stopped(a: jax.Array, b: jax.Array, pick: int) -> jax.Array:
    stop = jax.lax.stop_gradient
    return [
        lambda: a + stop(b),
        lambda: stop(a) * b,
        lambda: a - stop(a) + jnp.tanh(stop(a)),
        lambda: stop(jnp.tanh(a)) + a * stop(b),
    ][pick % 4]()


@function(KINKED)
def straight_through(a: jax.Array, b: jax.Array, pick: int) -> jax.Array:
    return a + jax.lax.stop_gradient(jnp.round(3.7 * a + 0.12) / 4 - a)


@function(ROUNDED)
def cast(a: jax.Array, b: jax.Array, pick: int) -> jax.Array:
    low = [jnp.bfloat16, jnp.float16][pick % 2]
    return [
        lambda: a.astype(low).astype(jnp.float32),
        lambda: (jnp.tanh(a.astype(low)) * b.astype(low)).astype(jnp.float32),
    ][pick // 2 % 2]()


@function()
def spectrum(a: jax.Array, b: jax.Array, pick: int) -> jax.Array:
    z = jnp.fft.rfft(a, axis=-1)
    return jnp.fft.irfft(z * jnp.conj(z) / 4 + z, n=a.shape[-1], axis=-1)


@function(BATCHED)
def among_examples(a: jax.Array, b: jax.Array, pick: int) -> jax.Array:
    """Let each example see others."""
    return [
        lambda: a - a.mean(0, keepdims=True),
        lambda: a + jnp.roll(b, 1, axis=0),
        lambda: jnp.cumsum(a, axis=0),
        lambda: jnp.broadcast_to(jnp.tanh(a).mean(0, keepdims=True), a.shape) + b,
        lambda: a[::-1],
    ][pick % 5]()


@function(OWN_VJP)
def own_vjp(a: jax.Array, b: jax.Array, pick: int) -> jax.Array:
    """Reverse or bend the gradient and leave the value alone."""

    @jax.custom_vjp
    def fn(a: jax.Array) -> jax.Array:
        return a * 1

    def forward(a: jax.Array) -> tuple[jax.Array, None]:
        return a * 1, None

    def backward(_: None, g: jax.Array) -> tuple[jax.Array]:
        return (-g if pick % 2 else jnp.tanh(g),)

    fn.defvjp(forward, backward)
    return fn(a)


@function()
def watched(a: jax.Array, b: jax.Array, pick: int) -> jax.Array:
    """Pass a value to the host."""
    jax.debug.callback(lambda *_: None, a, b)
    return a + 0.5
