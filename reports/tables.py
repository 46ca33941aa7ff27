"""HTML tables of a report: results, configs, and differences between configs."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from reports.record import SPLITS, Record
from reports.units import duration, named, number


def results(records: Sequence[Record]) -> str:
    """Return final metrics, mean ± sd over seeds: rows are metrics, columns are runs."""
    shown = [(record.shown, record) for record in records]
    names = dict.fromkeys(name for each, _ in shown for name in each.metrics)
    metrics = sorted(names, key=lambda name: name != "accuracy")
    rows = []
    for split in reversed(SPLITS):
        for metric in metrics:
            values = [each.final(split, metric) for each, _ in shown]
            if any(values):
                having = [each for (each, _), value in zip(shown, values, strict=True) if value]
                name = f"{split} {named(metric, *(each.config for each in having))}"
                rows.append([name, *("–" if v is None else number(metric, *v) for v in values)])
    steps = [max(each.columns.get("step", ()), default=0) for each, _ in shown]
    rows.append(["steps", *(f"{int(step):,}" for step in steps)])
    rows.append(["seeds", *(str(each.seeds) for each, _ in shown)])
    times = [record.seconds for record in records]
    rows.append(["training time", *("–" if t is None else duration(t) for t in times)])
    heads = [
        record.label if each is record else f"{record.label}, stage {each.label}"
        for each, record in shown
    ]
    return table(["", *heads], rows, "numbers")


def differences(records: Sequence[Record]) -> str:
    """Return the keys in which the runs' configs differ, or an empty string."""
    flat = [dict(flatten(record.config)) for record in records]
    keys = dict.fromkeys(key for each in flat for key in each)
    rows = [
        [key, *values]
        for key in keys
        if len(set(values := [each.get(key, "–") for each in flat])) > 1
    ]
    return table(["key", *(record.label for record in records)], rows) if rows else ""


def config(values: Mapping[str, Any]) -> str:
    """Return a config, with one table per section."""
    sections: dict[str, list[list[str]]] = {}
    for key, value in flatten(values):
        section, _, rest = key.rpartition(".")
        sections.setdefault(section or "run", []).append([rest or key, value])
    return "".join(
        f"<div><h4>{escape(section)}</h4>{table([], rows)}</div>"
        for section, rows in sections.items()
    )


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield `section.key` and its value as text for all keys of a config."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
            named = {str(each.get("name", i)): each for i, each in enumerate(value)}
            yield from flatten(named, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _text(value)


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """Return a table; the first cell of each row is its heading."""
    head = "".join(f'<th scope="col">{escape(each)}</th>' for each in heads)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, *cells in rows
    )
    head = f"<thead><tr>{head}</tr></thead>" if heads else ""
    return f'<div class="scroll"><table class="{kind}">{head}<tbody>{body}</tbody></table></div>'
