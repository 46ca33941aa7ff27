"""Experiments: a trainer, its data and the settings of its run."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grlu.errors import UserError
from trainers.config.values import require
from trainers.devices.mesh import MeshSettings
from trainers.loop.state import TrainState
from trainers.loop.trainer import Arrays, BaseTrainer


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The config's `run` section.

    Attributes:
        rows_per_epoch: rows of metrics per epoch; a run can be stopped only between two rows.
        seeds: number of runs trained at once, with the seeds seed, seed + 1, ...; metrics are then
            means over the seeds, with the standard deviations under their names with `_sd`.
        keep_last: number of newest checkpoints to keep.
        keep_best: number of checkpoints to keep by the best validation metric.
        patience: end the run after this many epochs without a better validation metric, and test
            its best state; None to train to the end and test the last state.
        alignment_every: epochs between two measurements of `alignment`, the cosine of the rule's
            estimate to the exact gradient on 64 training examples; 0 for none.
        wandb: also log rows to Weights & Biases, if it is installed.
        init_from: folder of a run whose weights of the same name and shape to start from, or a
            safetensors file with the weights of a GPT-2; None for new weights.
    """

    rows_per_epoch: int = 10
    seeds: int = 1
    keep_last: int = 2
    keep_best: int = 1
    patience: int | None = None
    alignment_every: int = 0
    wandb: bool = False
    init_from: str | None = None

    def __post_init__(self) -> None:
        require("run.rows_per_epoch", self.rows_per_epoch, 1)
        require("run.seeds", self.seeds, 1)
        require("run.keep_last", self.keep_last, 1)
        require("run.keep_best", self.keep_best, 0)
        require("run.patience", self.patience, 1)
        require("run.alignment_every", self.alignment_every, 0)
        if self.patience and not self.keep_best:
            raise UserError(
                "run.patience tests the best state: run.keep_best must be at least 1, got 0"
            )


@dataclasses.dataclass(frozen=True)
class Experiment:
    """All parts of a run, built from its config.

    Attributes:
        seed: seed of the initial weights, the order of the data and the noise.
        preprocess: maps a stored batch to the trainer's batch.
        batch_size: examples per step; the smaller last batch of an epoch is left out.
        by_seed: True if all arrays have a leading axis of seeds.
        streamed: True if the data stay on disk and are read in parts.
        evaluated_at_once: largest number of examples that evaluation takes at once.
        augment: maps (the trainer's batch, key) to the batch to train on, or None.
        start: state of another run whose weights this one starts with, or None.
        borrowed: True if the initial state holds weights of another run, which may be deleted.
    """

    seed: int
    trainer: BaseTrainer
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
        return self.epochs * self.steps_per_epoch

    def length(self, arrays: Arrays) -> int:
        """Return the number of examples of a split."""
        return next(iter(arrays.values())).shape[1 if self.by_seed else 0]

    def order(self, epoch: int) -> np.ndarray:
        """Return an epoch's indices of training examples, a function of seed and epoch only.

        The shape is (steps, batch), or (seeds, steps, batch) with several seeds.
        """

        def permutation(seed: int) -> np.ndarray:
            generator = np.random.default_rng((seed, epoch))
            chosen = generator.permutation(self.length(self.train)).astype(np.int32)
            return chosen[: self.steps_per_epoch * self.batch_size].reshape(-1, self.batch_size)

        orders = [permutation(self.seed + i) for i in range(self.run.seeds)]
        return orders[0] if self.run.seeds == 1 else np.stack(orders)

    def init(self) -> TrainState:
        """Return the state before the first step, with a leading axis of seeds if several."""
        if self.run.seeds == 1:
            state = self.trainer.init(jax.random.key(self.seed))
        else:
            keys = jnp.stack([jax.random.key(self.seed + i) for i in range(self.run.seeds)])
            state = jax.vmap(self.trainer.init)(keys)
        return state if self.start is None else state.begun_from(self.start)
