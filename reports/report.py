"""Report of one run, or of several side by side."""

import dataclasses
import logging
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence

from grlu.errors import UserError
from reports import tables
from reports.learned import learned
from reports.page import folded, notes, page, pictures, section
from reports.passes import passes_per_example
from reports.pictures.confusion import confusion_matrix
from reports.pictures.continual import accuracy_matrix
from reports.pictures.curves import accuracy_by_passes, learning_curves
from reports.pictures.grids import imagination
from reports.pictures.images import receptive_fields, reconstructions
from reports.pictures.latent import latent_map
from reports.pictures.timeline import timeline
from reports.record import Record, read_records
from reports.style import Picture
from reports.units import duration
from reports.written import written
from trainers.config.paths import local

_log = logging.getLogger("grlu")


def write_report(
    runs: Sequence[str | pathlib.Path], out: str | pathlib.Path | None = None
) -> pathlib.Path:
    """Write PNGs and a self-contained `index.html`, which also lists what is missing.

    Args:
        runs: folders of runs or pipelines.
        out: folder of the report; by default `report/` in the run, or, for several runs,
            `reports-NAMES/` next to the first.

    Returns:
        Path of the page.

    Raises:
        UserError: if a folder holds no run, or `out` is remote or can't be written.
    """
    paths = [pathlib.Path(run) for run in runs]
    if out:
        out = local(out, "the report")
    records = read_records(paths)
    folder = out or _default_folder(paths, records)
    report = _Report()
    body = report.body(records)
    *first, last = (record.label for record in records)
    title = f"{', '.join(first)} and {last}" if first else last
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for each in report.drawn:
            (folder / f"{each.name}.png").write_bytes(each.light)
            (folder / f"{each.name}-dark.png").write_bytes(each.dark)
        index = folder / "index.html"
        index.write_text(page(title, _lead(records), body), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write the report to {folder}: {error.strerror}") from error
    return index


class _Report:
    """Builder of a report: collects pictures, with unique names, and notes on missing parts."""

    def __init__(self) -> None:
        self.drawn: list[Picture] = []
        self.missing: list[str] = []

    def body(self, records: Sequence[Record]) -> str:
        """Return the page's body."""
        several = len(records) > 1
        alone = records[0].stages if not several else ()
        parts = [section("Results", tables.results(alone or records))]
        if not alone:
            parts.append(section("Learning", self.learning(records, "")))
        for record in records:
            title = f"Stages of {record.label}" if several else "Stages"
            table = tables.results(record.stages) if several and record.stages else ""
            parts.append(section(title, table, self.pipeline(record, several)))
        parts.append(section("Learned model", self.models(records, several)))
        for record in records:
            title = f"Samples of {record.label}" if several else "Samples"
            parts.append(section(title, written(record)))
        for record in records:
            for stage in record.stages:
                parts.append(self.stage(record, stage, several))
        parts.append(section("Settings", _settings(records)))
        parts.append(section("Not in this report", notes(self.missing)))
        return "".join(parts)

    def learning(self, records: Sequence[Record], suffix: str) -> str:
        """Return the curves."""
        for record in records:
            if not record.shown.columns:
                self.miss(f"{record.path} has no metrics yet, so it has no curves")
            elif (
                "accuracy" in record.shown.metrics
                and passes_per_example(record.shown.config) is None
            ):
                name = record.shown.section("trainer").get("name")
                self.miss(
                    f"the forward passes of {record.label} are not known for trainer {name!r}"
                )
        drawn = [learning_curves(records), accuracy_by_passes(records)]
        return pictures([self.keep(each, suffix) for each in drawn if each], columns=1)

    def pipeline(self, record: Record, several: bool) -> str:
        """Return the pictures of a pipeline's stages together; none for other runs."""
        drawn = [timeline(record)] if record.stages else []
        if record.continual:
            drawn.append(accuracy_matrix(record.continual, of=record.label))
        suffix = _suffix(record) if several else ""
        return pictures([self.keep(each, suffix) for each in drawn if each], columns=1)

    def models(self, records: Sequence[Record], several: bool) -> str:
        """Return the pictures of the learned models: one row per kind, one column per run."""
        by_kind: dict[str, list[Picture]] = {}
        for record in records:
            # A pipeline has checkpoints only in its stages.
            if not record.stages or any(record.path.glob("checkpoints/*/")):
                for each in self.model_pictures(record):
                    kept = self.keep(each, _suffix(record) if several else "")
                    by_kind.setdefault(each.name, []).append(kept)
        if not several:
            return pictures([each for kept in by_kind.values() for each in kept])
        return "".join(pictures(kept, columns=len(records)) for kept in by_kind.values())

    def stage(self, record: Record, stage: Record, several: bool) -> str:
        """Return the section of one stage of a pipeline."""
        suffix = (_suffix(record) if several else "") + _suffix(stage)
        title = f"{record.label}: stage {stage.label}" if several else f"Stage {stage.label}"
        curves = self.learning([stage], suffix)
        drawn = [self.keep(each, suffix) for each in self.model_pictures(stage)]
        return section(
            title,
            f"<p>{tables.escape(_facts(stage))}</p>",
            curves,
            pictures(drawn),
            written(stage),
            folded("Settings of this stage", _config(stage)),
        )

    def model_pictures(self, record: Record) -> Iterator[Picture]:
        """Yield the pictures of a run's newest checkpoint."""
        if written(record):
            return  # The report shows a policy's samples instead.
        _log.info("evaluating %s", record.path)
        try:
            found = learned(record)
        except UserError as error:
            self.miss(f"{record.label} has no pictures of its model: {error}")
            return
        of = record.label
        # Classes without names are numbered.
        data = record.section("dataset")
        names = (
            data["classes"] if data.get("renumber") and data.get("classes") else range(sys.maxsize)
        )
        if found.confusion is not None:
            yield confusion_matrix(found.confusion, record.seeds, names, of=of)
        if found.codes is not None and found.labels is not None:
            yield latent_map(found.codes, found.labels, names, of=of)
        if found.fields is not None:
            yield receptive_fields(found.fields, found.convolution, of=of)
        if found.inputs is not None and found.outputs is not None:
            yield reconstructions(found.inputs, found.outputs, of=of)
        if found.imagined is not None:
            yield from imagination(found.imagined, of=of)

    def keep(self, drawn: Picture, suffix: str) -> Picture:
        """Add a picture to the report, with a suffix to its name."""
        kept = dataclasses.replace(drawn, name=drawn.name + suffix)
        self.drawn.append(kept)
        return kept

    def miss(self, sentence: str) -> None:
        """Note and log that a part of the report is missing."""
        _log.warning("%s", sentence)
        self.missing.append(sentence)


def _default_folder(paths: Sequence[pathlib.Path], records: Sequence[Record]) -> pathlib.Path:
    if len(paths) == 1:
        return paths[0] / "report"
    names = "".join(_suffix(record) for record in records)
    return paths[0].resolve().parent / f"reports{names[:100]}"


def _suffix(record: Record) -> str:
    """Return `-NAME`, without characters that file names can't contain."""
    return "-" + re.sub(r"[^\w.]+", "_", record.label)


def _lead(records: Sequence[Record]) -> str:
    return _facts(records[0]) if len(records) == 1 else f"{len(records)} runs side by side"


def _facts(record: Record) -> str:
    """Summarise a run, such as `mlp on digits, trained by grlu · 471 steps · 12 s`."""
    if record.stages:
        return "A pipeline of stages: " + ", ".join(stage.label for stage in record.stages)
    names = [record.section(each).get("name", "?") for each in ("model", "dataset", "trainer")]
    facts = ["{} on {}, trained by {}".format(*names)]
    steps = record.columns.get("step", ())
    if len(steps):
        facts.append(f"{int(max(steps)):,} steps")
    if record.seeds > 1:
        facts.append(f"{record.seeds} seeds at once")
    if record.seconds:
        facts.append(duration(record.seconds))
    return " · ".join(facts)


def _settings(records: Sequence[Record]) -> str:
    if len(records) == 1:
        return _config(records[0])
    differing = tables.differences(records)
    return (differing and f"<p>Where the runs differ:</p>{differing}") + "".join(
        folded(f"All settings of {record.label}", _config(record)) for record in records
    )


def _config(record: Record) -> str:
    return f'<div class="config">{tables.config(record.config)}</div>' if record.config else ""
