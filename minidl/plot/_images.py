"""Pictures, the filters that slide over them, and what comes of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minidl.plot._figure import BLUE, GREY, INK, ORANGE, PALE, colour_map, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage


def mistakes(
    images: Tensor,
    truth: Tensor,
    guesses: Tensor,
    losses: Tensor,
    labels: Sequence[str],
    title: str,
) -> Figure:
    """The (at most 24) images (N, 1, H, W) that a model takes for another class with the largest losses (N,)."""
    figure = new_figure(9.6, 5.8, title)
    panels = figure.subplots(3, 8).ravel()
    for axes in panels:
        axes.axis("off")
    order = losses.argsort(descending=True)
    worst = order[guesses[order] != truth[order]].tolist()
    for axes, index in zip(panels, worst, strict=False):
        axes.imshow(images[index, 0].numpy(), cmap="gray_r", vmin=0, vmax=1)
        guess, fact = labels[int(guesses[index])], labels[int(truth[index])]
        axes.set_title(f"{guess}\n(it is {fact})", fontsize=9, color=ORANGE)
        axes.text(
            0.5,
            -0.06,
            f"loss {losses[index]:.1f}",
            fontsize=8,
            color=GREY,
            ha="center",
            va="top",
            transform=axes.transAxes,
        )
    return figure


def filters(stages: Sequence[tuple[str, Tensor]], title: str) -> Figure:
    """Filters (C, 1, H, W) at several times, (name, filters), all on one scale of weights."""
    rows = -(-len(stages[0][1]) // 8)
    figure = new_figure(7.6, 0.9 + len(stages) * (0.35 + 0.85 * rows), title)
    panels = figure.subplots(len(stages), 1, squeeze=False)[:, 0]
    scale = max(float(weights.abs().max()) for _, weights in stages)
    for axes, (name, weights) in zip(panels, stages, strict=True):
        image = _signed(axes, _montage(weights[:, 0], columns=8), scale)
        _name(axes, name)
    bar = figure.colorbar(image, ax=panels, shrink=0.8, pad=0.02)
    bar.set_label("weight", color=GREY)
    bar.ax.tick_params(colors=GREY, labelsize=9, length=0)
    bar.outline.set_visible(False)
    return figure


def feature_maps(image: Tensor, stages: Sequence[tuple[str, Tensor]], title: str) -> Figure:
    """An image (1, H, W), and what each layer makes of it: (name, maps of shape (C, H, W)), in rows of 16."""
    rows = [-(-len(maps) // 16) for _, maps in stages]
    figure = new_figure(11.0, 1.0 + sum(0.36 + 0.56 * row for row in rows), title)
    heights = [0.36 + 0.56 * row for row in rows]
    grid = figure.add_gridspec(len(rows), 2, width_ratios=[1, 6.5], height_ratios=heights)
    axes = figure.add_subplot(grid[: max(1, len(rows) // 2), 0])
    axes.imshow(image[0].numpy(), cmap="gray_r", vmin=0, vmax=1)
    _bare(axes)
    _name(axes, "the picture")
    for row, (name, maps) in enumerate(stages):
        axes = figure.add_subplot(grid[row, 1])
        _signed(axes, _montage(maps, columns=16), float(maps.abs().max()))
        axes.set_anchor("W")
        count, height, width = maps.shape
        axes.set_title(
            f"{row + 1}. {name}: {count} maps of {height}x{width}", fontsize=9.5, color=INK, loc="left"
        )
    return figure


def answers(
    images: Sequence[tuple[str, Tensor]], kernels: Sequence[tuple[str, Tensor, Sequence[Tensor]]], title: str
) -> Figure:
    """A column a kernel, (name, (3, 3), its answer (H, W) to each image), right of the images, (name, (H, W))."""
    figure = new_figure(1.55 * (len(kernels) + 1), 1.1 + 1.7 * (len(images) + 1), title)
    panels = figure.subplots(len(images) + 1, len(kernels) + 1)
    for axes in panels.flat:
        _bare(axes)
    panels[0, 0].set_visible(False)
    for axes, (name, image) in zip(panels[1:, 0], images, strict=True):
        axes.imshow(image.numpy(), cmap="gray_r", vmin=0, vmax=1)
        _name(axes, name)
    for column, (name, kernel, answered) in zip(panels.T[1:], kernels, strict=True):
        _numbers(column[0], kernel, float(kernel.abs().max()))
        _name(column[0], name)
        for axes, answer in zip(column[1:], answered, strict=True):
            _signed(axes, answer, float(answer.abs().max()))
    return figure


def sliding_kernel(image: Tensor, kernel: Tensor, answer: Tensor, title: str) -> Iterator[Figure]:
    """The frames of a film: a kernel (3, 3) goes over an image (H, W) and leaves its answer (H-2, W-2).

    It is one figure, changed between the frames.
    """
    from matplotlib.patches import Rectangle

    figure = new_figure(9.0, 4.1, title)
    left, middle, right = figure.subplots(1, 3)
    scale = float(answer.abs().max())
    left.imshow(image.numpy(), cmap="gray_r", vmin=0, vmax=1)
    _bare(left)
    _name(left, "the picture, and the kernel's place")
    _name(middle, "pixel × weight")
    filled = _signed(right, torch.full_like(answer, torch.nan), scale)
    _name(right, "the answers so far")
    window = left.add_patch(Rectangle((0, 0), 3, 3, fill=False, edgecolor=ORANGE, linewidth=2.5))
    point = right.add_patch(Rectangle((0, 0), 1, 1, fill=False, edgecolor=ORANGE, linewidth=2.5))
    products, texts = _numbers(middle, torch.zeros_like(kernel), float(kernel.abs().max()))
    below = middle.set_xlabel("", color=INK, fontsize=11)
    shown = torch.full_like(answer, torch.nan)
    for row, column in torch.cartesian_prod(*map(torch.arange, answer.shape)).tolist():
        pixels = image[row : row + 3, column : column + 3]
        shown[row, column] = answer[row, column]
        filled.set_data(shown.numpy())
        products.set_data((pixels * kernel).numpy())
        for text, pixel, weight in zip(
            texts, pixels.flatten().tolist(), kernel.flatten().tolist(), strict=True
        ):
            text.set_text(f"{pixel:.2f}\n× {weight:g}")
        window.set_xy((column - 0.5, row - 0.5))
        point.set_xy((column - 0.5, row - 0.5))
        below.set_text(f"sum: {answer[row, column]:.2f}")
        yield figure


def write_film(path: Path, frames: Iterator[Figure]) -> None:
    """Write the frames, all of them one figure, as an animated GIF."""
    from matplotlib.animation import PillowWriter

    figure = next(frames)
    writer = PillowWriter(fps=6)
    with writer.saving(figure, str(path), dpi=80):
        writer.grab_frame()
        figure.set_layout_engine("none")  # the first frame's: to lay out each would take most of the time
        for _ in frames:
            writer.grab_frame()


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(PALE)


def _name(axes: Axes, name: str) -> None:
    axes.set_title(name, fontsize=9.5, color=INK)


def _signed(axes: Axes, values: Tensor, scale: float) -> AxesImage:
    """Numbers (H, W) as colours: blue below zero, white, orange above, and grey where there is none."""
    colours = colour_map(BLUE, "#ffffff", ORANGE).with_extremes(bad=PALE)
    _bare(axes)
    return axes.imshow(values.numpy(), cmap=colours, vmin=-scale, vmax=scale, interpolation="nearest")


def _numbers(axes: Axes, values: Tensor, scale: float) -> tuple[AxesImage, list]:
    """A small table (H, W) as colours with its numbers."""
    image = _signed(axes, values, scale)
    texts = [
        axes.text(
            column,
            row,
            f"{value:.2g}" if abs(value) >= 0.1 else f"{value:.1g}",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if abs(value) > 0.75 * scale else INK,
        )
        for row, line in enumerate(values.tolist())
        for column, value in enumerate(line)
    ]
    return image, texts


def _montage(pictures: Tensor, columns: int) -> Tensor:
    """Pictures (N, H, W) side by side in rows of at most `columns`, with gaps of NaN between them."""
    zoom = max(1, 32 // pictures.shape[2])  # for gaps that are narrow beside a small picture, too
    pictures = pictures.repeat_interleave(zoom, dim=1).repeat_interleave(zoom, dim=2)
    count, height, width = pictures.shape
    columns, gap = min(columns, count), max(1, width // 12)
    rows = -(-count // columns)
    table = torch.full((rows * columns, height + gap, width + gap), torch.nan)
    table[:count, :height, :width] = pictures
    table = table.reshape(rows, columns, height + gap, width + gap).transpose(1, 2)
    return table.reshape(rows * (height + gap), columns * (width + gap))[:-gap, :-gap]
