"""Layers: functions of the values' size, a variant and initial values."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import grlu
from tests.grlu.networks.recipes import Size
from tests.grlu.networks.tables import (
    BATCHED,
    KINKED,
    OWN_VJP,
    RANDOM,
    ROUNDED,
    Layer,
    Weights,
    layer,
    wide,
)


def _linear(
    fan_in: int, units: int, w: Weights, bias: bool = True, dtype: Any = None
) -> nnx.Linear:
    return nnx.Linear(
        fan_in, units, use_bias=bias, dtype=dtype, kernel_init=w, bias_init=w, rngs=w.rngs
    )


@layer()
def dense(size: Size, pick: int, w: Weights) -> Layer:
    return Layer(lambda m, a, b: m.inner(a), _linear(size.width, size.width, w, pick % 3 != 2))


@layer()
def dense_over_steps(size: Size, pick: int, w: Weights) -> Layer:
    """Merge steps and features for a dense layer, and split them again."""
    units = size.steps * size.width

    def fn(m: Layer, a: jax.Array, b: jax.Array) -> jax.Array:
        return m.inner(a.reshape(*a.shape[:-2], units)).reshape(a.shape)

    return Layer(fn, _linear(units, units, w))


@layer()
def dense_on_merged_examples(size: Size, pick: int, w: Weights) -> Layer:
    def fn(m: Layer, a: jax.Array, b: jax.Array) -> jax.Array:
        return m.inner(a.reshape(-1, size.width)).reshape(a.shape)

    return Layer(fn, _linear(size.width, size.width, w))


@layer()
def dense_merging_after(size: Size, pick: int, w: Weights) -> Layer:
    """Reshape the pre-activation so that examples and units share an axis."""

    def fn(m: Layer, a: jax.Array, b: jax.Array) -> jax.Array:
        h = m.inner(a).reshape(-1)
        return (jnp.tanh(h) + (h if pick % 2 else 0)).reshape(a.shape)

    return Layer(fn, _linear(size.width, size.width, w))


@layer()
def gated(size: Size, pick: int, w: Weights) -> Layer:
    """Split a dense layer's output into a value and its gate."""

    def fn(m: Layer, a: jax.Array, b: jax.Array) -> jax.Array:
        value, gate = jnp.split(m.inner(a), 2, axis=-1)
        return value * (nnx.sigmoid(gate) if pick % 2 else nnx.gelu(gate))

    return Layer(fn, _linear(size.width, 2 * size.width, w))


@layer()
def dense_of_both(size: Size, pick: int, w: Weights) -> Layer:
    def fn(m: Layer, a: jax.Array, b: jax.Array) -> jax.Array:
        return m.inner(jnp.concatenate([a, b], axis=-1))

    return Layer(fn, _linear(2 * size.width, size.width, w))


@layer(ROUNDED)
def dense_in_bfloat16(size: Size, pick: int, w: Weights) -> Layer:
    inner = _linear(size.width, size.width, w, dtype=jnp.bfloat16)
    return Layer(lambda m, a, b: m.inner(a).astype(jnp.float32), inner)


@layer()
def einsum(size: Size, pick: int, w: Weights) -> Layer:
    along = [("...tw,wv->...tv", size.width), ("...tw,ts->...sw", size.steps)][pick % 2]
    kernel = w.matrix(along[1], along[1])
    return Layer(lambda m, a, b: jnp.einsum(along[0], a, m.w[...]), w=kernel)


@layer()
def product_of_matrices(size: Size, pick: int, w: Weights) -> Layer:
    def fn(m: Layer, a: jax.Array, b: jax.Array) -> jax.Array:
        return a @ (m.u[...] @ m.v[...])

    return Layer(fn, u=w.matrix(size.width, 3), v=w.matrix(3, size.width))


