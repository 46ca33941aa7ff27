"""Soundness of tracing, on constructs that once gave a wrong network or a wrong gradient.

Each test names a construct. Exact credit must equal backprop, traced rewards the model's, and
perturbation must converge to the gradient.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import grlu
import models
from grlu.network import trace
from grlu.rules.rule import pure_objective

B = 6

# Enough directions to cover every unit of these networks, over all examples together.
ORTHOGONAL = grlu.NodePerturbation(samples=1024, sigma=0.01, noise="orthogonal")


class Net(nnx.Module):
    """Model of three dense layers, 4 -> 8 -> 8 -> 5, joined by a function of model and input."""

    def __init__(self, forward: Callable[["Net", jax.Array], jax.Array], dtype: Any = None):
        rngs = nnx.Rngs(0)
        self.a = nnx.Linear(4, 8, dtype=dtype, rngs=rngs)
        self.b = nnx.Linear(8, 8, dtype=dtype, rngs=rngs)
        self.c = nnx.Linear(8, 5, dtype=dtype, rngs=rngs)
        self.forward = forward

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.forward(self, x)


def plain(m: Net, x: jax.Array) -> jax.Array:
    return m.c(nnx.tanh(m.b(nnx.tanh(m.a(x)))))


@pytest.fixture
def batch() -> dict[str, jax.Array]:
    x = np.random.default_rng(1).standard_normal((B, 4), np.float32)
    return {"x": jnp.asarray(x), "y": jnp.asarray(np.arange(B) % 5)}


@pytest.fixture
def steps() -> dict[str, jax.Array]:
    """Return sequences of 8 steps with 3 features."""
    x = np.random.default_rng(1).standard_normal((4, 8, 3), np.float32)
    return {"x": jnp.asarray(x), "y": jnp.arange(4)}


def log_likelihood(model: Any, batch: dict[str, jax.Array]) -> jax.Array:
    logits = nnx.log_softmax(model(batch["x"]))
    return jnp.take_along_axis(logits, batch["y"][:, None], axis=1)[:, 0]


def own_and_traced(model: nnx.Module, reward_fn: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
    """Return the rewards of the model itself and of its traced network."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    objective = pure_objective(graphdef, reward_fn)

    @jax.jit
    def both(params: Any, rest: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        network = trace(objective, params, rest, batch)
        return objective(params, rest, batch)[0], network.rewards(params, rest, batch)

    return both(params, rest, batch)


def assert_sound(model: nnx.Module, reward_fn: Any, batch: Any, tolerance: float = 1e-5) -> None:
    """Check that the traced network equals the model and its exact credit the gradient."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    objective = pure_objective(graphdef, reward_fn)

    @jax.jit
    def found(params: Any, rest: Any, batch: Any) -> tuple[Any, ...]:
        network, key = trace(objective, params, rest, batch), jax.random.key(2)
        rewards = objective(params, rest, batch)[0], network.rewards(params, rest, batch)
        rules = grlu.ExactCredit(), grlu.Backprop()
        return *rewards, [rule.estimate(objective, params, rest, batch, key)[2] for rule in rules]

    own, traced, gradients = found(params, rest, batch)
    np.testing.assert_allclose(traced, own, rtol=tolerance, atol=tolerance)
    local, exact = (
        np.concatenate([np.ravel(g).astype(np.float64) for g in jax.tree.leaves(gradient)])
        for gradient in gradients
    )
    sizes = np.linalg.norm(local), np.linalg.norm(exact)
    assert local @ exact / (sizes[0] * sizes[1]) == pytest.approx(1, abs=tolerance)
    assert sizes[0] / sizes[1] == pytest.approx(1, abs=tolerance)


def assert_finds_the_gradient(
    model: nnx.Module,
    reward_fn: Any,
    batch: Any,
    rule: grlu.Rule = ORTHOGONAL,
    cosine: float = 0.99,
) -> Any:
    """Check that a rule finds the gradient; return the alignment."""
    found = grlu.alignment(rule, reward_fn, model, batch, jax.random.key(3))
    assert found.cosine > cosine, str(found)
    assert found.norm_ratio == pytest.approx(1, abs=0.05), str(found)
    return found


# Pre-activations that are read on both sides of a call's boundary.


def remat_residual(m: Net, x: jax.Array) -> jax.Array:
    h = m.a(x)
    f = nnx.remat(lambda layer, h: layer(nnx.tanh(h)))
    return m.c(f(m.b, h) + h)


def minus_its_clip(m: Net, x: jax.Array) -> jax.Array:
    h = m.a(x)
    return m.c(h - jnp.clip(h, -0.3, 0.3))


def plus_its_softplus(m: Net, x: jax.Array) -> jax.Array:
    h = m.a(x)
    return m.c(h + nnx.softplus(h))


def plus_its_checkpointed_sine(m: Net, x: jax.Array) -> jax.Array:
    h = m.a(x)
    return m.c(h + jax.checkpoint(jnp.sin)(h))


def given_twice_to_a_jitted_product(m: Net, x: jax.Array) -> jax.Array:
    h = m.a(x)
    return m.c(jax.jit(lambda u, v: jnp.tanh(u) * v)(h, h))


def returned_by_a_jitted_layer(m: Net, x: jax.Array) -> jax.Array:
    f = nnx.jit(lambda layer, x: (z := layer(x), nnx.relu(z)))
    z, h = f(m.a, x)
    return m.c(nnx.tanh(z) + m.b(h))


SHARED = [
    remat_residual,
    minus_its_clip,
    plus_its_softplus,
    plus_its_checkpointed_sine,
    given_twice_to_a_jitted_product,
    returned_by_a_jitted_layer,
]


@pytest.mark.parametrize("forward", SHARED)
def test_a_preactivation_may_be_read_inside_and_outside_a_call(forward, batch):
    assert_sound(Net(forward), log_likelihood, batch)


@pytest.mark.parametrize("forward", SHARED)
def test_evolution_moves_a_preactivation_read_inside_and_outside_a_call(
    forward, batch, low_rank_noise
):
    low = low_rank_noise(Net(forward), log_likelihood, batch)
    assert {"a.kernel", "c.kernel"} <= low


class PreActivationResidual(nnx.Module):
    """Model of pre-activation convolutions, with every block rematerialised."""

    def __init__(self, rngs: nnx.Rngs):
        self.stem = nnx.Conv(1, 3, (3, 3), rngs=rngs)
        self.blocks = nnx.List([nnx.Conv(3, 3, (3, 3), rngs=rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(3, rngs=rngs)
        self.head = nnx.Linear(3, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.stem(x.reshape(x.shape[0], 2, 2, 1))
        block = nnx.remat(lambda conv, h: conv(nnx.tanh(h)))
        for conv in self.blocks:
            h = h + block(conv, h)
        return self.head(nnx.tanh(self.norm(h)).mean((1, 2)))


def test_preactivation_residuals_under_remat_are_sound(batch):
    assert_sound(PreActivationResidual(nnx.Rngs(0)), log_likelihood, batch)


def test_evolution_moves_preactivation_residuals_under_remat(batch, low_rank_noise):
    model = PreActivationResidual(nnx.Rngs(0))
    assert "head.kernel" in low_rank_noise(model, log_likelihood, batch)


# Examples that change their row.


def sorted_rows(m: Net, x: jax.Array) -> jax.Array:
    order = jnp.argsort(x[:, 0])
    h = nnx.tanh(m.a(x))[order]
    return m.c(nnx.tanh(m.b(h))[jnp.argsort(order)])


def balanced_experts(m: Net, x: jax.Array) -> jax.Array:
    """Model that sends half of the rows through one layer, the other half through two."""
    order = jnp.argsort(x[:, 0])
    h = nnx.tanh(m.a(x))[order]
    one, other = h[: B // 2], h[B // 2 :]
    h = jnp.concatenate([nnx.tanh(m.b(one)), nnx.tanh(m.b(nnx.tanh(m.b(other))))])
    return m.c(h[jnp.argsort(order)])


@pytest.mark.parametrize("forward", [sorted_rows, balanced_experts])
def test_perturbation_finds_the_gradient_of_layers_on_permuted_rows(forward, batch):
    model = Net(forward)
    assert_sound(model, log_likelihood, batch)
    assert_finds_the_gradient(model, log_likelihood, batch)


def test_a_time_major_layer_of_as_many_steps_as_examples_may_meet_labels_closed_over():
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (5, 5, 4))
    labels = jnp.linspace(-1, 1, 5)

    def reward(model: Any, x: jax.Array) -> jax.Array:
        h = jnp.tanh(model(jnp.swapaxes(x, 0, 1)))
        return -((h.sum((0, 2)) - labels) ** 2)

    assert_sound(model, reward, x)
    assert_finds_the_gradient(model, reward, x)


# Rewards that depend on the weights themselves, or on other examples.

DECAY = 0.05


def penalised(model: Any, batch: dict[str, jax.Array]) -> jax.Array:
    penalty = sum(jnp.sum(w**2) for w in jax.tree.leaves(nnx.state(model, nnx.Param)))
    return log_likelihood(model, batch) - DECAY * penalty


def test_logits_stay_the_output_next_to_a_weight_penalty(batch):
    model = Net(plain)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    network = trace(pure_objective(graphdef, penalised), params, rest, batch)
    assert [info.shape for info in network.sites if info.output] == [(B, 5)]
    assert_sound(model, penalised, batch)


def test_logits_keep_their_exact_delta_next_to_a_weight_penalty(batch):
    model = Net(plain)
    rule = grlu.NodePerturbation(samples=1, sigma=0.01, output="delta")
    found = grlu.alignment(rule, penalised, model, batch, jax.random.key(3))
    for name in ("c.kernel", "c.bias"):
        assert found.parameters[name] == pytest.approx((1, 1), abs=1e-5), str(found)


def test_the_gradient_of_a_penalty_is_exact_with_one_sample(batch):
    class Aside(Net):
        def __init__(self) -> None:
            super().__init__(plain)
            self.aside = nnx.Param(jnp.arange(1.0, 4.0))

    rule = grlu.NodePerturbation(samples=1, sigma=0.01)
    _, grads = nnx.jit(rule(penalised))(Aside(), batch, jax.random.key(0))
    np.testing.assert_allclose(grads["aside"][...], 2 * DECAY * jnp.arange(1.0, 4.0), rtol=1e-6)


def group_relative(model: Any, batch: dict[str, jax.Array]) -> jax.Array:
    r = log_likelihood(model, batch).reshape(-1, 2)
    return jnp.tanh(r - r.mean(1, keepdims=True)).reshape(-1) * (1 + jnp.arange(B) / B)


def ranked(model: Any, batch: dict[str, jax.Array]) -> jax.Array:
    """Return a smooth rank within the batch, by pairwise comparisons."""
    r = log_likelihood(model, batch)
    return jnp.tanh(3 * (r[:, None] - r[None])).sum(1) * (1 + jnp.arange(B) / B)


@pytest.mark.parametrize("reward_fn", [group_relative, ranked])
def test_rewards_may_compare_examples(reward_fn, batch):
    model = Net(plain)
    assert_sound(model, reward_fn, batch)
    assert_finds_the_gradient(model, reward_fn, batch)


def test_batch_normalisation_in_training_is_credited_through_all_rewards(batch):
    norm = nnx.BatchNorm(8, use_running_average=False, rngs=nnx.Rngs(1))

    class Normalised(Net):
        def __init__(self) -> None:
            super().__init__(lambda m, x: m.c(nnx.tanh(m.norm(m.b(nnx.tanh(m.a(x)))))))
            self.norm = norm

    model = Normalised()
    assert_sound(model, log_likelihood, batch)
    found = assert_finds_the_gradient(model, log_likelihood, batch)
    cosine, ratio = found.parameters["b.kernel"]
    assert cosine > 0.99, str(found)
    assert ratio == pytest.approx(1, abs=0.05), str(found)


# Low precision.


def bf16_and_fp32() -> tuple[Net, Net]:
    """Return two networks with the same weights, in bfloat16 and in float32."""
    return Net(plain, jnp.bfloat16), Net(plain)


@pytest.mark.parametrize(("sigma", "cosine"), [(0.01, 0.99), (0.001, 0.9)])
def test_noise_below_the_resolution_of_bfloat16_finds_the_gradient(sigma, cosine, batch):
    rule = dataclasses.replace(ORTHOGONAL, sigma=sigma)
    grads = []
    for model in bf16_and_fp32():
        _, found = nnx.jit(rule(log_likelihood))(model, batch, jax.random.key(3))
        grads.append(jnp.concatenate([g.ravel() for g in jax.tree.leaves(found)]))
    low, full = grads
    assert low @ full / (jnp.linalg.norm(low) * jnp.linalg.norm(full)) > cosine


def test_rewards_of_a_bfloat16_model_are_float32(batch):
    model, _ = bf16_and_fp32()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    network = trace(pure_objective(graphdef, log_likelihood), params, rest, batch)
    assert jax.eval_shape(network.rewards, params, rest, batch).dtype == jnp.float32
    reward, _ = nnx.eval_shape(ORTHOGONAL(log_likelihood), model, batch, jax.random.key(0))
    assert reward.dtype == jnp.float32


def test_a_dense_layer_in_bfloat16_moves_along_low_rank_noise(batch, low_rank_noise):
    model, _ = bf16_and_fp32()
    low = low_rank_noise(model, log_likelihood, batch, rtol=0.05)
    assert low == {"a.kernel", "b.kernel", "c.kernel"}


# Custom derivatives.


@jax.custom_vjp
def quantised(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return a product rounded to quarters, with the gradient of the product."""
    return jnp.round(4 * (x @ kernel)) / 4


def _quantised_fwd(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
    return quantised(x, kernel), (x, kernel)


def _quantised_bwd(saved: Any, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    return g @ kernel.T, x.T @ g


quantised.defvjp(_quantised_fwd, _quantised_bwd)


@jax.custom_jvp
def leaky(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.sign(x @ kernel)


@leaky.defjvp
def _leaky_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (x, kernel), (dx, dkernel) = primals, tangents
    return leaky(x, kernel), 0.5 * (dx @ kernel + x @ dkernel)


@pytest.mark.parametrize("layer", [quantised, leaky])
def test_a_custom_derivative_of_a_layer_is_kept(layer, batch):
    model = Net(lambda m, x: m.c(layer(nnx.tanh(m.a(x)), m.b.kernel[...])))
    assert_sound(model, log_likelihood, batch)


def discounted(model: Any, batch: dict[str, jax.Array], unroll: bool = False) -> jax.Array:
    """Return squared errors of values that bootstrap from the next step, summed over steps."""
    values = model(batch["x"])  # (B, T)

    def step(total: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        now, after = pair
        return total - (1 + 0.9 * jax.lax.stop_gradient(after) - now) ** 2, None

    pairs = values[:, :-1].T, values[:, 1:].T
    total = jnp.zeros(values.shape[0])
    if not unroll:
        return jax.lax.scan(step, total, pairs)[0]
    for pair in zip(*pairs, strict=True):
        total, _ = step(total, pair)
    return total


@pytest.mark.parametrize("unroll", [False, True])
def test_no_credit_passes_a_stop_gradient_in_a_scan(unroll, batch):
    model = Net(plain)

    def reward_fn(model: Any, batch: Any) -> jax.Array:
        return discounted(model, batch, unroll)

    assert_sound(model, reward_fn, batch)
    assert_finds_the_gradient(model, reward_fn, batch)


# Models and rewards with host effects and static checks.


def prints(m: Net, x: jax.Array) -> jax.Array:
    h = m.a(x)
    jax.debug.print("largest weight {}, largest input {}", jnp.max(m.a.kernel[...]), jnp.max(x))
    jax.debug.print("bias {}", m.a.bias[...])
    jax.debug.print("largest {}", jnp.abs(h).max())
    return m.c(nnx.tanh(m.b(nnx.tanh(h))))


def merges_the_batch(m: Net, x: jax.Array) -> jax.Array:
    h = m.a(x).reshape(-1, 2)
    return m.c(nnx.tanh(h).reshape(x.shape[0], 8))


def asserts_the_batch(m: Net, x: jax.Array) -> jax.Array:
    assert x.shape[0] == B
    return plain(m, x)


def fixes_the_shape(m: Net, x: jax.Array) -> jax.Array:
    if x.shape != (B, 4):
        raise RuntimeError(f"cannot rearrange {x.shape}")  # Like einops.
    h = m.b(nnx.tanh(m.a(x)))
    return m.c(jnp.swapaxes(nnx.tanh(h).reshape(B, 2, 4), 1, 2).reshape(B, 8))


@pytest.mark.parametrize("forward", [prints, merges_the_batch, asserts_the_batch, fixes_the_shape])
def test_a_model_may_print_reshape_and_check_its_batch(forward, batch):
    model = Net(forward)
    assert_sound(model, log_likelihood, batch)
    assert_finds_the_gradient(model, log_likelihood, batch)


def test_alignment_takes_a_sigma_that_is_an_array(batch):
    rule = dataclasses.replace(ORTHOGONAL, sigma=jnp.float32(0.01))
    found = grlu.alignment(rule, log_likelihood, Net(plain), batch, jax.random.key(0))
    assert found.cosine > 0.99


def test_alignment_takes_a_filter_that_is_a_list(batch):
    head = [nnx.PathContains("c"), nnx.PathContains("b")]
    rule = dataclasses.replace(ORTHOGONAL, wrt=nnx.All(nnx.Param, nnx.Any(*head)))
    tuples = grlu.alignment(rule, log_likelihood, Net(plain), batch, jax.random.key(0))
    rule = dataclasses.replace(ORTHOGONAL, wrt=head)
    found = grlu.alignment(rule, log_likelihood, Net(plain), batch, jax.random.key(0))
    assert found == tuples


@pytest.mark.parametrize(
    "rule",
    [grlu.WeightPerturbation(samples=4), grlu.ForwardGradient(samples=4, of="weight")],
)
def test_weight_noise_gives_unused_parameters_no_gradient(rule, batch):
    model = Net(lambda m, x: m.c(nnx.tanh(m.a(x))))
    _, grads = nnx.jit(rule(log_likelihood))(model, batch, jax.random.key(0))
    assert not jnp.any(grads["b"]["kernel"][...])
    assert not jnp.any(grads["b"]["bias"][...])
    assert jnp.any(grads["a"]["kernel"][...])


def tiny_gpt() -> models.GPT:
    return nnx.jit(lambda: models.GPT((4,), 5, layers=1, heads=1, width=4, rngs=nnx.Rngs(0)))()


def test_a_gpt_refuses_a_cached_token_past_its_block():
    model = tiny_gpt()
    tokens = jnp.arange(8).reshape(2, 4) % 5
    _, cache = model.cached(tokens, model.empty_cache(2, 4))
    with pytest.raises(grlu.UserError, match="block"):
        model.cached(tokens[:, :1], cache)
    with pytest.raises(grlu.UserError, match="block"):
        model.cached(jnp.zeros((2, 5), jnp.int32), model.empty_cache(2, 4))


def test_a_compiled_gpt_gives_no_finite_logits_past_its_block():
    model = tiny_gpt()
    tokens = jnp.arange(8).reshape(2, 4) % 5
    graphdef, state = nnx.split(model)

    @jax.jit
    def cached(state: Any, tokens: jax.Array, cache: Any) -> Any:
        return nnx.merge(graphdef, state).cached(tokens, cache)

    within, cache = cached(state, tokens, model.empty_cache(2, 4))
    beyond, _ = cached(state, tokens[:, :1], cache)
    np.testing.assert_allclose(within, model(tokens), atol=1e-5)
    assert not jnp.isfinite(beyond).any()


@pytest.mark.parametrize(("fraction", "winners"), [(0.57, 57), (0.29, 29), (0.5, 50), (0.001, 1)])
def test_a_topk_keeps_its_fraction_of_100_units(fraction, winners):
    z = np.random.default_rng(0).permutation(np.arange(1.0, 101.0, dtype=np.float32))[None]
    assert np.count_nonzero(grlu.TopK(fraction, mode="hard")(jnp.asarray(z))) == winners


# Loops and branches: a parameter in a loop has one site per step.


class Recurrent(nnx.Module):
    def __init__(self, cell: Any, rngs: nnx.Rngs):
        self.rnn = nnx.RNN(cell(3, 4, rngs=rngs), rngs=rngs)
        self.head = nnx.Linear(4, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.rnn(x)[:, -1])


class Block(nnx.Module):
    """Transformer block: attention, then two dense layers, with pre-norm."""

    def __init__(self, rngs: nnx.Rngs):
        self.norm_1, self.norm_2 = nnx.LayerNorm(4, rngs=rngs), nnx.LayerNorm(4, rngs=rngs)
        self.attend = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attend(self.norm_1(x))
        return x + self.down(nnx.gelu(self.up(self.norm_2(x))))


class ScannedTransformer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=0, out_axes=0)
        def stacked(rngs: nnx.Rngs) -> Block:
            return Block(rngs)

        self.inputs = nnx.Linear(3, 4, rngs=rngs)
        self.blocks = stacked(rngs)
        self.head = nnx.Linear(4, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def through(h: jax.Array, block: Block) -> jax.Array:
            return block(h)

        return self.head(through(self.inputs(x[:, :4]), self.blocks).mean(1))


class StateSpace(nnx.Module):
    """Diagonal linear recurrence, h' = λh + Bx and y = Ch + Dx, by an associative scan."""

    def __init__(self, rngs: nnx.Rngs):
        self.log_decay = nnx.Param(jnp.linspace(-2.0, 0.0, 4))
        self.inputs, self.outputs = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)
        self.skip, self.head = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        decay = jnp.exp(-jnp.exp(self.log_decay[...]))
        decays = jnp.broadcast_to(decay[None, None], (*x.shape[:2], 4))

        def join(left: Any, right: Any) -> Any:
            return left[0] * right[0], right[0] * left[1] + right[1]

        _, h = jax.lax.associative_scan(join, (decays, self.inputs(x)), axis=1)
        return self.head(nnx.gelu(self.outputs(h) + self.skip(x))[:, -1])


class Steps(nnx.Module):
    """Model of two small matrices and a vector, joined by a function of model and input."""

    def __init__(self, forward: Callable[["Steps", jax.Array], jax.Array]):
        rngs = nnx.Rngs(0)
        self.w = nnx.Param(jax.random.normal(rngs.params(), (3, 4)))
        self.u = nnx.Param(jax.random.normal(rngs.params(), (4, 4)) / 2)
        self.start = nnx.Param(jax.random.normal(rngs.params(), (4,)))
        self.head = nnx.Linear(4, 5, rngs=rngs)
        self.forward = forward

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.forward(self, x))


def mapped(m: Steps, x: jax.Array) -> jax.Array:
    w = m.w[...]
    return jax.lax.map(lambda row: jnp.tanh(row @ w).sum(0), x)


def branches(m: Steps, x: jax.Array) -> jax.Array:
    w, u = m.w[...], m.u[...]

    def linear(h: jax.Array) -> jax.Array:
        return jnp.tanh(h @ w)

    def deeper(h: jax.Array) -> jax.Array:
        return jnp.tanh(jnp.tanh(h @ w) @ u)

    one = jax.lax.cond(x.sum() > 0, linear, deeper, x[:, 0])
    other = jax.lax.cond(x.sum() > 0, deeper, linear, x[:, 1])
    return one + other


def switched(m: Steps, x: jax.Array) -> jax.Array:
    w, u = m.w[...], m.u[...]
    h = x[:, 0] @ w
    paths = [jnp.tanh, lambda h: jnp.tanh(h @ u), lambda h: h @ u]
    index = jnp.argmax(jnp.abs(x).sum((0, 1)))
    return jax.lax.switch(index, paths, h) + jnp.sin(h)


def counted(m: Steps, x: jax.Array) -> jax.Array:
    u = m.u[...]
    return jax.lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h @ u + i / 4), x[:, 0] @ m.w[...])


def step_with(u: jax.Array) -> Any:
    def step(h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = jnp.tanh(h @ u + x)
        return h, h

    return step


def learned_start(m: Steps, x: jax.Array) -> jax.Array:
    start = jnp.broadcast_to(m.start[...][None], (x.shape[0], 4))
    inputs = jnp.swapaxes(x @ m.w[...], 0, 1)
    _, hs = jax.lax.scan(step_with(m.u[...]), start, inputs)
    return hs.mean(0)


def nested(m: Steps, x: jax.Array) -> jax.Array:
    """Scan over pairs of steps, and inside it over the two."""
    u, w = m.u[...], m.w[...]

    def outer(h: jax.Array, xs: jax.Array) -> tuple[jax.Array, None]:
        h, _ = jax.lax.scan(step_with(u), h, xs @ w)
        return h, None

    pairs = jnp.moveaxis(x, 1, 0).reshape(4, 2, x.shape[0], 3)
    return jax.lax.scan(outer, jnp.zeros((x.shape[0], 4)), pairs)[0]


def checkpointed(m: Steps, x: jax.Array) -> jax.Array:
    inputs = jnp.swapaxes(x @ m.w[...], 0, 1)
    step = jax.checkpoint(step_with(m.u[...]))
    return jax.lax.scan(step, jnp.zeros((x.shape[0], 4)), inputs)[0]


def backwards(m: Steps, x: jax.Array) -> jax.Array:
    inputs = jnp.swapaxes(x @ m.w[...], 0, 1)
    step = step_with(m.u[...])
    return jax.lax.scan(step, jnp.zeros((x.shape[0], 4)), inputs, reverse=True)[1][0]


def carried_weights(m: Steps, x: jax.Array) -> jax.Array:
    """Scan with the matrix in the carry, which shrinks from step to step."""

    def step(carry: Any, x: jax.Array) -> tuple[Any, None]:
        h, u = carry
        return (jnp.tanh(h @ u + x), 0.9 * u), None

    inputs = jnp.swapaxes(x @ m.w[...], 0, 1)
    (h, _), _ = jax.lax.scan(step, (jnp.zeros((x.shape[0], 4)), m.u[...]), inputs)
    return h


def while_loop(m: Steps, x: jax.Array) -> jax.Array:
    u = m.u[...]

    def step(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        i, h = state
        return i + 1, jnp.tanh(h @ u)

    return jax.lax.while_loop(lambda s: s[0] < 3, step, (0, x[:, 0] @ m.w[...]))[1]


LOOPS = {
    **{
        cell.__name__: lambda cell=cell: Recurrent(cell, nnx.Rngs(0))
        for cell in (nnx.SimpleCell, nnx.GRUCell, nnx.LSTMCell, nnx.OptimizedLSTMCell)
    },
    "scanned transformer": lambda: ScannedTransformer(nnx.Rngs(0)),
    "state space": lambda: StateSpace(nnx.Rngs(0)),
    **{
        forward.__name__: lambda forward=forward: Steps(forward)
        for forward in (
            mapped, branches, switched, counted, learned_start, nested, checkpointed, backwards,
            carried_weights,
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("make", LOOPS.values(), ids=LOOPS)
def test_the_local_update_of_exact_credit_in_a_loop_is_the_gradient(make, steps):
    assert_sound(make(), log_likelihood, steps)


@pytest.mark.parametrize("name", ["branches", "switched", "carried_weights", "learned_start"])
def test_perturbation_finds_the_gradient_in_small_loops_and_branches(name, steps):
    assert_finds_the_gradient(LOOPS[name](), log_likelihood, steps)


def test_perturbation_finds_the_gradient_where_backprop_cannot(steps):
    """Compare a while loop, which has no reverse-mode derivative, with its unrolled twin."""
    looping, unrolled = Steps(while_loop), Steps(counted_thrice)
    own, traced = own_and_traced(looping, log_likelihood, steps)
    np.testing.assert_allclose(traced, own, rtol=1e-5)
    _, found = nnx.jit(ORTHOGONAL(log_likelihood))(looping, steps, jax.random.key(0))
    _, exact = nnx.jit(grlu.Backprop()(log_likelihood))(unrolled, steps, jax.random.key(0))
    a, b = (jnp.concatenate([g.ravel() for g in jax.tree.leaves(t)]) for t in (found, exact))
    assert a @ b / (jnp.linalg.norm(a) * jnp.linalg.norm(b)) > 0.99


def counted_thrice(m: Steps, x: jax.Array) -> jax.Array:
    h = x[:, 0] @ m.w[...]
    for _ in range(3):
        h = jnp.tanh(h @ m.u[...])
    return h


def normalized_by_a_loop(m: Steps, x: jax.Array) -> jax.Array:
    """Run a while loop over a parameter alone, before it meets the data."""

    def step(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        i, u = state
        return i + 1, 0.9 * u

    _, u = jax.lax.while_loop(lambda s: s[0] < 3, step, (0, m.u[...]))
    return jnp.tanh(x[:, 0] @ m.w[...]) @ u


def normalized_at_once(m: Steps, x: jax.Array) -> jax.Array:
    return jnp.tanh(x[:, 0] @ m.w[...]) @ (0.9**3 * m.u[...])


def test_perturbation_finds_the_gradient_of_a_parameter_in_a_while_loop(steps):
    looping, unrolled = Steps(normalized_by_a_loop), Steps(normalized_at_once)
    _, found = nnx.jit(ORTHOGONAL(log_likelihood))(looping, steps, jax.random.key(0))
    _, exact = nnx.jit(grlu.Backprop()(log_likelihood))(unrolled, steps, jax.random.key(0))
    a, b = (jnp.concatenate([g.ravel() for g in jax.tree.leaves(t)]) for t in (found, exact))
    assert a @ b / (jnp.linalg.norm(a) * jnp.linalg.norm(b)) > 0.99


def test_exact_credit_behind_a_while_loop_is_refused(steps):
    def reward(model, batch):
        return jax.lax.while_loop(lambda r: (r < 0).any(), lambda r: r + 1, model(batch["x"])[:, 0])

    rule = grlu.NodePerturbation(8, 0.01, output="delta")
    with pytest.raises(grlu.UserError, match="a while loop between a layer and the reward"):
        rule(reward)(Steps(normalized_at_once), steps, jax.random.key(0))


def test_a_perturbed_pass_subtracts_its_own_maximum():
    """Check large logits, which would overflow with the clean pass's maximum."""

    def reward(model, x):
        return nnx.log_softmax(1e5 * model(x))[:, 0]

    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    _, grads = nnx.jit(ORTHOGONAL(reward))(model, jnp.eye(4), jax.random.key(0))
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


FLAGSHIPS = {
    "LSTM": LOOPS["OptimizedLSTMCell"],
    "GRU": LOOPS["GRUCell"],
    "state space": LOOPS["state space"],
    "scanned transformer": LOOPS["scanned transformer"],
    "residual convolutions": lambda: PreActivationResidual(nnx.Rngs(0)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FLAGSHIPS)
def test_perturbation_finds_the_gradient_of_whole_architectures(name, steps, batch):
    given = batch if name == "residual convolutions" else steps
    # The normalisation of few features is strongly curved: at σ = .01 the cosine is .96.
    rule = dataclasses.replace(ORTHOGONAL, sigma=0.001)
    assert_finds_the_gradient(FLAGSHIPS[name](), log_likelihood, given, rule)
