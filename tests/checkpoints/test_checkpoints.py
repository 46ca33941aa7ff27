from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from checkpoints import Checkpoints
from grlu.errors import UserError


class Net(nnx.Module):
    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(5, width, rngs=rngs)
        self.out = nnx.Linear(width, 3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)


@flax.struct.dataclass
class TrainState:
    params: Any
    rest: Any
    opt_state: Any
    step: Any
    key: Any
    average: Any = None


def make_state(width: int = 4, seed: int = 0) -> TrainState:
    model = Net(width, rngs=nnx.Rngs(seed))
    _, params, rest = nnx.split(model, nnx.Param, ...)
    return TrainState(
        params=params,
        rest=rest,
        opt_state=optax.adam(1e-3).init(params),
        step=jnp.asarray(7 + seed, jnp.int32),
        key=jax.random.key(seed + 1),
    )


def assert_identical(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        assert type(x) is type(y), path
        if isinstance(x, jax.Array):
            assert x.aval == y.aval, path  # shape, dtype, weak type
            assert x.sharding == y.sharding, path
            assert x.committed == y.committed, path
            if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
                x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), path


@flax.struct.dataclass
class OlderState(TrainState):
    fault: Any = None


def test_a_retired_leaf_of_an_older_version_is_ignored(tmp_path):
    state = make_state()
    fields = {name: getattr(state, name) for name in state.__dataclass_fields__}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, OlderState(**fields, fault=jnp.arange(3)), metrics={}, meta={})
        assert_identical(checkpoints.restore(make_state(seed=1)).state, state)


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("place", ["gs://bucket/run", "s3://bucket/run", "file://tmp/run"])
def test_a_remote_directory_is_refused(place, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"{place}.* is not a local path"):
        Checkpoints(kind(place))
    assert not list(tmp_path.iterdir())


def test_a_leaf_that_only_older_versions_saved_is_ignored(tmp_path):
    @flax.struct.dataclass
    class OldState(TrainState):
        fault: Any = None

    state = make_state()
    rest = nnx.merge_state(state.rest, nnx.State({"fault": nnx.Variable(jnp.ones(3))}))
    old = OldState(**(vars(state) | {"rest": rest}), fault=jnp.full(7, -1, jnp.int32))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, old, metrics={}, meta={})
        restored = checkpoints.restore(make_state(seed=5))
    assert_identical(restored.state, state)


def test_round_trip_is_bit_exact(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state, metrics={"loss": jnp.float32(0.1)}, meta={"epoch": [1, None]})
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(make_state(seed=5))
    assert_identical(restored.state, state)
    assert restored.step == 3
    assert restored.metrics == {"loss": float(np.float32(0.1))}
    assert restored.meta == {"epoch": [1, None]}


def test_round_trip_to_an_abstract_state(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, metrics={}, meta={})
        restored = checkpoints.restore(jax.eval_shape(make_state))
    assert_identical(restored.state, state)


def test_every_kind_of_leaf(tmp_path):
    state = {
        "int": 2**40,
        "float": 0.1,
        "bool": True,
        "none": None,
        "weak": jnp.asarray(2.5),
        "weak_int": jnp.asarray(3),
        "scalar": np.float64(1 / 3),
        "numpy": np.arange(3.0),
        "bfloat16": jnp.asarray([1.0, float("nan"), -0.0], jnp.bfloat16),
        "empty": jnp.zeros((0, 3)),
        "keys": jax.random.split(jax.random.key(1, impl="rbg"), 3),
        "list": [jnp.ones(2), (jnp.zeros(1), {})],
        "a/b.c 'd'": jnp.ones(()),
        "ints": {5: jnp.ones((2, 2), jnp.int8), 6: {}},
    }
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, state, metrics={}, meta={})
        restored = checkpoints.restore(state).state
    assert_identical(restored, state)


def test_a_committed_leaf_comes_back_committed(tmp_path):
    device = jax.devices()[0]
    state = {
        "x": jax.device_put(jnp.ones(3), device),
        "k": jax.device_put(jax.random.key(0), device),
    }
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, state, metrics={}, meta={})
        assert_identical(checkpoints.restore(state).state, state)


def save_all(checkpoints, losses: dict[int, float]) -> None:
    for step, loss in losses.items():
        checkpoints.save(step, {"x": jnp.full(3, step)}, metrics={"loss": loss}, meta={})


