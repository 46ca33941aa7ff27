"""Time per example of deep, sparse networks that learn from reward alone, and of dense ones.

    taskset -c 0 python -m benchmarks.sparse.cost --plot docs/cost.png

Ten hidden layers, MNIST's shape, one example per step, on one core. All cases alternate in this
process, in the loop of `grlu train`: dense networks by backprop, the same activity in dense arrays
by the generic path (256 pairs), and sparse networks by exact credit and from reward alone. These
run as many directions as they have active units, against the clean pass or in pairs. Their winners
are the largest units of k groups, or of the whole layer in the rows "among all".
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
WIDTHS = (500, WIDTH, 2000, 4000)
DENSE, GENERIC = "dense, backprop", "same activity in dense arrays, reward-only"
EXACT, REWARD = "sparse, exact credit", "sparse, reward-only"


def sparse(width: int, among: str) -> Any:
    """Return the factory of a sparse network."""
    options: Any = {"hidden": (width,) * DEPTH, "winners": (WINNERS,), "among": among}
    return lambda rngs: models.SparseMLP((FEATURES,), CLASSES, **options, rngs=rngs)


def dense(width: int) -> Any:
    """Return the factory of the dense network of the same depth and width."""
    return lambda rngs: models.MLP((FEATURES,), CLASSES, hidden=(width,) * DEPTH, rngs=rngs)


def masked(rngs: Any) -> Any:
    """Return a network with the same activity, as zeros in dense arrays."""
    options: Any = {"activation": "topk", "topk": WINNERS / WIDTH, "topk_mode": "hard"}
    return models.MLP((FEATURES,), CLASSES, hidden=(WIDTH,) * DEPTH, **options, rngs=rngs)


def cases() -> dict[tuple[str, int], tuple[int, Case]]:
    """Return the number of examples and the case of each row, by name and width."""
    backprop = TRAINERS["backprop"].settings(learning_rate=RATE)
    options: Any = {"sigma": 1e-3, "noise": "orthogonal", "learning_rate": RATE}
    auto = TRAINERS["grlu"].settings(samples="auto", **options)
    single = TRAINERS["grlu"].settings(samples="auto", antithetic=False, **options)
    generic = TRAINERS["grlu"].settings(samples=256, site="active", **options)
    found: dict[tuple[str, int], tuple[int, Any, Any]] = {}
    for width in WIDTHS:
        found |= {
            (DENSE, width): (8, backprop, dense(width)),
            (EXACT, width): (1024, backprop, sparse(width, "groups")),
            (REWARD, width): (1024, single, sparse(width, "groups")),
        }
    found |= {
        (GENERIC, WIDTH): (16, generic, masked),
        ("sparse, reward-only, pairs", WIDTH): (1024, auto, sparse(WIDTH, "groups")),
        ("sparse among all, exact credit", WIDTH): (1024, backprop, sparse(WIDTH, "all")),
        ("sparse among all, reward-only", WIDTH): (1024, single, sparse(WIDTH, "all")),
    }
    return {key: (n, Case(key[0], s, m, None)) for key, (n, s, m) in found.items()}


def main(
    turns: Annotated[int, typer.Option(min=1, help="Turns of every case.")] = 5,
    json_path: Annotated[
        pathlib.Path | None, typer.Option("--json", help="File for the numbers.")
    ] = None,
    plot: Annotated[pathlib.Path | None, typer.Option(help="PNG to write.")] = None,
) -> None:
    """Compare sparse networks with dense ones."""
    loops = {key: Ours(case, synthetic(n), n) for key, (n, case) in cases().items()}
    times: dict[tuple[str, int], list[float]] = {key: [] for key in loops}
    for _ in range(turns):
        for key, loop in loops.items():
            times[key].append(loop.turn())
    where = environment() | {"turns": turns}
    caption = ", ".join(f"{key} {value}" for key, value in where.items())
    title = f"{FEATURES}-{DEPTH} x width-{CLASSES}, k = {WINNERS}, batch 1: µs per example"
    table = Table(title=title, caption=caption, box=box.SIMPLE)
    table.add_column("case", no_wrap=True)
    for column in ("width", "median", "min", "max", "dense / this"):
        table.add_column(column, justify="right", no_wrap=True)
    for (name, width), found in times.items():
        middle = statistics.median(found)
        numbers = [f"{width:,}", *(f"{t:,.0f}" for t in (middle, min(found), max(found)))]
        table.add_row(name, *numbers, f"{statistics.median(times[DENSE, width]) / middle:,.1f}")
    Console(width=110).print(table)
    if json_path is not None:
        rows = [{"case": name, "width": w, "µs": times[name, w]} for name, w in times]
        json_path.write_text(json.dumps({**where, "cases": rows}, indent=1) + "\n")
    if plot is not None:
        draw(times, caption, plot)


def draw(times: dict[tuple[str, int], list[float]], caption: str, path: pathlib.Path) -> None:
    """Draw the time per example against the width."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.size": 12})
    figure, axes = pyplot.subplots(figsize=(8, 4.8), layout="constrained")
    for i, name in enumerate((GENERIC, DENSE, REWARD, EXACT)):
        widths = [w for w in WIDTHS if (name, w) in times]
        middle = [statistics.median(times[name, w]) for w in widths]
        low = [m - min(times[name, w]) for m, w in zip(middle, widths, strict=True)]
        high = [max(times[name, w]) - m for m, w in zip(middle, widths, strict=True)]
        axes.errorbar(widths, middle, [low, high], fmt="o-", capsize=3, color=f"C{i}", label=name)
    axes.set(xscale="log", yscale="log", xlabel="units per hidden layer", ylabel="µs per example")
    axes.set_xticks(WIDTHS, [f"{w:,}" for w in WIDTHS])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")
    axes.set_title(f"Ten hidden layers, k = {WINNERS}, one example per step, one core")
    figure.supxlabel(caption, fontsize=8, color="#606060")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    typer.run(main)
