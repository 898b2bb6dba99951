"""Convolution: a small filter slides over a picture and says at each place how well that looks like it.

Nine weights are laid over nine pixels, the products are summed, and the sum is one pixel of the answer. Weights
chosen by hand blur, sharpen or find edges; a network finds its own. The lesson does one sum by hand, shows what
six filters answer, and then trains a small network to see which filters it learns and what its layers make of a
digit. A film shows a kernel on its way over the picture.
"""

import time
from argparse import Namespace
from typing import Any

import torch
from torch import Tensor

from minidl import data, plot
from minidl.lessons import common
from minidl.lessons.mnist import batches, predict, wanted_accuracy

DEFAULTS = common.Defaults(epochs=None, quick_epochs=None, lr=0.005, batch_size=32)
FILTERS = {
    "identity": [[0, 0, 0], [0, 1, 0], [0, 0, 0]],
    "blur": [[1 / 9, 1 / 9, 1 / 9], [1 / 9, 1 / 9, 1 / 9], [1 / 9, 1 / 9, 1 / 9]],
    "sharpen": [[0, -1, 0], [-1, 5, -1], [0, -1, 0]],
    "left-right edges": [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]],  # Sobel's
    "up-down edges": [[-1, -2, -1], [0, 0, 0], [1, 2, 1]],
    "all edges": [[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]],  # minus the Laplacian
}
EDGES = [name for name in FILTERS if name.endswith("edges")]
# Kind of data -> test accuracy to reach after so many epochs; a small network on few images.
TARGETS = {"mnist": {1: 0.90}, "fashion": {1: 0.65}, "digits": {10: 0.90}, "other": {1: 0.0}}
IMAGES = 12_800
SIGNS = "(orange: above 0, blue: below)"


def make_model(nn: Any, height: int = 28, width: int = 28, classes: int = 10) -> torch.nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * (height // 2) * (width // 2), classes),
    )


def by_hand(image: Tensor, kernel: Tensor) -> Tensor:
    """The answer (H-2, W-2) of a kernel (3, 3) on an image (H, W): nine products and their sum at each place."""
    height, width = image.shape
    pixels, weights = image.tolist(), kernel.tolist()
    answer = [
        [
            sum(weights[i][j] * pixels[row + i][column + j] for i in range(3) for j in range(3))
            for column in range(width - 2)
        ]
        for row in range(height - 2)
    ]
    return torch.tensor(answer)


def apply(F: Any, image: Tensor, kernel: Tensor) -> Tensor:
    """The same from the library: its conv2d wants images (N, 1, H, W) and kernels (C, 1, 3, 3)."""
    return F.conv2d(image[None, None], kernel[None, None])[0, 0]


def square() -> Tensor:
    """A square of 0.75 on a ground of 0.25, (16, 16): edges, and flat areas that are not 0."""
    picture = torch.full((16, 16), 0.25)
    picture[4:12, 4:12] = 0.75
    return picture


def at_edges_and_flats(image: Tensor, answer: Tensor) -> tuple[float, float]:
    """How large the answer (H-2, W-2) is in the mean where the nine pixels differ, and where they are all equal."""
    windows = image.unfold(0, 3, 1).unfold(1, 3, 1).flatten(2)  # (H-2, W-2, 9)
    flat = windows.amax(dim=2) == windows.amin(dim=2)
    return answer[~flat].abs().mean().item(), answer[flat].abs().mean().item()


def feature_maps(model: torch.nn.Sequential, image: Tensor) -> list[tuple[str, Tensor]]:
    """What each layer up to the flattening makes of an image (1, H, W): its name, and its maps (C, H, W)."""
    maps, x = [], image.unsqueeze(0)
    with torch.no_grad():
        for layer in model:
            x = layer(x)
            if x.dim() != 4:
                break
            maps.append((type(layer).__name__, x[0].cpu()))
    return maps


