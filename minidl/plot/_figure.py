"""An empty figure in the lessons' style, and its colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

BLUE, ORANGE, INK, GREY, PALE = "#2563eb", "#ea580c", "#1f2937", "#6b7280", "#e5e7eb"
GREEN, PURPLE = "#059669", "#9333ea"
# Of curves that share axes, in their order. The later ones are broken, so that one on top of another shows both.
CURVES = ((BLUE, "-"), (ORANGE, "-"), (GREEN, "-"), (PURPLE, (0, (5, 3))), (INK, (0, (1, 1.5))))


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure, sizes in inches. `title` is a headline and, after a newline, a smaller line."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    head, edge = 0.62 / height, 0.08  # the share of the height for the two lines; inches
    rect = (edge / width, edge / height, 1 - 2 * edge / width, 1 - head - edge / height)
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(rect=rect))
    headline, _, below = title.partition("\n")
    figure.text(0.5, 1 - 0.12 / height, headline, size=13, color=INK, weight="bold", ha="center", va="top")
    figure.text(0.5, 1 - 0.37 / height, below, size=9.5, color=GREY, ha="center", va="top")
    return figure


def style(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, color=GREY)
    axes.set_ylabel(y, color=GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(which="both", colors=GREY, labelsize=9, length=0)
    axes.grid(True, color=PALE, linewidth=0.7)
    axes.set_axisbelow(True)


def legend_below(figure: Figure, handles: Sequence[Artist], columns: int) -> None:
    """One legend for all panels, in at most `columns` columns, and no more than its rows need."""
    labels = [str(handle.get_label()) for handle in handles]
    rows = -(-len(labels) // columns)
    figure.legend(
        list(handles),
        labels,
        loc="outside lower center",
        ncols=-(-len(labels) // rows),
        handlelength=3,
        frameon=False,
        labelcolor=INK,
        fontsize=9,
    )


def colour_map(*colours: str) -> Colormap:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("minidl", list(colours))
