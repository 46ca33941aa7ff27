"""Cosine of each estimator to the exact gradient, by number of pairs N.

    python -m benchmarks.alignment --plot docs/alignment.png

At initialisation, 784-256-10 (ReLU), MNIST's training images, one example at a time: the estimate
and the exact gradient of every parameter are compared example by example, and the mean cosine over
the examples, with its standard error, is reported for all parameters and for the hidden layer's.
The table's last column is the cosine of the mean estimate of all examples to their mean gradient,
for the hidden layer.
"""

import json
import pathlib
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import typer
from flax import nnx
from rich import box
from rich.console import Console
from rich.table import Table

import grlu
import input_pipeline
import models
from benchmarks.report import environment
from grlu.rules.rule import pure_objective
from trainers.objectives.registry import Classification, log_likelihood

ACTIVE: dict[str, Any] = {"site": "active", "noise": "orthogonal"}
ESTIMATORS: dict[str, dict[str, Any]] = {
    "after the activation, as published": {"site": "post", "noise": "gaussian"},
    "Gaussian": {"noise": "gaussian"},
    "Rademacher": {},
    "Gaussian, least squares": {"noise": "gaussian", "ridge": 1e-3},
    "orthogonal": {"noise": "orthogonal"},
    "Rademacher, active units": {"site": "active"},
    "orthogonal, active units": ACTIVE,
    "orthogonal, active, layers apart": ACTIVE | {"layers": "apart"},
    "orthogonal, active, output delta": ACTIVE | {"output": "delta"},
}
SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SHOWN = (1, 16, 128)


def cosines(rule: grlu.Rule, batches: Any) -> np.ndarray:
    """Return cosines over all parameters and over the hidden layer's, shape (examples + 1, 2).

    The last row compares the means over the examples.
    """
    model = models.MLP((784,), 10, hidden=(256,), rngs=nnx.Rngs(0))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    objective = pure_objective(graphdef, Classification(log_likelihood), has_aux=True)

    def both(batch: Any, key: jax.Array) -> list[Any]:
        found = [each.estimate(objective, params, rest, batch, key)[:3] for each in rules]
        return [nnx.to_pure_dict(ascent)["layers"] for _, _, ascent in found]

    def compared(pair: list[Any]) -> jax.Array:
        def cosine(a: Any, b: Any) -> jax.Array:
            a, b = (jnp.concatenate([x.ravel() for x in jax.tree.leaves(t)]) for t in (a, b))
            return a @ b / (jnp.linalg.norm(a) * jnp.linalg.norm(b) + 1e-30)

        return jnp.stack([cosine(*pair), cosine(pair[0][0], pair[1][0])])

    @jax.jit
    def over(batches: Any, keys: jax.Array) -> jax.Array:
        def body(total: Any, given: Any) -> Any:
            pair = both(*given)
            return jax.tree.map(jnp.add, total, pair), compared(pair)

        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape), jax.eval_shape(both, *first))
        total, each = jax.lax.scan(body, zeros, (batches, keys))
        return jnp.concatenate([each, compared(total)[None]])

    keys = jax.random.split(jax.random.key(1), len(batches["label"]))
    rules, first = (rule, grlu.Backprop()), jax.tree.map(lambda x: x[0], (batches, keys))
    return np.asarray(over(batches, keys))


def main(
    examples: Annotated[int, typer.Option(help="Images to compare on.")] = 200,
    sigma: Annotated[float, typer.Option(help="Scale of the noise.")] = 0.02,
    plot: Annotated[pathlib.Path | None, typer.Option(help="PNG to write.")] = None,
    json_path: Annotated[pathlib.Path | None, typer.Option("--json", help="File to write.")] = None,
) -> None:
    """Compare estimates with the exact gradient, for growing N."""
    data = input_pipeline.load(name="mnist")
    batch = data.preprocess({k: v[:examples] for k, v in data.train.items()})
    batches = jax.tree.map(lambda x: jnp.asarray(x)[:, None], batch)
    rows = []
    for name, options in ESTIMATORS.items():
        for samples in SAMPLES:
            rule = grlu.NodePerturbation(samples, sigma, **options)
            found, together = np.split(cosines(rule, batches), [examples])
            mean, error = found.mean(0), found.std(0, ddof=1) / np.sqrt(examples)
            rows.append(
                {
                    "estimator": name,
                    "N": samples,
                    "all": float(mean[0]),
                    "all_error": float(error[0]),
                    "hidden": float(mean[1]),
                    "hidden_error": float(error[1]),
                    "hidden_mean": float(together[0, 1]),
                }
            )
    caption = ", ".join(f"{k} {v}" for k, v in environment().items() if k != "peak MiB")
    caption += f"; {examples} examples, sigma {sigma:g}"
    Console(width=110).print(table(rows, caption))
    if json_path:
        json_path.write_text(json.dumps({"settings": caption, "rows": rows}, indent=1))
    if plot:
        draw(rows, caption, plot)


def table(rows: list[dict[str, Any]], caption: str) -> Table:
    """Return a table of cosines at some N, one row per estimator."""
    title = "cosine to the exact gradient: all parameters / hidden layer"
    made = Table(title=title, caption=caption, box=box.SIMPLE)
    made.add_column("estimator", no_wrap=True)
    for samples in SHOWN:
        made.add_column(f"N={samples}", justify="right", no_wrap=True)
    made.add_column("mean, N=128", justify="right", no_wrap=True)
    for name in ESTIMATORS:
        own = {r["N"]: r for r in rows if r["estimator"] == name}
        cells = [f"{own[n]['all']:.2f}/{own[n]['hidden']:.2f}" for n in SHOWN]
        made.add_row(name, *cells, f"{own[128]['hidden_mean']:.3f}")
    return made


def draw(rows: list[dict[str, Any]], caption: str, path: pathlib.Path) -> None:
    """Draw cosine against N, all parameters left and the hidden layer's right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.size": 11})
    figure, panels = pyplot.subplots(
        1, 2, figsize=(11, 4.8), sharey=True, layout="constrained", facecolor="white"
    )
    for axes, which in zip(panels, ("all", "hidden"), strict=True):
        for i, name in enumerate(ESTIMATORS):
            own = [r for r in rows if r["estimator"] == name]
            n, mean, error = (np.array([r[k] for r in own]) for k in ("N", which, f"{which}_error"))
            axes.plot(n, mean, marker="o", markersize=4, label=name, color=f"C{i}")
            axes.fill_between(n, mean - error, mean + error, color=f"C{i}", alpha=0.2, lw=0)
        axes.set_xscale("log", base=2)
        axes.set_xticks(SAMPLES, [str(n) for n in SAMPLES])
        axes.set(xlabel="pairs per example N", ylim=(0, 1.02))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="cosine to the exact gradient", title="all parameters")
    panels[1].set(title="hidden layer")
    lines, names = panels[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside right center", frameon=False)
    figure.supxlabel(caption, fontsize=8, color="#606060")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    typer.run(main)
