"""Curves: what went down or up in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from minidl.plot._figure import BLUE, CURVES, GREY, INK, ORANGE, legend_below, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Panel:
    """Named curves, each (x, y), on common axes. A curve keeps its colour in every panel of a figure."""

    title: str
    xlabel: str
    ylabel: str
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    ylim: tuple[float, float] | None = None
    log: bool = False  # the y axis
    marks: Sequence[tuple[float, float, str]] = ()  # points to name: x, y, text


def curves(panels: Sequence[Panel], title: str) -> Figure:
    """Panels side by side, with one legend for all of them."""
    figure = new_figure(2.2 + 4.2 * len(panels), 4.9, title)
    names = list(dict.fromkeys(name for panel in panels for name in panel.curves))
    lines = {}
    place: dict[str, Any] = {"xytext": (0, 34), "textcoords": "offset points", "ha": "center"}
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, (x, y) in panel.curves.items():
            colour, dashes = CURVES[names.index(name)]
            lines[name] = axes.plot(x, y, color=colour, linestyle=dashes, linewidth=2, label=name)[0]
        for x_mark, y_mark, text in panel.marks:
            axes.plot(x_mark, y_mark, "o", color=INK, markersize=5, zorder=3)
            arrow = {"arrowstyle": "-", "color": GREY, "linewidth": 0.8}
            axes.annotate(text, (x_mark, y_mark), color=INK, fontsize=9, arrowprops=arrow, **place)
        if panel.log:
            axes.set_yscale("log")
        axes.set_ylim(panel.ylim)
        axes.set_title(panel.title, fontsize=10, color=INK)
        style(axes, panel.xlabel, panel.ylabel)
    legend_below(figure, [lines[name] for name in names], 3 * len(panels))
    return figure


def loss_curve(losses: Sequence[float], title: str, ylabel: str) -> Figure:
    """The loss after each epoch, on a logarithmic scale."""
    figure = new_figure(6.4, 4.5, title)
    axes = figure.subplots()
    axes.plot(range(1, len(losses) + 1), losses, color=BLUE, linewidth=2)
    axes.set_yscale("log")
    axes.set_xlim(0, max(2, len(losses)))
    style(axes, "epoch", f"{ylabel} (log scale)")
    return figure


def loss_and_accuracy(losses: Sequence[float], accuracies: Sequence[float], title: str) -> Figure:
    """Left the loss of each step and its running mean, right the test accuracy after each epoch."""
    figure = new_figure(9.6, 4.6, title)
    left, right = figure.subplots(1, 2)
    window = max(1, len(losses) // 50)
    smooth = torch.tensor(losses).unfold(0, window, 1).mean(dim=1).tolist()
    steps = range(1, len(losses) + 1)
    left.plot(steps, losses, color=BLUE, alpha=0.25, linewidth=0.8, label="each step")
    left.plot(steps[window - 1 :], smooth, color=BLUE, linewidth=2, label=f"mean of the last {window}")
    left.set_xlim(0, max(2, len(losses)))
    left.set_ylim(bottom=0)
    left.legend(frameon=False, labelcolor=INK)
    style(left, "step", "cross entropy")

    epochs = range(1, len(accuracies) + 1)
    percent = [100 * accuracy for accuracy in accuracies]
    right.plot(epochs, percent, color=ORANGE, linewidth=2, marker="o", markersize=5)
    place: dict[str, Any] = {"xytext": (-4, -16), "textcoords": "offset points", "ha": "right"}
    right.annotate(f"{percent[-1]:.1f}%", (epochs[-1], percent[-1]), color=ORANGE, fontweight="bold", **place)
    right.set_xlim(0.5, len(epochs) + 0.5)
    right.set_ylim(min(percent) - max(2.0, 0.2 * (100 - min(percent))), 100)
    if len(epochs) <= 10:
        right.set_xticks(epochs)
    style(right, "epoch", "test accuracy (%)")
    return figure


def line_fit(
    points: Sequence[tuple[float, float]], lines: Sequence[tuple[int, float, float, float]], title: str
) -> Figure:
    """The points, and the line at several epochs, oldest first: (epoch, weight, bias, prediction at 5)."""
    figure = new_figure(7.2, 5.0, title)
    axes = figure.subplots()
    for rank, (epoch, weight, bias, _) in enumerate(lines[:-1]):
        alpha = 0.25 + 0.55 * rank / len(lines)
        axes.axline((0, bias), slope=weight, color=BLUE, alpha=alpha, linewidth=1.4, label=f"epoch {epoch}")
    epoch, weight, bias, prediction = lines[-1]
    axes.axline((0, bias), slope=weight, color=ORANGE, linewidth=2.4, label=f"epoch {epoch}")
    axes.scatter(*zip(*points, strict=True), color=INK, zorder=3, label="training points")
    axes.plot([5], [prediction], "o", color="white", markeredgecolor=ORANGE, markeredgewidth=2, markersize=8)
    place: dict[str, Any] = {"xytext": (-10, 6), "textcoords": "offset points", "ha": "right"}
    axes.annotate(f"prediction {prediction:.3f}", (5, prediction), color=ORANGE, fontweight="bold", **place)
    axes.set_xlim(0, 5.6)
    axes.set_ylim(0, 12.5)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="center left", bbox_to_anchor=(1.0, 0.5))
    style(axes, "x", "y")
    return figure


def fitted_lines(
    x: Sequence[float],
    y: Sequence[float],
    odd: int,
    truth: tuple[float, float],
    fits: Mapping[str, tuple[float, float]],
    title: str,
) -> Figure:
    """Points, of which the one at index `odd` is an outlier, the true line and those fitted: (weight, bias)."""
    figure = new_figure(7.2, 5.0, title)
    axes = figure.subplots()
    weight, bias = truth
    axes.axline((0, bias), slope=weight, color=GREY, linewidth=5, alpha=0.35, label="the true line")
    for (name, (weight, bias)), (colour, dashes) in zip(fits.items(), CURVES, strict=False):
        axes.axline((0, bias), slope=weight, color=colour, linestyle=dashes, linewidth=2, label=name)
    kept = [index for index in range(len(x)) if index != odd]
    axes.scatter([x[i] for i in kept], [y[i] for i in kept], color=INK, s=20, zorder=3, label="points")
    axes.scatter(x[odd], y[odd], color=INK, marker="X", s=90, zorder=3, label="the outlier")
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="center left", bbox_to_anchor=(1.0, 0.5))
    style(axes, "x", "y")
    return figure
