"""Exact chunked online learning equals updating after every example."""

import jax
import numpy as np
import pytest

import trainers
from grlu.network import trace
from grlu.online.chunk import Chunk
from grlu.online.layers import first_layers
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
SPARSE = [
    *("model.name=sparse_mlp", "model.hidden=[32,24]", "model.winners=[4]"),
    *("trainer.noise=orthogonal", "trainer.site=pre", "trainer.sigma=0.001"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.samples=4", "model.activation=topk", "trainer.average=0.99"],
        [
            *("trainer.samples=4", "model.hidden=[32,16]", "model.layer_norm=false"),
            *("trainer.site=pre", "trainer.output_noise=softmax"),
        ],
        ["trainer.samples=2", "trainer.inputs=noisy", "trainer.site=post"],
        ["trainer.samples=2", "model.hidden=[]", "trainer.batch_size=4"],
        ["trainer.samples=2", "trainer.output=delta", "trainer.feedback=3"],
        ["trainer.samples=2", "model.name=local_mlp", "trainer.layers=apart"],
        ["trainer.name=backprop", "trainer.batch_size=4"],
        [*SPARSE, "trainer.samples=auto"],
        [
            *(*SPARSE, "trainer.samples=4", "trainer.batch_size=2", "trainer.average=0.99"),
            "model.winners_mode=gumbel",
        ],
    ],
)
def test_chunked_and_unchunked_training_agree(overrides):
    # Rounding may choose another winner in the end.
    examples = 100 if SPARSE[0] in overrides else 1000
    states = []
    for size in (1, 32):
        options = [*PLAIN, f"trainer.online_chunk={size}", *overrides]
        state, metrics, (broken, _) = trained(options, examples)
        assert broken == -1
        states.append((state.params, state.average, state.opt_state, state.step, metrics))
    assert states[0][3] == states[1][3]
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_gathered_parameters_and_chosen_units_are_found():
    config = trainers.resolve("digits_grlu", [*PLAIN, *SPARSE])
    experiment = trainers.make_experiment(config)
    state = experiment.trainer.init(jax.random.key(0))
    batch = experiment.preprocess({k: v[:2] for k, v in experiment.train.items()})
    batches = {k: v[:, None] for k, v in batch.items()}
    objective = experiment.trainer.pure(state.step)
    chunk = Chunk(objective, state.params, state.rest, batches)
    (first,) = chunk.layers
    assert first.chosen is not None
    assert set(chunk.start.kept) == {"bias"}
    gathered = {"layers.0.kernel", "layers.0.bias", "readouts.0", "readouts.1"}
    assert set(chunk.start.gathered) == gathered


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
