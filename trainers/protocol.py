"""What a run is made of: what the loop asks of a trainer, the run's settings, and all together."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from grlu.errors import UserError
from trainers.devices import MeshSettings
from trainers.schedules import require
from trainers.state import TrainState

Arrays = Mapping[str, Any]
Values = dict[str, jax.Array]


class TrainerLike(Protocol):
    """What the loop asks of a trainer: pure functions, and what it must know to run them.

    Attributes:
        settings: the config's `trainer` section; its `remedy` says what may help where values are
            not finite.
        metrics: names of the values that `step` gives, per example or one for all.
        evaluated: names of those that `evaluate` gives, per example.
        better: the metric that chooses checkpoints, and its direction.
        block: how many updates `steps` takes at once; 1 if there is nothing to gain by it.
        tiny: whether a step is operations of a microsecond each, as those on one example are.
        looped: whether many steps may be one program; on a CPU XLA's loops spoil the gradients of
            convolutions, which it rewrites outside of loops alone (10 times slower, measured).
    """

    settings: Any
    metrics: tuple[str, ...]
    evaluated: tuple[str, ...]
    better: tuple[str, Literal["min", "max"]]
    block: int
    tiny: bool
    looped: bool = True

    def init(self, key: jax.Array) -> TrainState: ...
    def step(self, state: Any, batch: Arrays) -> tuple[TrainState, Values]: ...
    def evaluate(self, state: Any, batch: Arrays) -> Values: ...
    def scales(self, step: jax.Array) -> Values: ...

    def rewards(self, state: Any, batch: Arrays) -> tuple[jax.Array, jax.Array] | None:
        """Return the rewards of the network that a rule traces, and the model's own, or None."""
        return None

    def steps(
        self,
        state: Any,
        batches: Arrays,
        count: jax.Array,
        fold: Callable[[Any, jax.Array, Values], Any],
        start: Any,
    ) -> tuple[TrainState, Any]:
        """The first `count` of a block's updates, `fold` being called after each: one by one."""

        def one(t: jax.Array, carry: Any) -> Any:
            state, folded = carry
            after, values = self.step(state, jax.tree.map(lambda b: b[t], batches))
            return after, fold(folded, state.step, values)

        return jax.lax.fori_loop(0, count, one, (state, start))

    @property
    def end_token(self) -> int | None:
        """The token with which a text that its model writes is at its end, or None."""
        return None

    def encode(self, state: Any, batch: Arrays) -> jax.Array:
        """Features that a model makes of a batch's images: none.

        Raises:
            UserError: always.
        """
        raise UserError(f"a {type(self).__name__} has no features of images to learn on")

    def reason(self, state: Any) -> str:
        """Why a value is not finite, or what may help."""
        return self.settings.remedy

    def diagnose(self, values: Mapping[str, float]) -> list[tuple[bool, str]]:
        """What should hold of some steps' metrics, and whether it does: nothing is checked."""
        return []

    def tokens(self, values: Mapping[str, float]) -> float | None:
        """Tokens of an example that a step learns from, by a row's metrics; None: no text."""
        return None

    def examples(self, state: Any, batch: Arrays) -> list[dict[str, Any]]:
        """What a person should see of the model's answers: nothing."""
        return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The config's `run` section.

    Attributes:
        rows_per_epoch: rows of metrics an epoch; also how often a run can be stopped.
        seeds: runs trained at once, with the seeds seed, seed + 1, ...; metrics are then means and,
            with `_sd` after their names, standard deviations over the seeds.
        keep_last: newest checkpoints to keep.
        keep_best: checkpoints to keep by the best validation metric.
        patience: epochs without a better validation metric after which a run ends, or None. With it
            what a run comes to, and is tested as, is its best state; without, its last.
        wandb: whether rows also go to Weights & Biases, if that is installed.
        init_from: folder of a run whose weights this one begins with, where name and shape are the
            same, or a safetensors file with those of a GPT-2, or None.
    """

    rows_per_epoch: int = 10
    seeds: int = 1
    keep_last: int = 2
    keep_best: int = 1
    patience: int | None = None
    wandb: bool = False
    init_from: str | None = None

    def __post_init__(self) -> None:
        require("run.rows_per_epoch", self.rows_per_epoch, 1)
        require("run.seeds", self.seeds, 1)
        require("run.keep_last", self.keep_last, 1)
        require("run.keep_best", self.keep_best, 0)
        require("run.patience", self.patience, 1)
        if self.patience and not self.keep_best:
            raise UserError(
                "run.patience makes a run's best state its outcome: run.keep_best must be at least "
                "1, got 0"
            )


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything a run is made of, built from its config.

    Attributes:
        seed: of the initial weights, the order of the data and the noise.
        trainer: the trainer.
        train: arrays of the training split.
        validation: arrays of the validation split, or None.
        test: arrays of the test split.
        preprocess: batch as stored -> batch as the trainer takes it.
        epochs: passes over the training split.
        batch_size: examples a step; a last, smaller batch of an epoch is left out.
        run: the run's settings.
        mesh: the devices that it is to be trained on.
        by_seed: whether all arrays have a leading axis more, of a set for each seed.
        streamed: whether the data stay on the disk, and come into memory in parts.
        evaluated_at_once: the most examples that evaluation takes at once, which bounds its memory.
        augment: (batch as the trainer takes it, key) -> the batch to train on, or None.
        start: the state of another run whose weights this one begins with, or None.
        borrowed: whether the initial state holds weights of another run, which may be gone later.
    """

    seed: int
    trainer: TrainerLike
    train: Arrays
    validation: Arrays | None
    test: Arrays
    preprocess: Callable[[Any], Any]
    epochs: int
    batch_size: int
    run: RunSettings
    mesh: MeshSettings = dataclasses.field(default_factory=MeshSettings)
    by_seed: bool = False
    streamed: bool = False
    evaluated_at_once: int = 1000
    augment: Callable[[Any, jax.Array], Any] | None = None
    start: TrainState | None = None
    borrowed: bool = False

    @property
    def steps_per_epoch(self) -> int:
        return self.length(self.train) // self.batch_size

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    def length(self, arrays: Arrays) -> int:
        """The number of examples of a split."""
        return next(iter(arrays.values())).shape[1 if self.by_seed else 0]

    def order(self, epoch: int) -> np.ndarray:
        """Indices of the training examples, by seed and epoch alone.

        Of shape (steps, batch), or (seeds, steps, batch) with several seeds.
        """

        def of(seed: int) -> np.ndarray:
            generator = np.random.default_rng((seed, epoch))
            chosen = generator.permutation(self.length(self.train)).astype(np.int32)
            return chosen[: self.steps_per_epoch * self.batch_size].reshape(-1, self.batch_size)

        orders = [of(self.seed + i) for i in range(self.run.seeds)]
        return orders[0] if self.run.seeds == 1 else np.stack(orders)

    def init(self) -> TrainState:
        """The state before the first step, with a leading axis of seeds if there are several."""
        if self.run.seeds == 1:
            state = self.trainer.init(jax.random.key(self.seed))
        else:
            keys = jnp.stack([jax.random.key(self.seed + i) for i in range(self.run.seeds)])
            state = jax.vmap(self.trainer.init)(keys)
        return state if self.start is None else state.begun_from(self.start)
