"""Links: the other runs that a config names, and checks that they fit.

Links are paths relative to the run's folder: `features` names the run whose trained model encodes
the data, `start` the run whose weights this one starts from, `judge` the run of a reward model. A
pipeline writes these links between its stages. `trainer.reference` may name the run of a policy's
reference.

A run keeps copies of the runs that it needs after its first checkpoint (`pipelines/copies.py`);
older runs without copies follow the links.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from grlu.errors import UserError
from input_pipeline import Data
from trainers.config.load import load_config
from trainers.config.paths import kept
from trainers.config.schema import validate
from trainers.loop.experiment import Experiment
from trainers.loop.run_dir import RunDirectory
from trainers.objectives.registry import trait
from trainers.policies.preference import PreferenceTrainer
from trainers.policies.reference import NAMED
from trainers.registry import SECTIONS


def config_of(run: RunDirectory, overrides: Sequence[str] = ()) -> ConfigDict:
    """Return the complete config in a run's folder, with `overrides`.

    Paths of the user's files that are gone are replaced by the run's copies.

    Raises:
        UserError: if there is no run, or it is a pipeline.
    """
    config = load_config(RunDirectory.open(run.path).config, overrides)
    if "stages" in config:
        names = ", ".join(str(run.stage(stage["name"]).path) for stage in config.stages)
        raise UserError(f"{run.path} is a pipeline: name one of its stages, {names}")
    return kept(validate(config, SECTIONS), run.files)


def linked_run(
    run: RunDirectory | None, kind: str, link: str, *, copied: bool = True
) -> RunDirectory:
    """Return the run that a config links to, or the copy that the run itself holds.

    Args:
        run: the run that links, or None before it is made.
        kind: "features", "start", "judge" or "reference".
        link: path of the other run, relative to the folder of `run`.
        copied: accept a copy, which has no weights if it is a reference.

    Raises:
        UserError: if neither exists.
    """
    if run is None:
        return RunDirectory.open(pathlib.Path(link))
    copy = run.linked(kind)
    if copied and copy.config.is_file():
        return copy
    other = RunDirectory(pathlib.Path(run.path, link).resolve())
    if not other.config.is_file():
        lacks = "keeps no copy of it" if copied else "has no checkpoint to continue from"
        raise UserError(
            f"{kind}: {other.path} holds no run, and {run.path} {lacks}: move it back there"
        )
    return other


def reference_link(config: Mapping[str, Any]) -> str | None:
    """Return the path of the run that is a policy's reference, or None."""
    named = config["trainer"].get("reference")
    return None if named in (None, *NAMED) else named


def require_vocabulary(what: str, data: Data, other: Data, path: Any) -> None:
    """Raise UserError if a run's data and those of another run differ in their tokens."""
    own, theirs = (d.tokenizer.vocabulary if d.tokenizer else None for d in (data, other))
    if own != theirs:
        raise UserError(
            f"{what}: the run in {path} has other tokens, {theirs or 'none'}, than this run's "
            f"data, {own or 'none'}: both need the same text, or dataset.tokenizer=byte or gpt2"
        )


def require_writer(run: RunDirectory, experiment: Experiment, data: Data) -> None:
    """Raise UserError unless the model of a run writes text; the message says what it does."""
    trainer = experiment.trainer
    if isinstance(trainer, PreferenceTrainer) and trainer.settings.scores:
        raise UserError(
            f"{run.path} is a reward model, which scores texts and writes none: name the policy "
            "that it scores, or the language model that it started from"
        )
    if data.tokenizer is not None:
        return
    described = trait(trainer.settings.objective, "described")
    raise UserError(
        f"{run.path} writes no text, it is {described.format(data=data.name, run=run.path)}"
    )
