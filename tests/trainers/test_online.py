"""Exact chunked online learning equals updating after every example."""

import jax
import numpy as np
import pytest

import trainers
from grlu.network import trace
from grlu.rules.online import first_layers
from trainers.loop.compiled import compile_chunk


def trained(overrides, examples=1000):
    experiment = trainers.make_experiment(trainers.resolve("digits_grlu", overrides))
    chunk = compile_chunk(experiment)
    rows = experiment.order(0)
    count = min(examples, len(rows))
    rows = np.resize(rows, (-(-count // 32) * 32, rows.shape[1]))
    state = experiment.trainer.init(jax.random.key(0))
    return chunk(state, jax.device_put(experiment.train), rows, count)


PLAIN = ["trainer.optimizer=sgd", "trainer.batch_size=1", "trainer.learning_rate=0.002"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.samples=4", "trainer.site=pre"],
        ["trainer.samples=4", "model.activation=topk", "trainer.average=0.99"],
        ["trainer.samples=4", "model.hidden=[32,16]", "model.layer_norm=false"],
        ["trainer.samples=2", "trainer.inputs=noisy", "trainer.site=post"],
        ["trainer.samples=2", "model.hidden=[]"],
        ["trainer.samples=2", "trainer.batch_size=4"],
        ["trainer.samples=2", "trainer.output=delta", "trainer.feedback=3"],
        ["trainer.samples=2", "trainer.output_noise=softmax"],
        ["trainer.samples=2", "model.name=local_mlp", "trainer.layers=apart"],
        ["trainer.name=backprop"],
    ],
)
def test_chunked_and_unchunked_training_agree(overrides):
    states = []
    for size in (1, 32):
        state, metrics, (broken, _) = trained([*PLAIN, f"trainer.online_chunk={size}", *overrides])
        assert broken == -1
        states.append((state.params, state.average, state.opt_state, state.step, metrics))
    assert states[0][3] == states[1][3]
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_only_plain_sgd_is_chunked():
    for change, chunked in (
        ([], True),
        (["trainer.optimizer=adam"], False),
        (["trainer.clip=1.0"], False),
        (["trainer.online_chunk=1"], False),
    ):
        config = trainers.resolve("digits_grlu", [*PLAIN, *change])
        assert (trainers.make_experiment(config).trainer.block > 1) == chunked


def test_a_kernel_used_twice_is_not_a_first_layer():
    import jax.numpy as jnp
    from flax import nnx

    model = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def network(reward):
        def objective(params, rest, batch):
            return reward(nnx.merge(graphdef, params, rest, copy=True), batch), None

        return trace(objective, params, rest, jnp.ones((2, 4)))

    assert len(first_layers(network(lambda m, x: jnp.tanh(m(x)).sum(-1)))) == 1
    assert not first_layers(network(lambda m, x: m(jnp.tanh(m(x))).sum(-1)))
    assert not first_layers(network(lambda m, x: m(x).sum(-1) - (m.kernel[...] ** 2).sum()))
    assert not first_layers(network(lambda m, x: (x @ jnp.exp(m.kernel[...])).sum(-1)))
