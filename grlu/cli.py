"""Command line: the only module that may import every package; no module imports it.

Commands import the packages that they need, so that `grlu --help` does not wait for JAX.
"""

import functools
import json
import logging
import pathlib
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console

import grlu
from grlu.errors import Interrupted, RunError, UserError
from grlu.startup import cache_compilations, require_own_packages

app = typer.Typer(
    help="Train networks from a global reward; resume, evaluate, sample and report runs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Exit status: 0 success, 1 the run failed, 2 wrong input, 130 or 143 stopped by a "
    "signal after saving.",
)
data_app = typer.Typer(help="Prepare data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")

Config = Annotated[
    str,
    typer.Argument(help="Config name (FAMILY:MEMBER for families), or .py, .json or .yaml file."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="For example trainer.samples=16."),
]
Run = Annotated[pathlib.Path, typer.Argument(metavar="RUN", help="Run folder.")]
Coordinator = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Address where the processes of one run meet; 'auto' on a TPU pod.",
    ),
]
Processes = Annotated[int | None, typer.Option(metavar="N", help="Total number of processes.")]
Process = Annotated[int | None, typer.Option(metavar="I", help="Index of this process, from 0.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print no progress bar and no table.")]
Best = Annotated[bool, typer.Option(help="Use the best checkpoint by validation, not the newest.")]