@layer()
def normalised_matrix(size: Size, pick: int, w: Weights) -> Layer:
    def fn(m: Layer, a: jax.Array, b: jax.Array) -> jax.Array:
        kernel = m.w[...] / jnp.sqrt(1 + jnp.sum(jnp.square(m.w[...]), axis=0, keepdims=True))
        return a @ kernel * wide(m.gain, a)

    return Layer(fn, w=w.matrix(size.width, size.width), gain=w.normal(size.width, shift=1.0))


@layer()
def scale(size: Size, pick: int, w: Weights) -> Layer:
    def fn(m: Layer, a: jax.Array, b: jax.Array) -> jax.Array:
        v = wide(m.v, a)
        return [a * v, a * jnp.exp(v), a / (1 + v * v), a * nnx.sigmoid(v) + b * (1 - v)][pick % 4]

    return Layer(fn, v=w.normal(size.width))


@layer()
def offset(size: Size, pick: int, w: Weights) -> Layer:
    """Add a parameter, or subtract from it, or place it by an index."""

    def fn(m: Layer, a: jax.Array, b: jax.Array) -> jax.Array:
        v = m.v[...]
        if pick % 4 == 2:
            v = v[::-1, jnp.arange(size.width) // 2]
        if pick % 4 == 3:
            v = jnp.zeros_like(v).at[0].add(v.sum(0))
        v = wide(v, a)
        return v - a if pick % 4 == 1 else a + v

    return Layer(fn, v=w.normal(size.steps, size.width))


@layer(KINKED)
def threshold(size: Size, pick: int, w: Weights) -> Layer:
    def fn(m: Layer, a: jax.Array, b: jax.Array) -> jax.Array:
        v = wide(m.v, a)
        return [
            jnp.maximum(a, v),
            jnp.where(a > v, a, b),
            jnp.clip(a, -jnp.square(v), 1 + jnp.square(v)),
            jnp.where(a > 0, a, a * v),
        ][pick % 4]

    return Layer(fn, v=w.normal(size.width))


@layer(KINKED)
def embed(size: Size, pick: int, w: Weights) -> Layer:
    """Add the rows of a table that the first feature chooses, perhaps as a tied readout."""

    def fn(m: Layer, a: jax.Array, b: jax.Array) -> jax.Array:
        tokens = (jnp.abs(a[..., 0]) * 2.9 + 0.017).astype(jnp.int32) % 5
        h = a + m.inner(tokens)
        if pick % 2 == 0:
            return h
        logits = h @ m.inner.embedding[...].T
        return nnx.softmax(logits) @ m.inner.embedding[...]

    return Layer(fn, nnx.Embed(5, size.width, embedding_init=w, rngs=w.rngs))


@layer()
def tied(size: Size, pick: int, w: Weights) -> Layer:
    def fn(m: Layer, a: jax.Array, b: jax.Array) -> jax.Array:
        hidden = a @ m.w[...]
        return (jnp.tanh(hidden) if pick % 2 else hidden) @ m.w[...].T

    return Layer(fn, w=w.matrix(size.width, 3))


@layer()
def norm(size: Size, pick: int, w: Weights) -> Layer:
    """Normalise by layer, root mean square or group."""
    made: Any = [
        lambda: nnx.LayerNorm(size.width, epsilon=0.1, scale_init=w, bias_init=w, rngs=w.rngs),
        lambda: nnx.RMSNorm(size.width, epsilon=0.1, scale_init=w, rngs=w.rngs),
        lambda: nnx.GroupNorm(
            size.width, num_groups=1, epsilon=0.1, scale_init=w, bias_init=w, rngs=w.rngs
        ),
    ][pick % (3 if size.examples else 2)]()
    return Layer(lambda m, a, b: m.inner(a), made)


@layer(BATCHED)
def batch_norm(size: Size, pick: int, w: Weights) -> Layer:
    """Normalise by the batch, or by running statistics."""
    made = nnx.BatchNorm(
        size.width,
        use_running_average=bool(pick % 2),
        epsilon=0.1,
        scale_init=w,
        bias_init=w,
        rngs=w.rngs,
    )
    return Layer(lambda m, a, b: m.inner(a), made)


@layer()
def attention(size: Size, pick: int, w: Weights) -> Layer:
    made = nnx.MultiHeadAttention(
        1, size.width, kernel_init=w, bias_init=w, decode=False, rngs=w.rngs
    )
    return Layer(lambda m, a, b: m.inner(a, b) if pick % 2 else m.inner(a), made)


@layer()
def raw_attention(size: Size, pick: int, w: Weights) -> Layer:
    def fn(m: Layer, a: jax.Array, b: jax.Array) -> jax.Array:
        scores = jnp.einsum("...tw,...sw->...ts", a @ m.q[...], b)
        if pick % 2:
            seen = jnp.tril(jnp.ones((size.steps, size.steps), bool))
            scores = jnp.where(wide(seen, scores), scores, -1e9)
        return nnx.softmax(scores) @ b

    return Layer(fn, q=w.matrix(size.width, size.width))


@layer()
def convolution(size: Size, pick: int, w: Weights) -> Layer:
    """Convolve over the steps, or over steps and features as a map of one channel."""
    if pick % 3 == 0:
        made = nnx.Conv(size.width, size.width, (3,), kernel_init=w, bias_init=w, rngs=w.rngs)
        return Layer(lambda m, a, b: m.inner(a), made)
    channels = 2
    made = nnx.Conv(1, channels, (2, 2), kernel_init=w, bias_init=w, rngs=w.rngs)

    def fn(m: Layer, a: jax.Array, b: jax.Array) -> jax.Array:
        h = m.inner(a[..., None])
        return h.mean(-1) if pick % 3 == 1 else h[..., 0] * nnx.sigmoid(h[..., 1])

    return Layer(fn, made)


@layer()
def rotation(size: Size, pick: int, w: Weights) -> Layer:
    """Turn complex numbers that are real before and after."""

    def fn(m: Layer, a: jax.Array, b: jax.Array) -> jax.Array:
        z = jax.lax.complex(a, b)
        if pick % 2:
            z = jnp.fft.fft(z, axis=-1)
        z = z * jax.lax.complex(jnp.cos(wide(m.v, a)), jnp.sin(wide(m.v, a)))
        return (jnp.fft.ifft(z, axis=-1) if pick % 2 else z).real

    return Layer(fn, v=w.normal(size.width))


@layer()
def recurrence(size: Size, pick: int, w: Weights) -> Layer:
    """Run a diagonal linear recurrence by an associative scan."""

    def fn(m: Layer, a: jax.Array, b: jax.Array) -> jax.Array:
        decay = jnp.broadcast_to(wide(nnx.sigmoid(m.v[...]), a), a.shape)

        def join(left: Any, right: Any) -> Any:
            return left[0] * right[0], right[0] * left[1] + right[1]

        return jax.lax.associative_scan(join, (decay, a), axis=a.ndim - 2)[1]

    return Layer(fn, v=w.normal(size.width))


@layer(RANDOM)
def dropout(size: Size, pick: int, w: Weights) -> Layer:
    return Layer(lambda m, a, b: m.inner(a), nnx.Dropout(0.3, rngs=w.rngs))


@layer(KINKED, RANDOM)
def top_k(size: Size, pick: int, w: Weights) -> Layer:
    made = grlu.TopK(0.5, "gumbel" if pick % 2 else "hard", rngs=w.rngs)
    return Layer(lambda m, a, b: m.inner(a), made)


@layer(KINKED)
def chosen(size: Size, pick: int, w: Weights) -> Layer:
    """Compute with some units alone, chosen by the data, and with their rows of a kernel."""
    k = max(1, size.width // 2)

    def fn(m: Layer, a: jax.Array, b: jax.Array) -> jax.Array:
        z = a @ m.w[...]
        index = jax.lax.top_k(jax.lax.stop_gradient(z) if pick % 2 else b, k)[1]
        values = jnp.take_along_axis(z, index, axis=-1)
        values = jnp.tanh(values) if pick % 3 else values
        if pick % 5 < 3:
            return jnp.einsum("...k,...ko->...o", values, m.u[...][index]) + wide(m.v[...], a)
        kernel = m.u[...][index[..., :, None], index[..., None, :]]
        found = jnp.einsum("...k,...ko->...o", values, kernel) + m.v[...][index]
        return jnp.einsum("...k,...kw->...w", found, jax.nn.one_hot(index, size.width))

    square = (size.width, size.width)
    return Layer(fn, w=w.matrix(*square), u=w.matrix(*square), v=w.normal(size.width))


@jax.custom_vjp
def _quantised(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.round(3.7 * (x @ kernel) + 0.12) / 4


def _quantised_fwd(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
    return _quantised(x, kernel), (x, kernel)


def _quantised_bwd(saved: Any, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    return g @ kernel.T, jnp.einsum("...i,...j->ij", x, g)


_quantised.defvjp(_quantised_fwd, _quantised_bwd)


@jax.custom_jvp
def _halved(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.sin(x @ kernel)


@_halved.defjvp
def _halved_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (x, kernel), (dx, dkernel) = primals, tangents
    return _halved(x, kernel), 0.5 * (dx @ kernel + x @ dkernel)


@layer(KINKED, OWN_VJP)
def quantised(size: Size, pick: int, w: Weights) -> Layer:
    """Round a product whose own gradient passes straight through."""
    return Layer(lambda m, a, b: _quantised(a, m.w[...]), w=w.matrix(size.width, size.width))


@layer(KINKED)
def own_jvp(size: Size, pick: int, w: Weights) -> Layer:
    """Halve a product's derivative by a custom rule, invisible to differences of rewards."""
    return Layer(lambda m, a, b: _halved(a, m.w[...]), w=w.matrix(size.width, size.width))


@layer(RANDOM)
def noisy(size: Size, pick: int, w: Weights) -> Layer:
    """Sample from a normal distribution, as a variational model does."""

    def fn(m: Layer, a: jax.Array, b: jax.Array) -> jax.Array:
        deviation = jnp.exp(wide(m.v, a)) if pick % 2 else nnx.softplus(b)
        return a + deviation * jax.random.normal(m.rngs.noise(), a.shape)

    made = Layer(fn, v=w.normal(size.width, shift=-1.0))
    made.rngs = nnx.Rngs(noise=pick)
    return made


@layer()
def cell(size: Size, pick: int, w: Weights) -> Layer:
    """Run a recurrent layer of NNX."""
    kind = [nnx.SimpleCell, nnx.GRUCell, nnx.OptimizedLSTMCell][pick % 3]
    made = kind(size.width, size.width, kernel_init=w, recurrent_kernel_init=w, rngs=w.rngs)
    rnn = nnx.RNN(made, reverse=pick % 5 == 4, keep_order=True, rngs=w.rngs)
    return Layer(lambda m, a, b: m.inner(a), rnn)


@layer()
def implicit(size: Size, pick: int, w: Weights) -> Layer:
    """Solve linear equations."""

    def fn(m: Layer, a: jax.Array, b: jax.Array) -> jax.Array:
        kernel = 3 * jnp.eye(size.width) + m.w[...]
        if pick % 2:
            kernel = kernel + jnp.tanh(b).mean() / 2
        return jnp.linalg.solve(kernel, a.reshape(-1, size.width).T).T.reshape(a.shape)

    return Layer(fn, w=w.matrix(size.width, size.width))


@layer()
def mixture(size: Size, pick: int, w: Weights) -> Layer:
    def fn(m: Layer, a: jax.Array, b: jax.Array) -> jax.Array:
        share = nnx.softmax(m.v[...])
        return a * share[0] + b * share[1]

    return Layer(fn, v=w.normal(2))
