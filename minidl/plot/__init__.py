"""The lessons' pictures: each function returns a matplotlib Figure, needing no window and no global state.

matplotlib is imported when the first figure is made, so that training works where it is not installed.
"""

from minidl.plot._classes import confusion, decision_boundary, predictions
from minidl.plot._cures import CurePanel, cures
from minidl.plot._curves import Panel, curves, fitted_lines, line_fit, loss_and_accuracy, loss_curve
from minidl.plot._graph import Graph, graphs
from minidl.plot._images import answers, feature_maps, filters, mistakes, sliding_kernel, write_film
from minidl.plot._surfaces import Surface, descents, mountain

__all__ = [
    "CurePanel",
    "Graph",
    "Panel",
    "Surface",
    "answers",
    "confusion",
    "cures",
    "curves",
    "decision_boundary",
    "descents",
    "feature_maps",
    "filters",
    "fitted_lines",
    "graphs",
    "line_fit",
    "loss_and_accuracy",
    "loss_curve",
    "mistakes",
    "mountain",
    "predictions",
    "sliding_kernel",
    "write_film",
]
