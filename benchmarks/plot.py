"""The ratios at a glance: a panel a stem, a line an op, a dot a row; losses in red, left of 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .harness import Row
from .report import is_loss

WIN, LOSS, GRID = "#1a7f5a", "#d1242f", "#d8dee4"
MARKERS = "o^sDv"


def label(row: Row) -> str:
    op = row.op.replace("binary_cross_entropy", "bce").replace("_", " ")
    mode = "" if row.mode == "step" else f" {row.mode}"
    return f"{op}{mode}" if row.rival == "torch" else f"{op} vs {row.rival}"


def dot(row: Row) -> float:
    """Marker size: the longer torch takes, the bigger, from a microsecond to a tenth of a second."""
    return 3.0 + min(5.0, max(0.0, math.log10(row.rival_us)))


def panel(axes: Axes, stem: str, rows: Sequence[Row], markers: dict[int, str]) -> None:
    labels = list(dict.fromkeys(label(r) for r in rows))
    for r in rows:
        # Threads sit a little above one another, so that equal ratios stay two dots.
        offset = 0.18 * (list(markers).index(r.threads) - (len(markers) - 1) / 2)
        y = labels.index(label(r)) + offset
        colour = LOSS if is_loss(r) else WIN
        axes.plot([r.ratio_p20, r.ratio_p80], [y, y], color=colour, alpha=0.3, lw=1.2, solid_capstyle="round")
        axes.plot(r.ratio, y, markers[r.threads], color=colour, ms=dot(r), alpha=0.8, mec="white", mew=0.4)
    worst = min(rows, key=lambda r: r.ratio)
    if is_loss(worst):
        axes.annotate(
            f"{worst.ratio:.2f}  {worst.shape}",
            (worst.ratio, labels.index(label(worst))),
            xytext=(-6, 9),
            textcoords="offset points",
            ha="center",
            fontsize=7,
            color=LOSS,
        )
    style(axes, stem, labels, len(rows), sum(map(is_loss, rows)))


def style(axes: Axes, stem: str, labels: Sequence[str], count: int, losses: int) -> None:
    axes.set_xscale("log")
    axes.axvline(1, color="#57606a", lw=1)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_ylim(len(labels) - 0.4, -0.8)
    axes.set_title(
        f"{stem}: {count} rows, {losses} loss{'es' * (losses != 1)}",
        fontsize=11,
        loc="left",
        fontweight="bold",
    )
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.9), max(high, 1.5))
    axes.axvspan(axes.get_xlim()[0], 1, color=LOSS, alpha=0.05, lw=0)
    fine = high / low < 12
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 1.5, 2, 3, 5, 7) if fine else (1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="both", which="both", length=0)
    axes.grid(color=GRID, lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def columns(heights: Sequence[int]) -> tuple[list[int], list[int]]:
    """Panels into two columns of about the same height, the tall ones first."""
    left: list[int] = []
    right: list[int] = []
    for i in sorted(range(len(heights)), key=lambda i: -heights[i]):
        min((left, right), key=lambda column: sum(heights[j] for j in column)).append(i)
    return left, right


def legend(figure: Figure, markers: dict[int, str]) -> None:
    keys = [
        Line2D([], [], color="#57606a", ls="", marker=m, label=f"{n} thread{'s' * (n > 1)}")
        for n, m in markers.items()
    ]
    for colour, text in ((WIN, "minidl faster or level"), (LOSS, "minidl slower")):
        keys.append(Line2D([], [], color=colour, ls="", marker="s", label=text))
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), frameon=False, fontsize=9)


def draw(rows: Sequence[Row], path: Path) -> None:
    timed = [r for r in rows if not r.refused]
    if not timed:
        return
    groups = [[r for r in timed if r.stem == stem] for stem in sorted({r.stem for r in timed})]
    heights = [len({label(r) for r in group}) + 4 for group in groups]  # 4: title and ticks
    threads = sorted({r.threads for r in timed})
    markers = {n: MARKERS[i % len(MARKERS)] for i, n in enumerate(threads)}

    sides = [side for side in columns(heights) if side]
    tall = max(sum(heights[i] for i in side) for side in sides)
    figure = Figure(
        figsize=(13, 1.2 + 0.21 * tall), layout=ConstrainedLayoutEngine(h_pad=0.1), facecolor="white"
    )
    FigureCanvasAgg(figure)
    figure.suptitle(
        "Time of torch / time of minidl: a dot a row (bigger: longer calls), its bar from p20 to p80",
        fontsize=13,
    )
    legend(figure, markers)
    for part, side in zip(figure.subfigures(1, len(sides), squeeze=False).flat, sides, strict=True):
        grid = part.subplots(len(side), 1, height_ratios=[heights[i] for i in side], squeeze=False)
        for axes, i in zip(grid.flat, side, strict=True):
            panel(axes, groups[i][0].stem, groups[i], markers)
    figure.savefig(path, dpi=110)
