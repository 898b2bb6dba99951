"""The lessons' pictures: each function returns a matplotlib Figure, needing no window and no global state.

matplotlib is imported when the first figure is made, so that training works where it is not installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

BLUE, ORANGE, INK, GREY, PALE = "#2563eb", "#ea580c", "#1f2937", "#6b7280", "#e5e7eb"


def loss_curve(losses: Sequence[float], title: str, ylabel: str) -> Figure:
    """The loss after each epoch, on a logarithmic scale."""
    figure = _figure(6.4, 4.5, title)
    axes = figure.subplots()
    axes.plot(range(1, len(losses) + 1), losses, color=BLUE, linewidth=2)
    axes.set_yscale("log")
    axes.set_xlim(0, max(2, len(losses)))
    _style(axes, "epoch", f"{ylabel} (log scale)")
    return figure


def loss_and_accuracy(losses: Sequence[float], accuracies: Sequence[float], title: str) -> Figure:
    """Left the loss of each step and its running mean, right the test accuracy after each epoch."""
    figure = _figure(9.6, 4.6, title)
    left, right = figure.subplots(1, 2)
    window = max(1, len(losses) // 50)
    smooth = torch.tensor(losses).unfold(0, window, 1).mean(dim=1).tolist()
    steps = range(1, len(losses) + 1)
    left.plot(steps, losses, color=BLUE, alpha=0.25, linewidth=0.8, label="each step")
    left.plot(steps[window - 1 :], smooth, color=BLUE, linewidth=2, label=f"mean of the last {window}")
    left.set_xlim(0, max(2, len(losses)))
    left.set_ylim(bottom=0)
    left.legend(frameon=False, labelcolor=INK)
    _style(left, "step", "cross entropy")

    epochs = range(1, len(accuracies) + 1)
    percent = [100 * accuracy for accuracy in accuracies]
    right.plot(epochs, percent, color=ORANGE, linewidth=2, marker="o", markersize=5)
    place: dict[str, Any] = {"xytext": (-4, -16), "textcoords": "offset points", "ha": "right"}
    right.annotate(f"{percent[-1]:.1f}%", (epochs[-1], percent[-1]), color=ORANGE, fontweight="bold", **place)
    right.set_xlim(0.5, len(epochs) + 0.5)
    right.set_ylim(min(percent) - max(2.0, 0.2 * (100 - min(percent))), 100)
    if len(epochs) <= 10:
        right.set_xticks(epochs)
    _style(right, "epoch", "test accuracy (%)")
    return figure


def line_fit(
    points: Sequence[tuple[float, float]], lines: Sequence[tuple[int, float, float, float]], title: str
) -> Figure:
    """The points, and the line at several epochs, oldest first: (epoch, weight, bias, prediction at 5)."""
    figure = _figure(7.2, 5.0, title)
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
    _style(axes, "x", "y")
    return figure


def decision_boundary(
    snapshots: Sequence[tuple[int, Tensor]], limits: tuple[float, float], x: Tensor, y: Tensor, title: str
) -> Figure:
    """A panel a snapshot, (epoch, answers on a square grid), with the points x (N, 2) of classes y (N,)."""
    columns = min(3, len(snapshots))
    rows = -(-len(snapshots) // columns)
    size = 2.8 if columns > 1 else 4.4
    figure = _figure(size * columns + 1.4, size * rows + 0.9, title)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    colours = _colours(BLUE, "#ffffff", ORANGE)
    extent = (*limits, *limits)
    for axes, (epoch, grid) in zip(panels.flat, snapshots, strict=False):
        image = axes.imshow(
            grid.numpy(),
            origin="lower",
            extent=extent,
            cmap=colours,
            vmin=0,
            vmax=1,
            alpha=0.6,
            interpolation="bilinear",
        )
        if grid.min() < 0.5 < grid.max():
            axes.contour(grid.numpy(), levels=[0.5], extent=extent, colors=INK, linewidths=1.5)
        for label, colour in ((0, BLUE), (1, ORANGE)):
            mine = x[y == label].numpy()
            size = 90 if len(x) <= 10 else 28
            axes.scatter(mine[:, 0], mine[:, 1], color=colour, edgecolor="white", s=size, zorder=3)
        axes.set_title(f"epoch {epoch}", fontsize=10, color=INK)
        _style(axes, "", "")
        axes.grid(False)
        axes.locator_params(nbins=5)
    for axes in panels[-1]:
        axes.set_xlabel("first input")
    for axes in panels[:, 0]:
        axes.set_ylabel("second input")
    bar = figure.colorbar(image, ax=panels, shrink=0.8, pad=0.02)
    bar.set_label("the model's answer", color=GREY)
    bar.ax.tick_params(colors=GREY, labelsize=9, length=0)
    bar.outline.set_visible(False)
    return figure


def predictions(images: Tensor, truth: Tensor, guesses: Tensor, labels: Sequence[str], title: str) -> Figure:
    """24 of the images (N, 1, H, W): some that the model gets right, then up to 8 that it gets wrong."""
    wrong = (guesses != truth).nonzero().flatten()[:8]
    right = (guesses == truth).nonzero().flatten()[: 24 - len(wrong)]
    figure = _figure(9.6, 5.4, title)
    panels = figure.subplots(3, 8).flat
    for axes in panels:
        axes.axis("off")
    for axes, index in zip(figure.axes, [*right.tolist(), *wrong.tolist()], strict=False):
        axes.imshow(images[index, 0].numpy(), cmap="gray_r", vmin=0, vmax=1)
        guess, fact = labels[int(guesses[index])], labels[int(truth[index])]
        if guess == fact:
            axes.set_title(guess, fontsize=10, color=INK)
        else:
            axes.set_title(f"{guess}\n(it is {fact})", fontsize=9, color=ORANGE)
    return figure


def confusion(truth: Tensor, guesses: Tensor, labels: Sequence[str], title: str) -> Figure:
    """How often (number) and in what share (shade) the class of a row is taken for that of a column."""
    count = len(labels)
    table = torch.bincount(truth * count + guesses, minlength=count * count).reshape(count, count)
    share = table / table.sum(dim=1, keepdim=True).clamp(min=1)
    figure = _figure(7.0, 7.2, title)
    axes = figure.subplots()
    # The square root lets the few mistakes show beside the many right ones.
    axes.imshow(share.sqrt().numpy(), cmap=_colours("#ffffff", BLUE), vmin=0, vmax=1)
    if count <= 20:
        for row, column in table.nonzero().tolist():
            colour = "white" if share[row, column] > 0.3 else INK
            number = str(int(table[row, column]))
            axes.text(column, row, number, ha="center", va="center", fontsize=8, color=colour)
    turned = max(map(len, labels)) > 3
    axes.set_xticks(range(count), labels, rotation=45 if turned else 0, ha="right" if turned else "center")
    axes.set_yticks(range(count), labels)
    _style(axes, "what the model reads", "what it is")
    axes.grid(False)
    return figure


def _figure(width: float, height: float, title: str) -> Figure:
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


def _style(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, color=GREY)
    axes.set_ylabel(y, color=GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(which="both", colors=GREY, labelsize=9, length=0)
    axes.grid(True, color=PALE, linewidth=0.7)
    axes.set_axisbelow(True)


def _colours(*colours: str) -> Colormap:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("minidl", list(colours))
