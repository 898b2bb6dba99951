"""The lessons' pictures: each function returns a matplotlib Figure, needing no window and no global state.

matplotlib is imported when the first figure is made, so that training works where it is not installed.
"""

from minidl.plot._classes import confusion, decision_boundary, predictions
from minidl.plot._cures import Panel, cures
from minidl.plot._curves import line_fit, loss_and_accuracy, loss_curve
from minidl.plot._images import answers, feature_maps, filters, mistakes, sliding_kernel, write_film

__all__ = [
    "Panel",
    "answers",
    "confusion",
    "cures",
    "decision_boundary",
    "feature_maps",
    "filters",
    "line_fit",
    "loss_and_accuracy",
    "loss_curve",
    "mistakes",
    "predictions",
    "sliding_kernel",
    "write_film",
]
