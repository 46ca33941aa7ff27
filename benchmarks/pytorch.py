"""Training throughput compared with the same models in plain PyTorch, and of iterative inference.

    python -m benchmarks.pytorch

Both run in this process, on the same cores and the same random data in memory. They alternate, so
that other load on the machine affects both; the table shows medians over the turns, and the ratio
with its range. Ours is the path of `grlu train`: the trainer's step in the loop's compiled chunk,
with its metrics. PyTorch's is `benchmarks.baselines.plain_torch`: a loop over batches sliced from a
tensor, with its own optimizers. Inference in 20 steps is compared with the same model without it.
Only the comparison needs torch; `--no-torch` skips it.
"""

import dataclasses
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from typing import Annotated, Any

import jax
import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.report import environment
from grlu.errors import UserError
from input_pipeline.data import Data, image_data
from input_pipeline.text.files import rows, token_data
from input_pipeline.tokenizers import Characters
from trainers.api import resolve
from trainers.build import make_experiment
from trainers.loop.compiled import compile_chunk

EXAMPLES, CHARACTERS = 25_600, 65
_PLAIN = ("trainer.epochs=100", "trainer.batch_size=256")


@dataclasses.dataclass(frozen=True)
class Case:
    """Row of the table.

    Attributes:
        name: title of the row.
        config: name of the config.
        overrides: changes to the config.
        steps: number of steps per turn.
        against: name of the case to compare with; None for PyTorch.
    """

    name: str
    config: str
    overrides: tuple[str, ...]
    steps: int
    against: str | None = None


CASES = (
    Case("vae 512-256-15", "mnist_vae_z15", _PLAIN, 100),
    Case("vae 200-200-50", "mnist_vae", (*_PLAIN, "trainer.average=null"), 100),
    Case("gpt 4 x 128", "shakespeare_lm", (), 20),
    Case("svi, 20 steps", "mnist_ivae_kl", _PLAIN, 20, "vae 512-256-15"),
)


def synthetic(name: str) -> Data:
    """Return random data of MNIST's or tiny-shakespeare's shape."""
    generator = np.random.default_rng(0)
    if name == "shakespeare":
        text = "".join(map(chr, range(32, 32 + CHARACTERS)))
        drawn = generator.integers(0, CHARACTERS, 64 * 4000 + 1).astype(np.uint8)
        made = rows(drawn, 64, 64, "training")
        assert made is not None
        return token_data("synthetic", made, None, made, Characters(text))
    images = generator.integers(0, 256, (EXAMPLES, 28, 28, 1), np.uint8)
    whole = {"image": images, "label": np.zeros(EXAMPLES, np.int32)}
    few = {key: array[:256] for key, array in whole.items()}
    options: dict[str, Any] = {"validation": 0, "split_seed": 0, "subset": None}
    options |= {"normalize": "unit", "flatten": True, "binarize": "dynamic"}
    return image_data("synthetic", whole, few, 10, **options)


class Ours:
    """A config's training loop, compiled and run once."""

    def __init__(self, case: Case):
        config = resolve(case.config, case.overrides)
        data = synthetic(config.dataset.name)
        experiment = make_experiment(config, data)
        self._name = case.name
        self.order = experiment.order(0)[: case.steps]
        self._state = jax.device_put(experiment.init())
        self._data = (*jax.device_put((dict(experiment.train), self.order)), case.steps)
        self._chunk: Any = compile_chunk(experiment)
        self.batch, self.train = experiment.batch_size, experiment.train
        self.turn()

    def turn(self) -> float:
        """Train for one more turn; return milliseconds per step."""
        start = time.perf_counter()
        found = jax.block_until_ready(self._chunk(self._state, *self._data))
        self._state, _, (broken, _) = found
        took = time.perf_counter() - start
        if int(broken) >= 0:
            raise UserError(f"{self._name}: a value that is not finite appeared")
        return 1e3 * took / len(self.order)


