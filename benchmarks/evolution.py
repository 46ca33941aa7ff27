"""Time per generation of evolution with low-rank and full-rank noise, and with evosax.

    python -m benchmarks.evolution --json evolution.json

784-128-10, all members on the same 64 examples of MNIST's shape (`--batch` changes it). Our
generation is the trainer's whole step, optimizer and metrics included, in the loop's compiled
chunk; that of evosax is `Open_ES` with the same optimizer, also many generations per call. All
cases alternate in this process after compilation, so that other load on the machine affects all of
them; the table shows medians over the turns, and the range of the ratio to the first row. Full and
lowest rank are timed twice: in chunks of 64 members, whose noise is sampled again for the update,
and with the whole population at once, whose noise is kept. Without evosax its row is left out.
"""

import dataclasses
import functools
import importlib.util
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax
import typer
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.report import environment
from benchmarks.speed import CLASSES, FEATURES, mlp, synthetic
from trainers import TRAINERS
from trainers.gradient.trainer import Trainer
from trainers.loop.compiled import compile_chunk
from trainers.loop.experiment import Experiment, RunSettings

HIDDEN, RATE, SIGMA = 128, 0.01, 0.05


@dataclasses.dataclass(frozen=True)
class Case:
    """Row of the table: a rank and a chunk of members."""

    name: str
    rank: int | None
    chunk: int


@dataclasses.dataclass(frozen=True)
class Timing:
    """Measurements: ms per generation for each turn, compile time in s, temporary bytes."""

    case: str
    generation: list[float]
    compile: float
    temporary: int

    @property
    def median(self) -> float:
        return statistics.median(self.generation)


def cases(population: int) -> tuple[Case, ...]:
    return (
        Case("full rank", None, 64),
        Case("full rank, all at once", None, population),
        Case("rank 1", 1, 64),
        Case("rank 1, all at once", 1, population),
        Case("rank 4, all at once", 4, population),
        Case("rank 16, all at once", 16, population),
    )


def compiled(case: Case, population: int, batch: int) -> tuple[Callable[[int], float], Timing]:
    """Return a function that times generations in ms each, and the case's other numbers."""
    data = synthetic(batch)
    options: dict[str, Any] = {"population": population, "rank": case.rank, "chunk": case.chunk}
    options |= {"optimizer": "adam", "learning_rate": RATE, "sigma": SIGMA}
    settings = TRAINERS["evolution"].settings(batch_size=batch, **options)
    experiment = Experiment(
        seed=0,
        trainer=Trainer(settings, mlp(HIDDEN), 1000, data),
        train=data.train,
        validation=None,
        test={},
        preprocess=data.preprocess,
        epochs=1,
        batch_size=batch,
        run=RunSettings(),
    )
    train = jax.device_put(data.train)
    rows = experiment.order(0).repeat(1000, axis=0)
    state = experiment.init()
    start = time.perf_counter()
    chunk: Any = compile_chunk(experiment)
    program = chunk.func.lower(*chunk.args, state, train, rows, 1).compile()
    seconds = time.perf_counter() - start

    def run(generations: int) -> float:
        nonlocal state
        start = time.perf_counter()
        found = program(*chunk.args, state, train, rows, generations)
        state, _, (broken, _) = jax.block_until_ready(found)
        if broken >= 0:
            raise RuntimeError(f"{case.name}: a value that is not finite appeared")
        return 1e3 * (time.perf_counter() - start) / generations

    run(1)
    return run, Timing(case.name, [], seconds, program.memory_analysis().temp_size_in_bytes)