def _version(value: bool) -> None:
    if value:
        print(f"grlu {grlu.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    del version


def _in_one_sentence(command: Callable) -> Callable:
    """Turn errors into one sentence on stderr and an exit status."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        handler = logging.StreamHandler()
        handler.setLevel(logging.WARNING if kwargs.get("quiet") else logging.INFO)
        log = logging.getLogger("grlu")
        log.addHandler(handler)
        log.propagate = False  # Some libraries add a handler to the root logger.
        try:
            cache_compilations()
            require_own_packages()
            command(*args, **kwargs)
        except UserError as error:
            _fail(f"error: {error}", 2)
        except RunError as error:
            _fail(f"error: {error}", 1)
        except Interrupted as error:
            _fail(str(error), 128 + error.signal)
        except KeyboardInterrupt:
            _fail("stopped before there was anything new to save", 130)

    return wrapped


def _fail(sentence: str, status: int) -> None:
    print(sentence, file=sys.stderr)
    raise typer.Exit(status)


@app.command(name="list")
@_in_one_sentence
def list_(
    section: Annotated[
        str | None,
        typer.Argument(help="configs, models, trainers, objectives, rules or 'data sets'."),
    ] = None,
) -> None:
    """List configs, models, trainers, objectives, data sets and rules."""
    from grlu.catalogue import listing

    for line in listing(section):
        print(line)


@app.command()
@_in_one_sentence
def show(config: Config, overrides: Overrides = None) -> None:
    """Print a complete config, with the meaning of each key."""
    import trainers
    from trainers.config.meanings import explained
    from trainers.registry import SECTIONS

    for line in explained(trainers.resolve(config, overrides or ()), SECTIONS):
        print(line)


@app.command()
@_in_one_sentence
def train(
    config: Config,
    overrides: Overrides = None,
    run: Annotated[
        pathlib.Path | None,
        typer.Option("--run", help="Run folder; default runs/NAME-<time>."),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing run.")] = False,
    coordinator: Coordinator = None,
    processes: Processes = None,
    process: Process = None,
    quiet: Quiet = False,
) -> None:
    """Train a config, and test the result once."""
    if coordinator and run is None:
        raise UserError("--coordinator needs --run, a folder that all processes can see")
    _join(coordinator, processes, process)
    import trainers

    result = trainers.train(
        config, run, overrides=overrides or (), overwrite=overwrite, progress=not quiet
    )
    _show(result, quiet)


@app.command()
@_in_one_sentence
def resume(
    run: Run,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[mesh.KEY=VALUE]...", help="Another device mesh."),
    ] = None,
    coordinator: Coordinator = None,
    processes: Processes = None,
    process: Process = None,
    quiet: Quiet = False,
) -> None:
    """Continue a run from its newest checkpoint, bit for bit."""
    _join(coordinator, processes, process)
    import trainers

    _show(trainers.resume(run, overrides=overrides or (), progress=not quiet), quiet)


@app.command()
@_in_one_sentence
def evaluate(
    run: Run,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    best: Best = False,
    samples: Annotated[
        int, typer.Option(min=1, help="For a VAE: importance samples k of the likelihood.")
    ] = 500,
    images: Annotated[
        int, typer.Option(min=1, help="For a VAE: test images of the likelihood.")
    ] = 1000,
    refined: Annotated[
        bool, typer.Option("--refined", help="For a VAE: sample from refined posteriors.")
    ] = False,
) -> None:
    """Evaluate a run on the test split."""
    import trainers
    from trainers.evaluation.generative import Effort
    from trainers.loop.console import corruptions_table, results_table, tasks_table

    metrics = trainers.evaluate(run, best=best, effort=Effort(samples, images, refined))
    if as_json:
        print(json.dumps(metrics))
    else:
        Console().print(results_table(f"{metrics['run']}, step {metrics['step']}", metrics))
        if "continual" in metrics:
            Console().print(tasks_table(metrics["continual"]))
        if "out_of_distribution" in metrics:
            Console().print(corruptions_table(metrics["out_of_distribution"]))


@app.command()
@_in_one_sentence
def sample(
    run: Run,
    prompt: Annotated[str, typer.Option(help="Text to continue.")] = "",
    tokens: Annotated[
        int | None, typer.Option(help="New tokens; by default as many as the model's block holds.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Number of texts, separated by empty lines.")] = 1,
    temperature: Annotated[float, typer.Option(help="Divisor of the logits.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Sample from the k likeliest tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample from the likeliest tokens with total mass p.")
    ] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Take the likeliest token.")] = False,
    seed: Annotated[int, typer.Option(help="Sampling seed.")] = 0,
    best: Best = False,
) -> None:
    """Sample text from the language model of a run."""
    import trainers

    how: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    how |= {"greedy": greedy, "seed": seed, "best": best}
    texts = trainers.generate(run, prompt, tokens=tokens, samples=samples, **how)
    print("\n\n".join(texts))


@app.command(name="report")
@_in_one_sentence
def report_(
    runs: Annotated[list[pathlib.Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    out: Annotated[
        pathlib.Path | None,
        typer.Option(help="Report folder; default RUN/report, or reports-NAMES for several runs."),
    ] = None,
) -> None:
    """Write figures and one HTML page, with several runs side by side."""
    from reports import write_report

    print(write_report(runs, out))


@data_app.command()
@_in_one_sentence
def prepare(
    name: Annotated[
        str, typer.Argument(help="mnist, fashion_mnist, kmnist, cifar10, shakespeare, tfds:NAME.")
    ],
    source: Annotated[
        pathlib.Path | None,
        typer.Option(
            "--from",
            help="Folder with IDX .gz files, or with tinyshakespeare.txt, instead of a download.",
        ),
    ] = None,
    data_dir: Annotated[
        pathlib.Path | None,
        typer.Option(help="Folder of the data sets; default $TFDS_DATA_DIR or TFDS's own."),
    ] = None,
) -> None:
    """Download a data set through TFDS, or build it from local files."""
    import input_pipeline

    folder, written = input_pipeline.prepare(name, source=source, data_dir=data_dir)
    print(f"{'prepared' if written else 'already there'}: {folder}")


def _join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Join the processes of a distributed run."""
    if coordinator:
        from trainers.devices.processes import join

        join(coordinator, processes, process)
    elif processes is not None or process is not None:
        raise UserError("--processes and --process need --coordinator HOST:PORT")


def _show(result: Any, quiet: bool) -> None:
    from trainers.loop.console import results_table

    if not quiet:
        Console().print(results_table(f"step {result.step}", result.metrics))
    print(f"run: {result.run_dir}")


def main() -> None:
    """Run the `grlu` command."""
    app()


if __name__ == "__main__":
    main()