@pytest.mark.parametrize(
    ("keep_last", "keep_best", "better", "kept", "best"),
    [
        (2, 1, ("loss", "min"), (2, 5, 6), 2),
        (1, 2, ("loss", "min"), (2, 4, 6), 2),
        (2, 1, ("loss", "max"), (1, 5, 6), 1),
        (2, 0, ("loss", "min"), (5, 6), 5),
        (3, 1, None, (4, 5, 6), 6),
        (1, 1, ("other", "min"), (6,), 6),
    ],
)
def test_keeps_the_last_and_the_best(tmp_path, keep_last, keep_best, better, kept, best):
    losses = {1: 5.0, 2: 1.0, 3: float("nan"), 4: 1.5, 5: 3.0, 6: 4.0}
    options = {"keep_last": keep_last, "keep_best": keep_best, "better": better}
    with Checkpoints(tmp_path, **options) as checkpoints:
        save_all(checkpoints, {1: losses[1], 2: losses[2], 3: losses[3]})
    with Checkpoints(tmp_path, **options) as checkpoints:  # as after a restart
        save_all(checkpoints, {step: losses[step] for step in (4, 5, 6)})
        checkpoints.wait()
        assert checkpoints.steps == kept
        assert checkpoints.latest_step == 6
        assert checkpoints.best_step == best
        restored = checkpoints.restore({"x": jnp.zeros(3, int)}, best=True)
        assert (restored.step, restored.state["x"].tolist()) == (best, [best] * 3)
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == list(kept)


def test_the_newest_of_equals_is_best(tmp_path):
    with Checkpoints(tmp_path, better=("loss", "min")) as checkpoints:
        save_all(checkpoints, {1: 2.0, 2: 1.0, 3: 1.0, 4: 2.0})
        assert checkpoints.best_step == 3


def test_restores_the_step_asked_for(tmp_path):
    like = {"x": jnp.zeros(3, int)}
    with Checkpoints(tmp_path, keep_last=3) as checkpoints:
        save_all(checkpoints, {1: 0, 2: 0, 3: 0})
        assert checkpoints.restore(like, 2).state["x"].tolist() == [2, 2, 2]
        assert checkpoints.restore(like).step == 3


def test_going_back_drops_what_came_after(tmp_path):
    with Checkpoints(tmp_path, keep_last=5) as checkpoints:
        save_all(checkpoints, {10: 0, 20: 0, 30: 0})
    with Checkpoints(tmp_path, keep_last=5) as checkpoints:
        checkpoints.restore({"x": jnp.zeros(3, int)}, 10)
        save_all(checkpoints, {20: 1.0})
        checkpoints.wait()
        assert checkpoints.steps == (10, 20)
        assert checkpoints.restore({"x": jnp.zeros(3, int)}).metrics == {"loss": 1.0}


def test_saving_a_step_twice_keeps_the_first(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        save_all(checkpoints, {1: 1.0})
        save_all(checkpoints, {1: 2.0})
        assert checkpoints.restore({"x": jnp.zeros(3, int)}).metrics == {"loss": 1.0}


def test_the_state_may_be_donated_as_soon_as_save_returns(tmp_path):
    advance = jax.jit(lambda x: x + 1, donate_argnums=0)
    values = np.random.default_rng(0).standard_normal((20, 100, 1000), dtype=np.float32)
    state = [advance(jnp.array(value)) for value in values]
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, metrics={}, meta={})
        for _ in range(5):
            state = [advance(x) for x in state]
        restored = checkpoints.restore(state).state
    np.testing.assert_array_equal(np.stack(restored), values + 1)


def test_a_restored_state_may_be_donated(tmp_path):
    advance = jax.jit(lambda x: x + 1, donate_argnums=0)
    like = {"x": jnp.arange(1000.0)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, like, metrics={}, meta={})
        state = checkpoints.restore(like).state
        once = advance(state["x"])
        again = checkpoints.restore(like).state
    assert once.tolist() == (like["x"] + 1).tolist()
    assert again["x"].tolist() == like["x"].tolist()


@pytest.mark.parametrize("options", [{"keep_last": 0}, {"keep_best": -1}])
def test_numbers_to_keep(tmp_path, options):
    with pytest.raises(UserError, match="at least"):
        Checkpoints(tmp_path, **options)


def test_close_twice(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save_all(checkpoints, {1: 0.0})
    checkpoints.close()
    checkpoints.close()
    assert checkpoints.steps == (1,)
