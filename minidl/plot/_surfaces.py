"""Losses as landscapes over two numbers, and the paths that descend them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minidl.plot._figure import BLUE, CURVES, GREY, INK, ORANGE, colour_map, legend_below, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Surface:
    """The loss (Y, X) over a grid of x (X,) and y (Y,), and where it is lowest."""

    x: Tensor
    y: Tensor
    loss: Tensor
    lowest: tuple[float, float]
    xlabel: str
    ylabel: str


def descents(surface: Surface, paths: Mapping[str, Tensor], title: str, size: tuple[float, float]) -> Figure:
    """Seen from above: a panel a path (N, 2), two in a row, `size` inches each. Paths may leave the picture."""
    rows = -(-len(paths) // 2)
    figure = new_figure(2 * size[0] + 1.0, rows * size[1] + 0.9, title)
    panels = figure.subplots(rows, 2, squeeze=False, sharex=True, sharey=True)
    # The square root spreads the contours: otherwise they crowd on the slopes and leave the floor empty.
    height = surface.loss.sqrt().numpy()
    for axes, (name, path) in zip(panels.flat, paths.items(), strict=False):
        axes.contourf(surface.x, surface.y, height, levels=16, cmap=colour_map("#ffffff", BLUE), alpha=0.45)
        axes.contour(surface.x, surface.y, height, levels=16, colors="white", linewidths=0.6)
        dot = 3.2 if len(path) <= 100 else 2.0
        axes.plot(*path.T, color=ORANGE, linewidth=dot / 2.4, marker="o", markersize=dot)
        axes.plot(*path[0], "o", color=INK, markersize=7, label="start")
        axes.plot(*surface.lowest, "*", color=INK, markersize=11, label="lowest point")
        axes.set_xlim(float(surface.x[0]), float(surface.x[-1]))
        axes.set_ylim(float(surface.y[0]), float(surface.y[-1]))
        axes.set_title(name, fontsize=10, color=INK)
        style(axes, "", "")
        axes.grid(False)
        axes.xaxis.set_tick_params(labelbottom=True)
    for axes in list(panels.flat)[len(paths) :]:
        axes.set_axis_off()
    for axes in list(panels.flat)[max(0, len(paths) - 2) : len(paths)]:
        axes.set_xlabel(surface.xlabel)
    for axes in panels[:, 0]:
        axes.set_ylabel(surface.ylabel)
    legend_below(figure, panels[0, 0].get_legend_handles_labels()[0], 2)
    return figure


def mountain(surface: Surface, paths: Mapping[str, Tensor], title: str) -> Figure:
    """Seen from the side: the surface, with paths (N, 3) of x, y and loss from one start, cut where they leave it."""
    figure = new_figure(7.6, 6.4, title)
    axes = figure.add_subplot(projection="3d", computed_zorder=False)
    columns, rows = torch.meshgrid(surface.x, surface.y, indexing="xy")
    colours = colour_map("#dbeafe", BLUE)
    axes.plot_surface(
        columns.numpy(),
        rows.numpy(),
        surface.loss.numpy(),
        cmap=colours,
        alpha=0.6,
        rcount=40,
        ccount=40,
        linewidth=0,
    )
    top = float(surface.loss.max())
    for (name, path), (colour, _) in zip(paths.items(), CURVES[1:], strict=False):
        outside = (
            (path[:, 0] < surface.x[0])
            | (path[:, 0] > surface.x[-1])
            | (path[:, 1] < surface.y[0])
            | (path[:, 1] > surface.y[-1])
        )
        end = int(outside.nonzero()[0]) if outside.any() else len(path)
        x, y, loss = path[:end].T
        # A little above the surface, which would swallow half of each dot.
        axes.plot(
            x, y, loss + 0.01 * top, color=colour, linewidth=1.6, marker="o", markersize=3.5, label=name
        )
    axes.plot(x[0], y[0], loss[0] + 0.01 * top, "o", color=INK, markersize=7, label="start")
    axes.plot(*surface.lowest, 0, "*", color=INK, markersize=11, label="lowest point")
    axes.set_xlabel(surface.xlabel, color=GREY)
    axes.set_ylabel(surface.ylabel, color=GREY)
    axes.set_zlabel("loss", color=GREY)
    axes.tick_params(colors=GREY, labelsize=8)
    axes.view_init(elev=46, azim=-58)
    axes.set_box_aspect((4, 4, 3), zoom=1.1)
    legend_below(figure, axes.get_legend_handles_labels()[0], 3)
    return figure
