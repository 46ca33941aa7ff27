"""Time per example of the training loop and of the original algorithm.

    python -m benchmarks.speed --json speed.json --plot speed.png

Both run in this process after compilation, on the same examples of MNIST's shape, one example per
step (784-256-10). They alternate, so that other load on the machine affects both, and the median
over the turns is reported. The original is one compiled call per example; ours is the path of `grlu
train`: the trainer's step in the loop's compiled chunk, with its metrics.
"""

import dataclasses
import functools
import importlib.util
import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Annotated, Any

import jax
import numpy as np
import typer
from flax import nnx
from rich.console import Console
from rich.progress import track

import input_pipeline
import models
from benchmarks.baselines import original
from benchmarks.report import Timing, environment, plot, table
from grlu.errors import UserError
from input_pipeline.data import Data
from input_pipeline.preprocess import Preprocess
from trainers import TRAINERS
from trainers.devices.mesh import Seeds
from trainers.gradient.settings import GradientSettings
from trainers.gradient.trainer import Trainer
from trainers.loop.compiled import compile_chunk
from trainers.loop.experiment import Experiment, RunSettings

FEATURES, HIDDEN, CLASSES = 784, 256, 10
SIGMA, ORIGINAL_RATE, RATE = 0.1, 0.1, 1e-3


def mlp(hidden: int = HIDDEN, **options: Any) -> Callable[[nnx.Rngs], Any]:
    """Return a factory of our network of MNIST's shape with a hidden layer."""
    return lambda rngs: models.MLP((FEATURES,), CLASSES, hidden=(hidden,), rngs=rngs, **options)


def sequential(rngs: nnx.Rngs) -> Any:
    """Return a plain NNX network of the same size."""
    return nnx.Sequential(
        nnx.Linear(FEATURES, HIDDEN, rngs=rngs), nnx.relu, nnx.Linear(HIDDEN, CLASSES, rngs=rngs)
    )


@dataclasses.dataclass(frozen=True)
class Case:
    """Row of the table.

    Attributes:
        name: title of the row.
        settings: settings of our trainer.
        make_model: factory of our network.
        samples: N of the original, or None to compare backprop with backprop.
        winners: number of winners in the original's top-k, or None for ReLU.
    """

    name: str
    settings: GradientSettings
    make_model: Callable[[nnx.Rngs], Any]
    samples: int | None
    winners: int | None = None


def grlu(samples: int, site: str, noise: str) -> GradientSettings:
    options: dict[str, Any] = {"samples": samples, "sigma": SIGMA, "site": site, "noise": noise}
    return TRAINERS["grlu"].settings(learning_rate=RATE, **options)


