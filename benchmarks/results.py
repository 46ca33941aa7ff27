"""Table of results and accuracy by forward passes, from finished runs.

    python -m benchmarks.results runs/* --plot docs/forward_passes.png

A row is read from the run's folder: config and last row of metrics.
"""

import json
import pathlib
from typing import Annotated, Any

import numpy as np
import typer

from grlu.errors import UserError
from trainers.loop.run_dir import RunDirectory, read_metrics

# Published test accuracy (%) by pairs per example: 784-256-10, batch 1, 10 epochs.
PUBLISHED = {1: 90.0, 16: 92.83, 128: 94.45}
FAMILIES = {"reward": "from reward alone", "topk": "… with top-k .25", "delta": "with output delta"}


def row(run: pathlib.Path) -> dict[str, Any]:
    """Return the row of a run, or of a pipeline's last stage; accuracies in %.

    For a sequence of tasks it adds the final mean accuracy and forgetting, in %.
    """
    directory = RunDirectory.open(run)
    config = json.loads(directory.config.read_text())
    if "stages" in config:
        summary = json.loads(directory.summary.read_text()) if directory.summary.is_file() else {}
        found = row(directory.stage(config["stages"][-1]["name"]).path) | {"name": run.name}
        more = summary.get("continual") or {}
        names = [n for n in ("average_accuracy", "forgetting") if n in more]
        return found | {n: (100 * more[n], 100 * more.get(f"{n}_sd", 0.0)) for n in names}
    last = read_metrics(directory.metrics)[-1]
    if not last.get("test_accuracy"):
        raise UserError(f"{run} is not finished; 'grlu resume {run}' trains it to the end")
    return {
        "name": run.name,
        "pairs": config["trainer"].get("samples"),
        "epochs": float(last["epoch"]),
        "seeds": config["run"].get("seeds", 1),
        "accuracy": 100 * float(last["test_accuracy"]),
        "sd": 100 * float(last.get("test_accuracy_sd") or 0),
    }


def draw(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Draw test accuracy by forward passes per example, one line per family."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.size": 12})
    figure, axes = pyplot.subplots(figsize=(8, 4.8), layout="constrained", facecolor="white")
    by_name = {r["name"]: r for r in rows}
    for (family, label), colour in zip(
        FAMILIES.items(), ("#0072b2", "#009e73", "#d55e00"), strict=True
    ):
        own = [by_name[name] for n in PUBLISHED if (name := f"mnist_{family}_n{n}") in by_name]
        passes, mean, sd = (
            np.array([f(r) for r in own])
            for f in (lambda r: 2 * r["pairs"], lambda r: r["accuracy"], lambda r: r["sd"])
        )
        axes.errorbar(passes, mean, sd, marker="o", capsize=3, lw=2, color=colour, label=label)
    pairs = np.array(list(PUBLISHED))
    style: dict[str, Any] = {"color": "#888888", "marker": "x", "ls": ":"}
    axes.plot(2 * pairs, list(PUBLISHED.values()), label="published", **style)
    if backprop := by_name.get("mnist_backprop_full"):
        axes.axhline(backprop["accuracy"], color="#222222", ls="--", lw=1.2)
        axes.text(
            2, backprop["accuracy"] + 0.1, f"backprop {backprop['accuracy']:.2f}", va="bottom"
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(2 * pairs, [str(2 * n) for n in pairs])
    axes.set(
        xlabel="forward passes per example (2N)",
        ylabel="test accuracy (%)",
        title="MNIST, 784-256-10, one example at a time, 10 epochs",
        ylim=(89.5, 99.3),
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main(
    runs: Annotated[list[pathlib.Path], typer.Argument(help="Folders of finished runs.")],
    plot: Annotated[pathlib.Path | None, typer.Option(help="PNG to write.")] = None,
) -> None:
    """Print the table of finished runs as Markdown."""
    rows = [row(run) for run in runs]
    print("| config | N | epochs | seeds | test accuracy (%) |\n|---|---|---|---|---|")
    for r in rows:
        accuracy = f"{r['accuracy']:.2f} ± {r['sd']:.2f}"
        print(
            f"| `{r['name']}` | {r['pairs'] or ''} | {r['epochs']:g} | {r['seeds']} | {accuracy} |"
        )
    tasks = [r for r in rows if "forgetting" in r]
    if tasks:
        print(
            "\n| config | mean accuracy after the last task (%) | forgetting (%) |\n|---|---|---|"
        )
    for r in tasks:
        pairs = (f"{mean:.1f} ± {sd:.1f}" for mean, sd in (r["average_accuracy"], r["forgetting"]))
        print(f"| `{r['name']}` | {' | '.join(pairs)} |")
    if plot:
        draw(rows, plot)


if __name__ == "__main__":
    typer.run(main)
