"""Time and memory of a run by number of pairs and seeds.

    python -m benchmarks.growth --json growth.json

One example per step, 784-256-10, on random images of MNIST's size. One seed and eight seeds at once
alternate, and the median over the turns is reported. Memory is what the compiled loop allocates
besides state and data, for all seeds, compared with the size of the parameters and of one step's
noise, N directions for every unit.
"""

import json
import pathlib
import statistics
from typing import Annotated

import jax
import typer
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.report import environment
from benchmarks.speed import CLASSES, HIDDEN, Case, Ours, grlu, mlp, synthetic
from trainers.devices.mesh import one_device_per_core

SEEDS = 8
TOPK = mlp(activation="topk", topk=0.25)
CASES = (
    Case("N=1, ReLU", grlu(1, "pre", "orthogonal"), mlp(), 1),
    Case("N=16, ReLU", grlu(16, "pre", "orthogonal"), mlp(), 16),
    Case("N=128, ReLU", grlu(128, "pre", "orthogonal"), mlp(), 128),
    Case("N=1, top-k .25", grlu(1, "active", "orthogonal"), TOPK, 1),
    Case("N=16, top-k .25", grlu(16, "active", "orthogonal"), TOPK, 16),
    Case("N=128, top-k .25", grlu(128, "active", "orthogonal"), TOPK, 128),
)


def measure(case: Case, examples: int, turns: int) -> list[dict[str, float | str]]:
    """Measure a case with one seed and with several; return a row for each."""
    jax.clear_caches()
    data = synthetic(examples)
    runs = {seeds: Ours(case, data, examples, seeds) for seeds in (1, SEEDS)}
    times: dict[int, list[float]] = {seeds: [] for seeds in runs}
    for _ in range(turns):
        for seeds, run in runs.items():
            times[seeds].append(run.turn())
    ratios = {
        seeds: [one / alone for one, alone in zip(times[seeds], times[1], strict=True)]
        for seeds in runs
    }
    return [
        {
            "case": case.name,
            "seeds": seeds,
            "µs": statistics.median(times[seeds]),
            "ratio": statistics.median(ratios[seeds]),
            "range": f"{min(ratios[seeds]):.1f}-{max(ratios[seeds]):.1f}",
            "compile s": run.compile_seconds,
            "temporary KiB": run.temporary / 2**10,
            "parameters KiB": 4 * run.parameters / 2**10,
            "noise KiB": 4 * seeds * (case.samples or 0) * (HIDDEN + CLASSES) / 2**10,
        }
        for seeds, run in runs.items()
    ]


def main(
    examples: Annotated[int, typer.Option(min=8, help="Examples per turn.")] = 2000,
    turns: Annotated[int, typer.Option(min=1, help="Turns of one seed and of several.")] = 5,
    json_path: Annotated[
        pathlib.Path | None, typer.Option("--json", help="File for the numbers.")
    ] = None,
) -> None:
    """Measure time and memory of a run by number of pairs and seeds."""
    one_device_per_core(SEEDS)
    rows = [
        row
        for case in track(CASES, "measuring", console=Console(stderr=True), transient=True)
        for row in measure(case, examples, turns)
    ]
    where = environment() | {"examples": examples, "turns": turns}
    caption = ", ".join(f"{key} {value}" for key, value in where.items())
    made = Table(title="784-256-10, batch 1: time and memory", caption=caption, box=box.SIMPLE)
    for name in rows[0]:
        made.add_column(name, justify="left" if name == "case" else "right", no_wrap=True)
    for row in rows:
        made.add_row(*[v if isinstance(v, str) else f"{v:,.4g}" for v in row.values()])
    Console(width=110).print(made)
    if json_path is not None:
        json_path.write_text(json.dumps({**where, "cases": rows}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