TOPK = mlp(activation="topk", topk=0.5)
CASES = (
    Case("N=1, top-k .5", grlu(1, "active", "orthogonal"), TOPK, 1, HIDDEN // 2),
    Case("N=16, top-k .5", grlu(16, "active", "rademacher"), TOPK, 16, HIDDEN // 2),
    Case("N=128, ReLU", grlu(128, "pre", "orthogonal"), mlp(), 128),
    Case("N=128, top-k .5", grlu(128, "active", "rademacher"), TOPK, 128, HIDDEN // 2),
    Case("N=128, nnx.Sequential", grlu(128, "pre", "orthogonal"), sequential, 128),
    Case("backprop, ReLU", TRAINERS["backprop"].settings(learning_rate=RATE), mlp(), None),
)


class Ours:
    """A case's training loop, compiled and run once.

    Attributes:
        compile_seconds: time to trace and compile it.
        temporary: bytes that it needs besides state and data.
        parameters: number of parameters, of all seeds.
    """

    def __init__(self, case: Case, data: Data, examples: int, seeds: int = 1):
        self._name, self._examples = case.name, examples
        experiment = Experiment(
            seed=0,
            trainer=Trainer(case.settings, case.make_model, examples, data),
            train=data.train,
            validation=None,
            test={},
            preprocess=data.preprocess,
            epochs=1,
            batch_size=1,
            run=RunSettings(seeds=seeds),
        )
        where = Seeds(seeds)
        self._state: Any = where.state(experiment.init())
        arrays = where.data(data.train, by_seed=False)
        order = where.state(experiment.order(0))
        self._data = (arrays, order, examples)
        start = time.perf_counter()
        chunk: Any = compile_chunk(experiment)
        program = chunk.func.lower(*chunk.args, self._state, *self._data).compile()
        self._chunk = functools.partial(program, *chunk.args)
        self.compile_seconds = time.perf_counter() - start
        self.temporary = program.memory_analysis().temp_size_in_bytes
        self.parameters = sum(p.size for p in jax.tree.leaves(self._state.params))
        self.turn()

    def turn(self) -> float:
        """Train on the examples once more; return µs per example (of all seeds at once)."""
        start = time.perf_counter()
        found = jax.block_until_ready(self._chunk(self._state, *self._data))
        self._state, _, (broken, _) = found
        took = time.perf_counter() - start
        if (np.asarray(broken) >= 0).any():
            raise UserError(
                f"{self._name}: a value that is not finite appeared, times mean nothing"
            )
        return 1e6 * took / self._examples


def measure(case: Case, data: Data, examples: int, turns: int) -> Timing:
    """Time a case: in each turn a quarter of `examples` by the original, then all by ours."""
    jax.clear_caches()  # The previous case may have compiled the same program.
    calls = max(1, examples // 4)
    learn: Callable[..., original.Params] = functools.partial(
        original.train_by_backprop, learning_rate=RATE
    )
    if case.samples is not None:
        learn = functools.partial(
            original.train,
            key=jax.random.key(1),
            learning_rate=ORIGINAL_RATE,
            sigma=SIGMA,
            samples=case.samples,
            winners=case.winners,
        )
    batch = data.preprocess(jax.tree.map(lambda a: a[:calls], data.train))
    images, labels = np.asarray(batch["image"]), np.asarray(batch["label"])
    params = original.init(jax.random.key(0), (FEATURES, HIDDEN, CLASSES))
    start = time.perf_counter()
    params = learn(params, images[:1], labels[:1])
    original_compile = time.perf_counter() - start

    ours = Ours(case, data, examples)
    originals, times = [], []
    for _ in range(turns):
        start = time.perf_counter()
        params = learn(params, images, labels)
        originals.append(1e6 * (time.perf_counter() - start) / calls)
        times.append(ours.turn())
    return Timing(
        case.name,
        originals,
        times,
        original_compile,
        ours.compile_seconds,
        ours.temporary,
        ours.parameters,
    )


def synthetic(examples: int) -> Data:
    """Return random images and labels of MNIST's shape and type."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (examples, 28, 28, 1), np.uint8)
    labels = generator.integers(0, CLASSES, examples, np.int32)
    return Data(
        name="synthetic",
        train={"image": images, "label": labels},
        validation=None,
        test={},
        preprocess=Preprocess(maximum=255.0, mean=(0.1307,), std=(0.3081,), flatten=True),
        example_shape=(FEATURES,),
        num_classes=CLASSES,
    )


def main(
    examples: Annotated[int, typer.Option(min=8, help="Examples per turn of ours.")] = 2000,
    turns: Annotated[int, typer.Option(min=1, help="Turns of original and ours.")] = 5,
    data_dir: Annotated[
        str | None, typer.Option(help="TFDS folder with MNIST; without, synthetic images.")
    ] = None,
    json_path: Annotated[
        pathlib.Path | None, typer.Option("--json", help="File for the numbers.")
    ] = None,
    plot_path: Annotated[
        pathlib.Path | None, typer.Option("--plot", help="File for the picture.")
    ] = None,
) -> None:
    """Compare the time per example of the training loop and of the original algorithm."""
    try:
        if plot_path is not None and importlib.util.find_spec("matplotlib") is None:
            raise UserError("--plot needs matplotlib: pip install matplotlib")
        data = synthetic(examples)
        if data_dir is not None:
            data = input_pipeline.load("mnist", data_dir=data_dir, validation=0, subset=examples)
        timings = [
            measure(case, data, examples, turns)
            for case in track(CASES, "measuring", console=Console(stderr=True), transient=True)
        ]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    where = environment() | {"data": data.name, "examples": examples, "turns": turns}
    caption = ", ".join(f"{key} {value}" for key, value in where.items())
    Console(width=110).print(table(timings, caption))
    if json_path is not None:
        rows = [dataclasses.asdict(t) for t in timings]
        json_path.write_text(json.dumps({**where, "cases": rows}, indent=1) + "\n")
    if plot_path is not None:
        plot(timings, caption, plot_path)


if __name__ == "__main__":
    typer.run(main)
