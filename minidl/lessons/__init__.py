"""The lessons: one readable file each, run by `minidl run NAME` or `python -m minidl.lessons.<file>`.

A lesson's module has `main(argv)` and, where it trains a model of its own, `make_model(nn, ...)`, which builds it
from torch.nn or minidl.nn alike.
"""

from importlib import import_module
from types import ModuleType

LESSONS = {
    "losses": "how wrong is a prediction? MSE, MAE, BCE, CE, their slopes, and what one outlier does",
    "gradient-descent": "walk down a loss: steps that are too small, that fit, that overshoot, that diverge",
    "optimizers": "SGD, Momentum, RMSProp, Adam and AdamW race down a ravine and train a network",
    "linear-regression": "learn y = 2x + 1 from four points, with one weight and one bias",
    "tensors-and-autograd": "shapes, dtypes, broadcasting, gradients and their graph, and zero_grad() forgotten",
    "xor": "the smallest problem that needs a hidden layer, and why some starts never learn it",
    "simple-classifier": "tell two clouds of points apart, with Dataset and DataLoader",
    "mnist": "read handwritten digits with a 784-128-64-10 network",
    "convolution": "what a filter does: edges, blur, and the filters that a network learns",
    "cnn": "read handwritten digits with two convolutions, and look inside",
    "training-problems": "five ways in which training goes wrong, and what cures each",
}


def load(name: str) -> ModuleType:
    """Import the lesson called `name` (a key of LESSONS): only now, so that listing them stays quick."""
    return import_module(f"{__name__}.{name.replace('-', '_')}")