def evosax(population: int, batch: int) -> tuple[Callable[[int], float], Timing]:
    """Return the same for `Open_ES` of evosax, with the network in plain JAX."""
    from evosax.algorithms import Open_ES

    data = synthetic(batch)
    examples = jax.tree.map(jnp.asarray, data.preprocess(data.train))
    keys = jax.random.split(jax.random.key(0), 3)
    mean = {
        "w1": jax.random.normal(keys[0], (FEATURES, HIDDEN)) / FEATURES**0.5,
        "b1": jnp.zeros(HIDDEN),
        "w2": jax.random.normal(keys[1], (HIDDEN, CLASSES)) / HIDDEN**0.5,
        "b2": jnp.zeros(CLASSES),
    }
    strategy = Open_ES(
        population, mean, optimizer=optax.adam(RATE), std_schedule=optax.constant_schedule(SIGMA)
    )
    params = strategy.default_params

    def loss(member: Any) -> jax.Array:
        hidden = jax.nn.relu(examples["image"] @ member["w1"] + member["b1"][None])
        logits = hidden @ member["w2"] + member["b2"][None]
        return optax.softmax_cross_entropy_with_integer_labels(logits, examples["label"]).mean()

    def generation(i: jax.Array, carried: Any) -> Any:
        state, key = carried
        key, ask, tell = jax.random.split(key, 3)
        members, state = strategy.ask(ask, state, params)
        state, _ = strategy.tell(tell, members, jax.vmap(loss)(members), state, params)
        return state, key

    @functools.partial(jax.jit, donate_argnums=0)
    def generations(carried: Any, count: jax.Array) -> Any:
        return jax.lax.fori_loop(0, count, generation, carried)

    carried = (strategy.init(keys[2], mean, params), keys[2])
    start = time.perf_counter()
    program: Any = generations.lower(carried, 1).compile()
    seconds = time.perf_counter() - start

    def run(count: int) -> float:
        nonlocal carried
        start = time.perf_counter()
        carried = jax.block_until_ready(program(carried, count))
        return 1e3 * (time.perf_counter() - start) / count

    run(1)
    memory = program.memory_analysis().temp_size_in_bytes
    return run, Timing("full rank, evosax Open_ES", [], seconds, memory)


def table(timings: list[Timing], title: str, caption: str) -> Table:
    """Return a table with ratios to the first row, and their ranges over the turns."""
    made = Table(title=title, caption=caption, box=box.SIMPLE)
    made.add_column("case", no_wrap=True)
    for heading in ("ms a generation", "times faster", "compile, s", "MiB"):
        made.add_column(heading, justify="right", no_wrap=True)
    for t in timings:
        ratios = [a / b for a, b in zip(timings[0].generation, t.generation, strict=True)]
        made.add_row(
            t.case,
            f"{t.median:,.1f}",
            f"{statistics.median(ratios):.3g} ({min(ratios):.3g}-{max(ratios):.3g})",
            f"{t.compile:.1f}",
            f"{t.temporary / 2**20:.0f}",
        )
    return made


def main(
    population: Annotated[int, typer.Option(min=2, help="Members, even.")] = 512,
    batch: Annotated[int, typer.Option(min=1, help="Examples that each member sees.")] = 64,
    generations: Annotated[int, typer.Option(min=1, help="Of low rank in a turn.")] = 10,
    turns: Annotated[int, typer.Option(min=1, help="Turns of all cases.")] = 5,
    json_path: Annotated[
        pathlib.Path | None, typer.Option("--json", help="File for the numbers.")
    ] = None,
) -> None:
    """Compare the time per generation with low-rank and with full-rank noise."""
    console = Console(stderr=True)
    # A generation at full rank takes long enough to be timed by itself.
    made = [
        (*compiled(case, population, batch), 1 if case.rank is None else generations)
        for case in track(cases(population), "compiling", console=console, transient=True)
    ]
    if importlib.util.find_spec("evosax"):
        made.insert(0, (*evosax(population, batch), 1))
    for _ in track(range(turns), "measuring", console=console, transient=True):
        for run, timing, count in made:
            timing.generation.append(run(count))
    timings = [timing for _, timing, _ in made]
    where = environment() | {"generations": generations, "turns": turns}
    caption = ", ".join(f"{key} {value}" for key, value in where.items())
    title = f"784-{HIDDEN}-10, population {population}, batch {batch}"
    Console(width=110).print(table(timings, title, caption))
    if json_path is not None:
        rows = [dataclasses.asdict(t) for t in timings]
        shape = {"population": population, "batch": batch}
        json_path.write_text(json.dumps({**where, **shape, "cases": rows}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
