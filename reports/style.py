"""Style of pictures, each drawn twice: for light and for dark pages."""

import dataclasses
import io
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure

DPI = 200
MARKERS = "os^DvPX*"


@dataclasses.dataclass(frozen=True)
class Theme:
    """Colours of a picture.

    Attributes:
        name: "light" or "dark".
        surface: background.
        ink: text and axes.
        muted: secondary elements.
        grid: lines of the grid.
        lines: colours of runs: Okabe and Ito's colour-blind safe palette, in shades with contrast
            to the surface.
        classes: colours of classes: Petroff's ten colour-blind safe colours (arXiv:2107.02270).
        diverging: colour map of signed weights, with the surface's colour at zero.
    """

    name: str
    surface: str
    ink: str
    muted: str
    grid: str
    lines: tuple[str, ...]
    classes: tuple[str, ...]
    diverging: str

    def line(self, i: int) -> str:
        """Return the colour of the i-th run."""
        return self.lines[i % len(self.lines)]

    def shades(self, i: int) -> Colormap:
        """Return a colour map from the surface to a run's colour."""
        return LinearSegmentedColormap.from_list("shades", [self.surface, self.line(i)])


LIGHT = Theme(
    name="light",
    surface="#ffffff",
    ink="#1b1f24",
    muted="#5f6b76",
    grid="#dfe3e8",
    lines=("#0072b2", "#d55e00", "#009e73", "#b5549b", "#c98a00", "#3fa7de", "#4d4d4d"),
    classes=(
        *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
        *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
    ),
    diverging="RdBu_r",
)
DARK = Theme(
    name="dark",
    surface="#15191e",
    ink="#e8ebee",
    muted="#9aa5b0",
    grid="#2e353d",
    lines=("#58b4f0", "#ff8b45", "#2fc79a", "#e48fcb", "#f0c33c", "#9fd8f7", "#c4c4c4"),
    classes=(
        *("#3f90da", "#ffa90e", "#e5432a", "#94a4a2", "#a866d6"),
        *("#b97c6a", "#e76300", "#b9ac70", "#7f8494", "#92dadd"),
    ),
    diverging="berlin",
)


@dataclasses.dataclass(frozen=True)
class Picture:
    """Picture as PNGs on a light and a dark surface.

    Attributes:
        name: name of its file, without suffix.
        title: its title.
        caption: one or two sentences on how to read it.
        light: PNG for light pages.
        dark: PNG for dark pages.
    """

    name: str
    title: str
    caption: str
    light: bytes
    dark: bytes


def picture(
    name: str, title: str, caption: str, draw: Callable[[Theme], Figure], *, of: str = ""
) -> Picture:
    """Draw a picture in both themes.

    The PNG includes the title, with the label `of` the run, for use in slides.
    """
    title = f"{title} · {of}" if of else title
    return Picture(name, title, caption, *(_png(draw, title, theme) for theme in (LIGHT, DARK)))


def _png(draw: Callable[[Theme], Figure], title: str, theme: Theme) -> bytes:
    with mpl.rc_context({**mpl.rcParamsDefault, **settings(theme)}):
        figure = draw(theme)
        figure.suptitle(
            title,
            x=0.1 / figure.get_figwidth(),
            ha="left",
            fontsize=14,
            weight="bold",
            color=theme.ink,
        )
        out = io.BytesIO()
        FigureCanvasAgg(figure)
        figure.savefig(out, dpi=DPI, metadata={"Software": None})
    return out.getvalue()


def settings(theme: Theme) -> dict[Any, Any]:
    """Return Matplotlib's settings for a theme."""
    return {
        "backend": "agg",
        "figure.facecolor": theme.surface,
        "figure.constrained_layout.use": True,
        "figure.constrained_layout.h_pad": 0.08,
        "figure.constrained_layout.w_pad": 0.1,
        "savefig.facecolor": theme.surface,
        "axes.facecolor": theme.surface,
        "axes.edgecolor": theme.muted,
        "axes.labelcolor": theme.ink,
        "axes.titlecolor": theme.ink,
        "axes.titlesize": 12,
        "axes.titlelocation": "left",
        "axes.labelsize": 12,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": False,
        "axes.axisbelow": True,
        "grid.color": theme.grid,
        "text.color": theme.ink,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "xtick.labelcolor": theme.ink,
        "ytick.labelcolor": theme.ink,
        "font.size": 11,
        "legend.frameon": False,
        "lines.linewidth": 2.0,
    }
