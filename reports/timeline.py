"""The timeline of a pipeline: its stages one after the other, as long as they took."""

from matplotlib.figure import Figure

from reports.record import Record
from reports.style import Picture, Theme, picture
from reports.units import duration


def timeline(record: Record) -> Picture | None:
    """Draws a bar a stage; None if none has trained.

    By wall-clock time where every stage has events that tell it, else by steps.
    """
    steps = [int(max(stage.columns.get("step", ()), default=0)) for stage in record.stages]
    seconds = [stage.seconds for stage in record.stages]
    timed = [s for s in seconds if s is not None]
    by_time = len(timed) == len(seconds) and sum(timed) > 0
    lengths = timed if by_time else [float(n) for n in steps]
    if not sum(lengths):
        return None
    total = sum(lengths)

    def draw(theme: Theme) -> Figure:
        figure = Figure(figsize=(10.4, 0.62 * len(lengths) + 1.2))
        axes = figure.subplots()
        start = 0.0
        for i, (length, count) in enumerate(zip(lengths, steps, strict=True)):
            axes.barh(i, length, left=start, height=0.62, color=theme.line(i))
            words = f"{count:,} steps"
            if by_time:
                words = f"{duration(length)}, {words}"
            # Beside the bar, on the side with more room.
            left = start > total - start - length
            x, anchor = (start, "right") if left else (start + length, "left")
            axes.annotate(
                words,
                (x, i),
                xytext=(-6 if left else 6, 0),
                textcoords="offset points",
                ha=anchor,
                va="center",
            )
            start += length
        axes.set_yticks(range(len(lengths)), [stage.label for stage in record.stages])
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(0, total)
        axes.set_xlabel("training time (s)" if by_time else "steps")
        axes.grid(True, axis="x")
        axes.spines["left"].set_visible(False)
        return figure

    caption = "Each stage starts where the one before ended."
    if by_time:
        caption += " Breaks between stages, and where a stage was resumed, are left out."
    return picture("timeline", "Stages", caption, draw, of=record.label)
