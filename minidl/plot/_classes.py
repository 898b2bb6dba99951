"""What a classifier thinks of points and of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minidl.plot._figure import BLUE, GREY, INK, ORANGE, colour_map, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def decision_boundary(
    snapshots: Sequence[tuple[int, Tensor]], limits: tuple[float, float], x: Tensor, y: Tensor, title: str
) -> Figure:
    """A panel a snapshot, (epoch, answers on a square grid), with the points x (N, 2) of classes y (N,)."""
    columns = min(3, len(snapshots))
    rows = -(-len(snapshots) // columns)
    size = 2.8 if columns > 1 else 4.4
    figure = new_figure(size * columns + 1.4, size * rows + 0.9, title)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    colours = colour_map(BLUE, "#ffffff", ORANGE)
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
        style(axes, "", "")
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
    figure = new_figure(9.6, 5.4, title)
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
    figure = new_figure(7.0, 7.2, title)
    axes = figure.subplots()
    # The square root lets the few mistakes show beside the many right ones.
    axes.imshow(share.sqrt().numpy(), cmap=colour_map("#ffffff", BLUE), vmin=0, vmax=1)
    if count <= 20:
        for row, column in table.nonzero().tolist():
            colour = "white" if share[row, column] > 0.3 else INK
            number = str(int(table[row, column]))
            axes.text(column, row, number, ha="center", va="center", fontsize=8, color=colour)
    turned = max(map(len, labels)) > 3
    axes.set_xticks(range(count), labels, rotation=45 if turned else 0, ha="right" if turned else "center")
    axes.set_yticks(range(count), labels)
    style(axes, "what the model reads", "what it is")
    axes.grid(False)
    return figure
