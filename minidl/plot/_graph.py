"""Graphs of operations, as autograd writes them down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minidl.plot._figure import BLUE, GREY, INK, ORANGE, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Graph:
    """A label for each node, node 0 being the result, and the edges (from, to) that gradients take."""

    labels: Sequence[str]
    edges: Sequence[tuple[int, int]]

    def depths(self) -> list[int]:
        """Each node's longest way from node 0."""
        depths = [0] * len(self.labels)
        for _ in self.labels:  # no way is longer than the number of nodes
            for start, end in self.edges:
                depths[end] = max(depths[end], depths[start] + 1)
        return depths

    def places(self) -> list[tuple[float, float]]:
        """x and y of each node: a row for each depth, centred below its parents and in their order."""
        depths = self.depths()
        places = [(0.0, 0.0)] * len(self.labels)
        for depth in range(1, max(depths) + 1):
            above = {}
            for node in (node for node, its in enumerate(depths) if its == depth):
                parents = [places[start][0] for start, end in self.edges if end == node]
                above[node] = sum(parents) / len(parents)
            centre = sum(above.values()) / len(above)
            for index, node in enumerate(sorted(above, key=lambda node: above[node])):
                places[node] = (centre + index - (len(above) - 1) / 2, -float(depth))
        return places


def graphs(panels: Mapping[str, Graph], title: str) -> Figure:
    """Panels side by side. Operations are blue, leaves orange; arrows go the gradients' way."""
    height = max(max(graph.depths()) for graph in panels.values()) + 1
    figure = new_figure(6.0 * len(panels), 1.0 * height + 1.2, title)
    columns = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (name, graph) in zip(columns, panels.items(), strict=True):
        places, inner = graph.places(), {start for start, _ in graph.edges}
        boxes = []
        for node, place in enumerate(places):
            colour = BLUE if node in inner else ORANGE
            box = {"boxstyle": "round,pad=0.45", "facecolor": "white", "edgecolor": colour, "linewidth": 1.6}
            text = axes.text(
                *place, graph.labels[node], size=8.5, color=INK, ha="center", va="center", bbox=box
            )
            boxes.append(text.get_bbox_patch())
        for start, end in graph.edges:
            # Past a row in between it goes in a bow, so as not to run through that row's nodes.
            bow = 0.0
            if places[start][1] - places[end][1] > 1.5:
                bow = 0.35 if places[end][0] <= places[start][0] else -0.35
            arrow: dict[str, Any] = {"arrowstyle": "-|>", "color": GREY, "connectionstyle": f"arc3,rad={bow}"}
            arrow |= {"patchA": boxes[start], "patchB": boxes[end], "shrinkA": 1, "shrinkB": 2}
            axes.annotate("", xy=places[end], xytext=places[start], arrowprops=arrow)
        axes.set_xlim(min(x for x, _ in places) - 0.7, max(x for x, _ in places) + 0.7)
        axes.set_ylim(0.6 - height, 0.4)
        axes.set_title(name, fontsize=10, color=INK)
        axes.set_axis_off()
    return figure