def theirs(case: Case, ours: Ours) -> Callable[[], float]:
    """Return a function that times a turn in PyTorch, in milliseconds per step."""
    import torch

    from benchmarks.baselines import plain_torch

    torch.manual_seed(0)
    config = resolve(case.config, case.overrides)
    model: torch.nn.Module
    if config.model.name == "gpt":
        data = torch.from_numpy(ours.train["tokens"].astype(np.int64))
        size = config.model.layers, config.model.heads, config.model.width
        model = plain_torch.GPT(CHARACTERS, *size, data.shape[1] - 1)
    else:
        data = torch.from_numpy(ours.train["image"].reshape(EXAMPLES, -1)).float() / 255
        widths = config.model.encoder_hidden, config.model.decoder_hidden
        relu = config.model.decoder_activation == "relu"
        model = plain_torch.VAE(config.model.latent, *widths, relu)
    made = torch.optim.AdamW if config.trainer.optimizer == "adamw" else torch.optim.Adam
    optimizer = made(
        model.parameters(), config.trainer.learning_rate, weight_decay=config.trainer.weight_decay
    )
    train = plain_torch.trained(model, optimizer, data, config.trainer.clip)
    train(ours.order)

    def turn() -> float:
        start = time.perf_counter()
        train(ours.order)
        return 1e3 * (time.perf_counter() - start) / len(ours.order)

    return turn


def measure(case: Case, turns: int, compared: bool) -> tuple[int, list[float], list[float]]:
    """Return a step's units (examples or tokens), and the times of the other and of ours.

    The other's times are empty if it is skipped.
    """
    jax.clear_caches()
    ours = Ours(case)
    other = None
    if case.against is not None:
        other = Ours(next(each for each in CASES if each.name == case.against)).turn
    elif compared:
        other = theirs(case, ours)
    before, after = [], []
    for _ in range(turns):
        before += [] if other is None else [other()]
        after.append(ours.turn())
    units = ours.batch * (ours.train["tokens"].shape[1] - 1 if "tokens" in ours.train else 1)
    return units, before, after


def _row(case: Case, units: int, before: list[float], after: list[float]) -> list[str]:
    """Return medians, rates per second, and our speed over theirs with its range over the turns."""
    ours = statistics.median(after)
    if not before:
        return ["", f"{ours:.2f}", "", f"{1e3 * units / ours:,.0f}", ""]
    theirs = statistics.median(before)
    rates = (f"{1e3 * units / each:,.0f}" for each in (theirs, ours))
    speeds = [b / a for b, a in zip(before, after, strict=True)]
    ratio = f"{statistics.median(speeds):.2f}× ({min(speeds):.2f}-{max(speeds):.2f})"
    return [f"{theirs:.2f}", f"{ours:.2f}", *rates, ratio]


app = typer.Typer(add_completion=False)


@app.command()
def main(
    turns: Annotated[int, typer.Option(min=1, help="Turns of theirs and ours.")] = 7,
    only: Annotated[str, typer.Option(help="Cases whose name has this in it.")] = "",
    compared: Annotated[bool, typer.Option("--torch/--no-torch", help="Beside PyTorch.")] = True,
) -> None:
    """Compare training throughput with the same models in plain PyTorch."""
    cases = [case for case in CASES if only in case.name]
    title = "a training step: milliseconds, and examples or tokens a second"
    made = Table(title=title, box=box.SIMPLE)
    for head in ("", "beside it, ms", "ours", "/s", "ours", "ours is"):
        made.add_column(head, justify="right" if head else "left", no_wrap=True)
    try:
        if compared and importlib.util.find_spec("torch") is None:
            raise UserError(
                "the comparison needs torch, an optional dependency: pip install torch, or give "
                "--no-torch"
            )
        if compared:
            import torch

            torch.set_num_threads(int(environment()["cores"]))
        for case in track(cases, "measuring", console=Console(stderr=True), transient=True):
            units, before, after = measure(case, turns, compared)
            made.add_row(case.name, *_row(case, units, before, after))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    where = environment() | {"turns": turns}
    made.caption = ", ".join(f"{key} {value}" for key, value in where.items())
    Console().print(made)


if __name__ == "__main__":
    app()
