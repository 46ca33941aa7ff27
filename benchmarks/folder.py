"""Memory of training on image folders of two sizes: it must not grow with the folder.

    python -m benchmarks.folder

Random PNGs, 64 x 64 RGB, are written to a temporary folder; `grlu train` then trains `vae_conv` on
each set for the same number of examples, in its own process, first decoding the images and then
reading the decoded ones. Prints the peak resident memory of each process, including mapped files.
"""

import os
import pathlib
import sys
import tempfile
from typing import Annotated

import numpy as np
import typer
from PIL import Image
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

SIDE = 64
_MODEL = ("model.latent=16", "model.encoder_channels=(8,8)", "model.decoder_channels=(8,8)")
_TRAINER = ("trainer.epochs=1", "trainer.batch_size=128")


def written(folder: pathlib.Path, count: int) -> None:
    """Write random images."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    console = Console(stderr=True)
    for i in track(range(count), f"{count:,} images", console=console, transient=True):
        pixels = generator.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png", compress_level=1)


def trained(folder: pathlib.Path, run: pathlib.Path) -> float:
    """Return the peak resident memory of `grlu train` on a folder, in MiB."""
    options = [f"dataset.name=folder:{folder}", "model.name=vae_conv"]
    command = [sys.executable, "-m", "grlu.cli", "train", "digits_vae", *options, *_MODEL]
    command += [*_TRAINER, "--run", str(run), "--overwrite", "--quiet"]
    environment = {**os.environ, "GRLU_CACHE": str(folder.parent / "cache")}
    child = os.posix_spawn(sys.executable, command, environment)
    _, status, usage = os.wait4(child, 0)
    if status:
        print(f"error: {' '.join(command)} failed", file=sys.stderr)
        raise typer.Exit(1)
    # Linux counts in KiB, macOS in bytes.
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main(
    small: Annotated[int, typer.Option(min=500, help="Images of the smaller folder.")] = 2000,
    large: Annotated[int, typer.Option(min=500, help="Images of the larger folder.")] = 20_000,
) -> None:
    """Print the memory of training on image folders of two sizes."""
    made = Table(title="peak resident memory of training, MiB", box=box.SIMPLE)
    for head in ("images", "decoded", "decoding", "decoded before"):
        made.add_column(head, justify="right")
    peaks = []
    with tempfile.TemporaryDirectory() as scratch:
        for count in (small, large):
            folder = pathlib.Path(scratch) / str(count)
            written(folder, count)
            run = pathlib.Path(scratch) / "run"
            peaks.append([trained(folder, run) for _ in range(2)])
            size = count * SIDE * SIDE * 3 / 2**20
            made.add_row(f"{count:,}", f"{size:.0f}", *(f"{peak:.0f}" for peak in peaks[-1]))
    made.add_row("difference", "", *(f"{b - a:+.0f}" for a, b in zip(*peaks, strict=True)))
    Console().print(made)


if __name__ == "__main__":
    typer.run(main)
