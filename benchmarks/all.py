"""Regenerate every table of README and docs/results.md, one benchmark after the other.

    python -m benchmarks.all            # speed and memory
    python -m benchmarks.all --full     # also the accuracies: trains every config of the tables

Each benchmark runs in its own process on a fixed number of cores and alternates between ours and
the baseline. The load of the machine is printed before each: repeat what ran on a busy one.
"""

import dataclasses
import os
import pathlib
import subprocess
import sys
from typing import Annotated

import typer

from benchmarks.report import environment


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One command.

    Attributes:
        title: table that it regenerates.
        module: module to run.
        arguments: arguments of the published figures.
        quick: arguments of a shorter version.
        cores: number of cores.
    """

    title: str
    module: str
    arguments: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()
    cores: int = 1


BENCHMARKS = (
    Benchmark(
        "README, speed",
        "benchmarks.speed",
        ("--turns", "7", "--examples", "4000"),
        ("--turns", "3"),
        cores=2,
    ),
    Benchmark(
        "docs, several seeds and memory",
        "benchmarks.growth",
        ("--turns", "3"),
        ("--turns", "1"),
        cores=2,
    ),
    Benchmark("docs, evolution", "benchmarks.evolution", ("--turns", "5"), ("--turns", "2")),
    Benchmark(
        "docs, evolution of 1,024 members",
        "benchmarks.evolution",
        ("--turns", "3", "--population", "1024"),
        ("--turns", "1", "--population", "1024"),
    ),
    Benchmark("docs, sparse networks", "benchmarks.sparse.cost", (), ("--turns", "2")),
    Benchmark("README, PyTorch", "benchmarks.pytorch", (), ("--turns", "3")),
    Benchmark("README, sampling", "benchmarks.sampling"),
    Benchmark(
        "README, sampling with latent attention", "benchmarks.sampling", ("--attention", "latent")
    ),
    Benchmark("README, images on disk", "benchmarks.folder"),
    Benchmark(
        "docs, alignment", "benchmarks.alignment", ("--examples", "100"), ("--examples", "20")
    ),
)

# Configs of the accuracy tables, with three seeds each.
_ACCURACIES = (
    # By their short names, which benchmarks.results finds as names of folders.
    *(f"mnist_{kind}_n{n}" for kind in ("reward", "topk", "delta") for n in (1, 16, 128)),
    *("mnist_backprop_full", "mnist_skip_n128", "mnist_deep_n128", "mnist_deep_skip_n128"),
    *("mnist_deep_plain_n128", "mnist_batch32_n16", "mnist_batch256_n16"),
    *("mnist_autoencoder_grlu", "mnist_random_grlu", "mnist_es_grlu", "mnist_es"),
    *("digits_grlu", "digits_backprop", "mnist_grlu", "mnist_backprop"),
    *("mnist_sparse10", "mnist_sparse_k5"),
    *("copy_grpo", "sort_grpo", "addition_grpo", "constant_grpo", "sonnets_rlhf"),
)


def main(
    full: Annotated[bool, typer.Option("--full", help="Also train the accuracy tables.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer turns.")] = False,
    runs: Annotated[pathlib.Path, typer.Option(help="Folder of the trained runs.")] = pathlib.Path(
        "runs/tables"
    ),
) -> None:
    """Run all benchmarks; a benchmark that fails is named at the end."""
    print(environment())
    failed = []
    for each in BENCHMARKS:
        arguments = each.quick or each.arguments if quick else each.arguments
        command = [sys.executable, "-m", each.module, *arguments]
        failed += [] if _run(each.title, command, each.cores) else [each.module]
    for config in _ACCURACIES if full else ():
        command = [sys.executable, "-m", "grlu.cli", "train", config, "run.seeds=3"]
        folder = runs / config
        done = _run(config, [*command, "--run", str(folder), "--quiet", "--overwrite"], 2)
        failed += [] if done else [config]
    if full:
        folders = sorted(str(path) for path in runs.iterdir())
        _run("accuracies", [sys.executable, "-m", "benchmarks.results", *folders], 1)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        raise typer.Exit(1)


def _run(title: str, command: list[str], cores: int) -> bool:
    """Run a command on the last cores of this machine; return whether it succeeded."""
    load = os.getloadavg()[0]
    print(f"\n## {title}: {' '.join(command[1:])} ({cores} cores, load {load:.1f})", flush=True)
    chosen = ",".join(str(core) for core in sorted(os.sched_getaffinity(0))[-cores:])
    return subprocess.run(["taskset", "-c", chosen, *command]).returncode == 0


if __name__ == "__main__":
    typer.run(main)