def small(F: Any, image: Tensor) -> Tensor:
    """The middle of an image (H, W), halved until it has few enough pixels for a film."""
    while min(image.shape) > 16:
        image = F.avg_pool2d(image[None, None], 2)[0, 0]
    top, left = (max(0, side - 10) // 2 for side in image.shape)
    return image[top : top + 10, left : left + 10]


def train(
    args: Namespace, backend: Any, dataset: data.Dataset
) -> tuple[torch.nn.Sequential, float, float, float]:
    """A small network: the model, its last loss, its test accuracy, the seconds it took."""
    torch.manual_seed(args.seed)
    height, width = dataset.train_x.shape[2:]
    model = make_model(backend.nn, height, width, len(dataset.labels)).to(args.device)
    criterion = backend.nn.CrossEntropyLoss()
    optimizer = backend.optim.Adam(model.parameters(), lr=args.lr)
    compiled = common.compiled(args, model, criterion, optimizer)
    train_x, train_y = dataset.train_x[:IMAGES], dataset.train_y[:IMAGES]
    loader = batches(train_x, train_y, args.batch_size)
    started = time.perf_counter()
    for epoch in range(1, args.epochs + 1):
        if compiled:
            loss = compiled.fit(train_x, train_y, batch_size=args.batch_size)[-1, -1]
        else:
            for images, labels in common.bar(loader, f"epoch {epoch}/{args.epochs}"):
                optimizer.zero_grad()
                loss = criterion(model(images.to(args.device)), labels.to(args.device))
                loss.backward()
                optimizer.step()
    seconds = time.perf_counter() - started
    guesses = predict(model, dataset.test_x, args.device)
    return model, loss.item(), (guesses == dataset.test_y).float().mean().item(), seconds


def run(args: Namespace) -> common.Result:
    backend = common.backend(args.backend)
    F = backend.F
    dataset = data.load(args.data, args.data_root)
    targets = TARGETS[dataset.kind]
    args.epochs = args.epochs or max(targets)
    digit, label = dataset.test_x[0, 0], dataset.labels[dataset.test_y[0]]
    kernels = {name: torch.tensor(weights, dtype=torch.float32) for name, weights in FILTERS.items()}

    middle = [side // 2 for side in digit.shape]
    window = digit[middle[0] - 1 : middle[0] + 2, middle[1] - 1 : middle[1] + 2]
    terms = zip(window.flatten().tolist(), kernels["sharpen"].flatten().tolist(), strict=True)
    print(f"sharpen at the middle of the {label}: {' + '.join(f'{p:.2f}·({w:g})' for p, w in terms)}")
    library = apply(F, digit, kernels["sharpen"])[middle[0] - 1, middle[1] - 1]
    print(f"  = {float((window * kernels['sharpen']).sum()):.4f} by hand, {library:.4f} by conv2d")
    off = max(float((apply(F, digit, k) - by_hand(digit, k)).abs().max()) for k in kernels.values())
    print(f"over all pixels and filters, conv2d is off by at most {off:.1g}")

    print("mean size of the answer to a square:           at edges   on flat areas")
    sizes = {
        name: at_edges_and_flats(square(), apply(F, square(), kernel)) for name, kernel in kernels.items()
    }
    for name, (edge, flat) in sizes.items():
        print(f"  {name:44} {edge:8.3f} {flat:15.3f}")

    model, loss, accuracy, seconds = train(args, backend, dataset)
    first: Any = model[0]
    learned = first.weight.detach().cpu()[:, 0]
    print(f"a small network with 8 filters and then 16 reads {accuracy:.1%} of the test images")

    with common.pictures(args) as save:
        images = [("a square", square()), (f"test image ({label})", digit)]
        for picture, what, shown in (
            ("filters", f"What filters chosen by hand answer {SIGNS}", list(kernels.items())),
            (
                "learned",
                f"What learned filters answer {SIGNS}",
                [(f"filter {i + 1}", k) for i, k in enumerate(learned)],
            ),
        ):
            columns = [(name, k, [apply(F, image, k) for _, image in images]) for name, k in shown]
            save(picture, plot.answers(images, columns, common.title(args, what)))
        maps = feature_maps(model, dataset.test_x[0].to(args.device))
        save(
            "features",
            plot.feature_maps(
                dataset.test_x[0], maps, common.title(args, f"What each layer makes of the picture {SIGNS}")
            ),
        )
        title = common.title(args, "A kernel slides over the picture: left-right edges")
        kernel, image = kernels["left-right edges"], small(F, digit)
        save("sliding", plot.sliding_kernel(image, kernel, apply(F, image, kernel), title))

    wanted = wanted_accuracy(dataset, targets, args.epochs)
    edges = all(sizes[name][0] > 0.25 and sizes[name][1] < 1e-5 for name in EDGES)
    target = (
        "conv2d is the sum by hand to within 1e-5, edge filters answer at edges alone, "
        f"test accuracy of at least {wanted:.3g} on {dataset.name}"
    )
    return common.Result(loss, accuracy, seconds, target, off < 1e-5 and edges and accuracy >= wanted)


def main(argv: list[str] | None = None) -> int:
    return common.command("convolution", __doc__, run, DEFAULTS, argv)


if __name__ == "__main__":
    from minidl.cli import run_as_module

    raise SystemExit(run_as_module("convolution"))
