"""The command line. It alone may import every room, and nothing imports it.

Rooms are imported inside the commands, so that `grlu --help` waits for none of them.
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

from grlu.errors import Interrupted, RunError, UserError

app = typer.Typer(
    help="Networks that learn from a global reward: train, resume, evaluate, sample.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    epilog="Exit status: 0 done, 1 the run broke, 2 a mistake in what was given, "
    "130 or 143 stopped by a signal after saving.",
)
data_app = typer.Typer(help="Data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")

Run = Annotated[pathlib.Path, typer.Argument(metavar="RUN", help="Folder of a run.")]
Coordinator = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Where several processes meet, each started by this command; 'auto' on a TPU pod.",
    ),
]
Processes = Annotated[int | None, typer.Option(metavar="N", help="How many they are.")]
Process = Annotated[int | None, typer.Option(metavar="I", help="Which this is, from 0.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar and no table.")]


def _in_one_sentence(command: Callable) -> Callable:
    """Turns errors into a sentence on stderr and an exit status."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        handler = logging.StreamHandler()
        handler.setLevel(logging.WARNING if kwargs.get("quiet") else logging.INFO)
        log = logging.getLogger("grlu")
        log.addHandler(handler)
        log.propagate = False  # Some libraries give the root logger a handler of their own.
        try:
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
def list_() -> None:
    """List configs, models, trainers, objectives, rules and data sets."""
    import grlu
    import input_pipeline
    import models
    import trainers
    from trainers.config import config_names

    def summary(thing: Any) -> str:
        return (thing.__doc__ or "").strip().split("\n")[0]

    named = (getattr(grlu, name) for name in grlu.__all__)
    rules = [
        thing
        for thing in named
        if isinstance(thing, type) and issubclass(thing, grlu.Rule) and thing is not grlu.Rule
    ]
    sections = {
        "configs": config_names(),
        "models": {name: summary(m) for name, m in models.MODELS.items()},
        "trainers": {name: summary(t) for name, t in trainers.TRAINERS.items()},
        "objectives": {name: summary(o) for name, o in trainers.OBJECTIVES.items()},
        "rules": {f"grlu.{r.__name__}": summary(r) for r in rules},
        "data sets": {name: summary(d) for name, d in input_pipeline.DATASETS.items()}
        | {
            "tfds:NAME": "Any image-classification set of TFDS.",
            "folder:PATH": "A folder of images of any size, streamed from disk.",
            "text:PATH": "Any text in a file.",
            "preferences:PATH": "Pairs of completions of which one was preferred, as JSON lines.",
        },
    }
    width = max(len(name) for entries in sections.values() for name in entries)
    for title, entries in sections.items():
        print(title)
        for name, text in entries.items():
            print(f"  {name:{width}}  {text}")


@app.command()
@_in_one_sentence
def train(
    config: Annotated[
        str, typer.Argument(help="Name of a config, or path of a .py, .json or .yaml file.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Such as trainer.samples=16."),
    ] = None,
    run: Annotated[
        pathlib.Path | None,
        typer.Option("--run", help="Folder of the run; default runs/NAME-<time>."),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the run that is in the folder.")] = False,
    coordinator: Coordinator = None,
    processes: Processes = None,
    process: Process = None,
    quiet: Quiet = False,
) -> None:
    """Train what a config describes, and test it once."""
    if coordinator and run is None:
        raise UserError("--coordinator needs --run, the folder that all processes can see")
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
        typer.Argument(metavar="[mesh.KEY=VALUE]...", help="Other devices than before."),
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
    best: Annotated[
        bool, typer.Option(help="The best checkpoint by validation, not the newest.")
    ] = False,
    samples: Annotated[
        int, typer.Option(min=1, help="Of a VAE: importance samples k of its likelihood.")
    ] = 500,
    images: Annotated[
        int, typer.Option(min=1, help="Of a VAE: test images on which it is taken.")
    ] = 1000,
    refined: Annotated[
        bool, typer.Option("--refined", help="Of a VAE: draw them from refined posteriors.")
    ] = False,
) -> None:
    """Evaluate a run on the test split."""
    import trainers
    from trainers.generative import Effort
    from trainers.reporting import corruptions_table, results_table, tasks_table

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
    prompt: Annotated[str, typer.Option(help="What the text begins with.")] = "",
    tokens: Annotated[
        int | None, typer.Option(help="New tokens; default what fits the model's block.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Texts, with an empty line between them.")] = 1,
    temperature: Annotated[float, typer.Option(help="Divides the logits.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Draw from the k most likely tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the most likely tokens that together reach p.")
    ] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Take the most likely token.")] = False,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    best: Annotated[
        bool, typer.Option(help="The best checkpoint by validation, not the newest.")
    ] = False,
) -> None:
    """Print text by the language model of a run."""
    import trainers

    texts = trainers.generate(
        run,
        prompt,
        tokens=tokens,
        samples=samples,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        greedy=greedy,
        seed=seed,
        best=best,
    )
    print("\n\n".join(texts))


@app.command(name="report")
@_in_one_sentence
def report_(
    runs: Annotated[list[pathlib.Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    out: Annotated[
        pathlib.Path | None,
        typer.Option(help="Folder for it; default RUN/report, or reports-NAMES for several runs."),
    ] = None,
) -> None:
    """Draw what runs did: pictures and one HTML page, several runs side by side."""
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
        typer.Option(help="Where TFDS keeps its sets; default $TFDS_DATA_DIR or TFDS's own."),
    ] = None,
) -> None:
    """Download a data set by TFDS, or build it from local files."""
    import input_pipeline

    folder, written = input_pipeline.prepare(name, source=source, data_dir=data_dir)
    print(f"{'prepared' if written else 'already there'}: {folder}")


def _join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Joins several processes, where they are asked for."""
    if coordinator:
        from trainers.processes import join

        join(coordinator, processes, process)
    elif processes is not None or process is not None:
        raise UserError("--processes and --process need --coordinator HOST:PORT")


def _show(result: Any, quiet: bool) -> None:
    from trainers.reporting import results_table

    if not quiet:
        Console().print(results_table(f"step {result.step}", result.metrics))
    print(f"run: {result.run_dir}")


def main() -> None:
    """Entry point of the `grlu` command."""
    app()


if __name__ == "__main__":
    main()
