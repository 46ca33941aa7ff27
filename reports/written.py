"""Table of a policy's samples during training, with their rewards."""

import json
from typing import Any

from grlu.errors import UserError
from reports import tables
from reports.record import Record
from reports.units import number
from trainers.loop.run_dir import RunDirectory
from trainers.loop.samples import read_lines


def written(record: Record) -> str:
    """Return the completions at the first, middle and last logged step as a table.

    Returns:
        The table, or an empty string for a run without samples.

    Raises:
        UserError: if the file can't be read.
    """
    by_step = _samples(record)
    if not by_step:
        return ""
    steps = sorted(by_step)
    shown = sorted({steps[0], steps[len(steps) // 2], steps[-1]})
    heads = ["prompt"]
    for step in shown:
        heads += [f"step {step:,}", "reward"]
    rows = []
    for same in zip(*(by_step[step] for step in shown), strict=False):
        row = [_visible(same[0]["prompt"])]
        for sample in same:
            row += [_visible(sample["completion"]), number("reward", sample["reward"], None)]
        rows.append([*row, _visible(same[0]["target"])])
    table = tables.table([*heads, "target"], rows, "written")
    return f"{table}<p class='lead'>Samples for the same prompts; ⏎ is a line feed.</p>"


def _samples(record: Record) -> dict[int, list[dict[str, Any]]]:
    path = RunDirectory(record.path).samples
    found: dict[int, list[dict[str, Any]]] = {}
    for line, text in enumerate(read_lines(path), 1):
        try:
            sample = json.loads(text)
            kept = {key: sample[key] for key in ("prompt", "completion", "target", "reward")}
            found.setdefault(int(sample["step"]), []).append(kept)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}, line {line}: not a policy's sample: {error}") from error
    return found


def _visible(text: str) -> str:
    return text.replace("\n", "⏎")
