"""Time per example of deep, sparse networks that learn from reward alone, and of dense ones.

    taskset -c 0 python -m benchmarks.sparse.cost --json sparse.json

Ten hidden layers, MNIST's shape, one example per step, on one core. All cases alternate in this
process, in the loop of `grlu train`: the dense network by backprop, the same activity in a dense
array by the generic path, and the sparse network by exact credit and from reward alone. It then
runs as many directions as it has active units, in pairs or one-sided against the clean pass. The
last rows double and quadruple the width of "groups, one-sided" at equal k.
"""

import json
import pathlib
import statistics
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

import models
from benchmarks.report import environment
from benchmarks.speed import CLASSES, FEATURES, Case, Ours, synthetic
from trainers import TRAINERS

DEPTH, WIDTH, WINNERS, RATE = 10, 1000, 20, 1e-3


def sparse(width: int, among: str) -> Any:
    """Return the factory of a sparse network."""
    options: Any = {"hidden": (width,) * DEPTH, "winners": (WINNERS,), "among": among}
    return lambda rngs: models.SparseMLP((FEATURES,), CLASSES, **options, rngs=rngs)


def dense(rngs: Any) -> Any:
    """Return the dense network of the same depth and width."""
    return models.MLP((FEATURES,), CLASSES, hidden=(WIDTH,) * DEPTH, rngs=rngs)


def masked(rngs: Any) -> Any:
    """Return a network with the same activity, as zeros in dense arrays."""
    options: Any = {"activation": "topk", "topk": WINNERS / WIDTH, "topk_mode": "hard"}
    return models.MLP((FEATURES,), CLASSES, hidden=(WIDTH,) * DEPTH, **options, rngs=rngs)


def cases() -> dict[str, tuple[int, Case]]:
    """Return the number of examples and the case of each row."""
    backprop = TRAINERS["backprop"].settings(learning_rate=RATE)
    options: Any = {"sigma": 1e-3, "noise": "orthogonal", "learning_rate": RATE}
    auto = TRAINERS["grlu"].settings(samples="auto", **options)
    single = TRAINERS["grlu"].settings(samples="auto", antithetic=False, **options)
    generic = TRAINERS["grlu"].settings(samples=256, site="active", **options)
    found: dict[str, tuple[int, Any, Any]] = {
        "dense, backprop": (16, backprop, dense),
        "generic path, N = 256": (16, generic, masked),
    }
    for among in ("groups", "all"):
        name = f"sparse, {among}"
        found |= {
            f"{name}, exact credit": (1024, backprop, sparse(WIDTH, among)),
            f"{name}, pairs": (1024, auto, sparse(WIDTH, among)),
            f"{name}, one-sided": (1024, single, sparse(WIDTH, among)),
        }
    for width in (2 * WIDTH, 4 * WIDTH):
        name = f"… width {width:,}"
        found[name] = (1024, single, sparse(width, "groups"))
    return {name: (n, Case(name, s, m, None)) for name, (n, s, m) in found.items()}


def main(
    turns: Annotated[int, typer.Option(min=1, help="Turns of every case.")] = 5,
    json_path: Annotated[
        pathlib.Path | None, typer.Option("--json", help="File for the numbers.")
    ] = None,
) -> None:
    """Compare sparse networks with dense ones."""
    loops = {name: Ours(case, synthetic(n), n) for name, (n, case) in cases().items()}
    times: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(turns):
        for name, loop in loops.items():
            times[name].append(loop.turn())
    where = environment() | {"turns": turns}
    caption = ", ".join(f"{key} {value}" for key, value in where.items())
    title = f"{FEATURES}-{DEPTH} x {WIDTH}-{CLASSES}, k = {WINNERS}, batch 1: µs per example"
    table = Table(title=title, caption=caption, box=box.SIMPLE)
    table.add_column("case", no_wrap=True)
    for column in ("median", "min", "max", "dense / this"):
        table.add_column(column, justify="right", no_wrap=True)
    base = statistics.median(times["dense, backprop"])
    for name, found in times.items():
        middle = statistics.median(found)
        table.add_row(
            name,
            *(f"{t:,.0f}" for t in (middle, min(found), max(found))),
            f"{base / middle:,.1f}",
        )
    Console().print(table)
    if json_path is not None:
        json_path.write_text(json.dumps({**where, "cases": times}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
