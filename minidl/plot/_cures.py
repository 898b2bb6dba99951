"""An illness beside its cures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minidl.plot._figure import BLUE, GREY, INK, ORANGE, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GREEN, VIOLET = "#059669", "#a21caf"


@dataclass(frozen=True)
class CurePanel:
    """Curves in one pair of axes, by their names: over `xs`, or else over 1, 2, 3, …"""

    headline: str
    x: str
    y: str
    curves: Mapping[str, Sequence[float]]
    xs: Sequence[float] | None = None
    log: bool = True


def cures(panels: Sequence[CurePanel], numbers: Mapping[str, float], what: str, title: str) -> Figure:
    """Panels side by side, with one legend: each variant's colour and number (`what`, in words), the ill one's first.

    A cross ends a curve that is shorter than others. Curves without a number are drawn as a reference.
    """
    figure = new_figure(10.4, 5.3, title)
    colours = dict(zip(numbers, (ORANGE, BLUE, GREEN, VIOLET), strict=False))
    ill = next(iter(numbers))
    handles: dict[str, Any] = {}
    for axes, panel in zip(figure.subplots(1, len(panels)), panels, strict=True):
        longest = max(map(len, panel.curves.values()))
        for name, values in panel.curves.items():
            xs = panel.xs or range(1, len(values) + 1)
            colour, width = colours.get(name, INK), 2.6 if name == ill else 1.7
            line = "-" if name in numbers else ":"
            (handles[name],) = axes.plot(xs, values, color=colour, linewidth=width, linestyle=line)
            if longest <= 20:
                handles[name].set(marker="o", markersize=4)
            if 0 < len(values) < longest:
                axes.plot(xs[-1], values[-1], "X", color=colour, markersize=9)
        if panel.log:
            axes.set_yscale("log")
        axes.set_title(panel.headline, fontsize=10, color=INK)
        style(axes, panel.x, panel.y)
    labels = [f"{name}: {_number(numbers[name])}" if name in numbers else name for name in handles]
    legend = figure.legend(
        handles.values(),
        labels,
        title=what,
        loc="outside lower center",
        ncols=5,
        frameon=False,
        labelcolor=INK,
    )
    legend.get_title().set_color(GREY)
    return figure


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "diverged"
