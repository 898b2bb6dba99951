"""GFLOP/s over size: a line a rung, torch and minidl beside them, the machine's FMA peaks above."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

if TYPE_CHECKING:
    from .climb import Step

INK, GRID = "#57606a", "#d8dee4"
OTHERS: dict[str, dict[str, Any]] = {
    "torch": {"color": "#d1242f", "marker": "s"},
    "minidl": {"color": "#1f2328", "marker": "D"},
}


def draw(steps: Sequence[Step], path: Path) -> None:
    """Dashed lines ran on more than one thread; a refused rung has no line."""
    figure = Figure(figsize=(9, 6), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    by_line = sorted((s for s in steps if not s.refused), key=lambda s: (s.rung, s.threads, s.size))
    found = {key: list(group) for key, group in groupby(by_line, key=lambda s: (s.rung, s.threads))}
    rungs = [rung for rung in dict.fromkeys(s.rung for s in steps) if rung not in OTHERS]
    order = [*rungs, *OTHERS]
    for (rung, threads), line in sorted(
        found.items(), key=lambda item: (order.index(item[0][0]), item[0][1])
    ):
        shade = (
            0.9 * order.index(rung) / max(1, len(rungs))
        )  # the top of the ladder is light, but not too light
        look = OTHERS.get(rung) or {"color": colormaps["viridis"](shade), "marker": "o"}
        label = f"{rung}, {threads} threads" if threads > 1 else rung
        style = "--" if threads > 1 else "-"
        axes.plot([s.size for s in line], [s.gflops for s in line], ls=style, ms=5, label=label, **look)
    for place, (threads, peak) in enumerate(sorted({s.threads: s.peak for s in steps}.items())):
        axes.axhline(peak, color=INK, lw=1, ls=":")
        axes.annotate(
            f"FMA peak, {threads} thread{'s' * (threads > 1)}",
            (0.01 + 0.2 * place, peak),  # side by side: the peaks may be close
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            fontsize=8,
            color=INK,
        )
    axes.set_ylim(top=1.6 * max(s.peak for s in steps))  # room for their names
    sizes = sorted({s.size for s in steps})
    axes.set_xticks(sizes, list(map(str, sizes)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.grid(color=GRID)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("m = n = k")
    axes.set_ylabel("GFLOP/s")
    axes.set_title("The ladder: the same product, one idea more a line")
    figure.legend(loc="outside right center", frameon=False, fontsize=9, reverse=True)
    figure.savefig(path, dpi=110)
