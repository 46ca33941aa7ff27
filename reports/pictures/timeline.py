"""Picture of a pipeline's timeline: its stages in order, by training time."""

from matplotlib.figure import Figure

from reports.record import Record
from reports.style import Picture, Theme, picture
from reports.units import duration


def timeline(record: Record) -> Picture | None:
    """Draw one bar per stage, by training time, or by steps if no stage has times.

    Returns:
        The picture, or None if no stage has trained.
    """
    steps = [int(max(stage.columns.get("step", ()), default=0)) for stage in record.stages]
    times = [stage.seconds for stage in record.stages]
    timed = any(times)
    lengths = [time or 0.0 for time in times] if timed else [float(n) for n in steps]
    total = sum(lengths)
    if not total:
        return None

    def words(i: int) -> str:
        counted = f"{steps[i]:,} steps"
        if not timed:
            return counted
        time = times[i]
        return f"{counted}, not trained here" if time is None else f"{duration(time)}, {counted}"

    def draw(theme: Theme) -> Figure:
        figure = Figure(figsize=(10.8, 0.6 * len(lengths) + 1.25))
        axes = figure.subplots()
        start = 0.0
        for i, length in enumerate(lengths):
            axes.barh(i, length, left=start, height=0.6, color=theme.line(i))
            # Next to the bar, on the side with more room; on the bar if neither side has room.
            right, left = total - start - length, start
            if max(right, left) < 0.35 * total:
                place, shift, side, colour = start + length / 2, 0, "center", "white"
            elif left > right:
                place, shift, side, colour = start, -8, "right", theme.ink
            else:
                place, shift, side, colour = start + length, 8, "left", theme.ink
            axes.annotate(
                words(i),
                (place, i),
                xytext=(shift, 0),
                textcoords="offset points",
                ha=side,
                va="center",
                color=colour,
            )
            start += length
        axes.set_yticks(range(len(lengths)), [stage.label for stage in record.stages])
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0, labelsize=12)
        axes.set_xlim(0, total)
        axes.set_xlabel("training time (s)" if timed else "steps")
        axes.grid(True, axis="x")
        axes.spines["left"].set_visible(False)
        return figure

    caption = "Each stage starts where the preceding one ended."
    if timed:
        caption += " Breaks between stages, and before a stage was resumed, are left out."
    return picture("timeline", "Timeline of the stages", caption, draw, of=record.label)
