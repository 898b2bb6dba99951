"""A convolutional network reads handwritten digits.

The mnist lesson hands a picture's pixels to a linear layer, which cannot know which of them are neighbours. Here
16 and then 32 small filters slide over the picture, each looking for one pattern wherever it stands; after each
pooling a pattern may lie a little to the side and count all the same. With fewer parameters than there the
network makes less than half the mistakes. The pictures show what the filters became, what they answer to one
digit, and the digits that the model is most wrong about.
"""

import time
from argparse import Namespace
from typing import Any

import torch
from torch import Tensor

from minidl import data, plot
from minidl.lessons import common
from minidl.lessons.convolution import SIGNS, feature_maps
from minidl.lessons.mnist import batches, mean_loss, training_part, wanted_accuracy

DEFAULTS = common.Defaults(epochs=None, quick_epochs=None, lr=0.001, batch_size=64)
# Kind of data -> test accuracy to reach after so many epochs, as in the mnist lesson.
TARGETS = {
    "mnist": {1: 0.97, 3: 0.985},
    "fashion": {1: 0.83, 3: 0.88},
    "digits": {10: 0.93, 20: 0.96},
    "other": {3: 0.0},
}
QUICK_TARGETS = {"mnist": {1: 0.92}, "fashion": {1: 0.75}, "digits": {10: 0.93}, "other": {1: 0.0}}
ROOMY = 16  # pixels a side from which two 5x5 filters and two poolings leave something without padding
SMALLEST = 4  # with padding, of which two poolings leave one pixel


def make_model(nn: Any, height: int = 28, width: int = 28, classes: int = 10) -> torch.nn.Sequential:
    # A 5x5 filter needs two pixels to each side: large pictures lose that margin, small ones get it, of zeros.
    padding = 0 if min(height, width) >= ROOMY else 2
    lost = 4 - 2 * padding
    height, width = (((side - lost) // 2 - lost) // 2 for side in (height, width))
    return nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=5, padding=padding),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, kernel_size=5, padding=padding),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.25),
        nn.Linear(32 * height * width, 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


def scores_of(model: torch.nn.Module, images: Tensor, device: torch.device) -> Tensor:
    """The model's scores (N, classes) for images (N, 1, H, W), with dropout off."""
    model.eval()
    with torch.no_grad():
        scores = torch.cat([model(batch.to(device)).cpu() for batch in images.split(1000)])
    model.train()
    return scores


def filters_of(model: torch.nn.Sequential) -> Tensor:
    """The first layer's filters (16, 1, 5, 5) as they are now."""
    first: Any = model[0]
    return first.weight.detach().cpu().clone()


def run(args: Namespace) -> common.Result:
    backend = common.backend(args.backend)
    nn, optim = backend.nn, backend.optim
    dataset = data.load(args.data, args.data_root)
    height, width = dataset.train_x.shape[2:]
    if min(height, width) < SMALLEST:
        raise data.DataError(
            f"two poolings leave nothing of {height}x{width} pixels: at least {SMALLEST} a side"
        )
    targets = (QUICK_TARGETS if args.quick else TARGETS)[dataset.kind]
    epochs = args.epochs or max(targets)
    train_x, train_y = training_part(dataset, args.quick)
    torch.manual_seed(args.seed)

    loader = batches(train_x, train_y, args.batch_size)
    model = make_model(nn, height, width, len(dataset.labels)).to(args.device)
    print(model)
    print(f"parameters: {sum(parameter.numel() for parameter in model.parameters())}")
    untrained = filters_of(model)
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.Adam(model.parameters(), lr=args.lr)

    compiled = common.compiled(args, model, criterion, optimizer)
    losses, epoch_losses, accuracies = [], [], []
    started = time.perf_counter()
    for epoch in range(1, epochs + 1):
        if compiled:
            losses += compiled.fit(train_x, train_y, batch_size=args.batch_size).flatten().tolist()
        else:
            for images, labels in common.bar(loader, f"epoch {epoch}/{epochs}"):
                images, labels = images.to(args.device), labels.to(args.device)
                optimizer.zero_grad()
                loss = criterion(model(images), labels)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())

        scores = scores_of(model, dataset.test_x, args.device)
        guesses = scores.argmax(dim=1)
        accuracies.append((guesses == dataset.test_y).float().mean().item())
        epoch_losses.append(mean_loss(losses[-len(loader) :], args.batch_size, len(train_x)))
        common.say(
            f"epoch {epoch}/{epochs}  loss {epoch_losses[-1]:.4f}  test accuracy {accuracies[-1]:.4f}  "
            f"{time.perf_counter() - started:.1f} s"
        )
    seconds = time.perf_counter() - started

    test_losses = backend.F.cross_entropy(scores, dataset.test_y, reduction="none")
    wrong = (guesses != dataset.test_y).nonzero().flatten()
    print(f"mistakes: {len(wrong)} of {len(guesses)} test images; the worst:")
    for index in wrong[test_losses[wrong].argsort(descending=True)][:3].tolist():
        fact, guess = dataset.labels[dataset.test_y[index]], dataset.labels[guesses[index]]
        print(f"  image {index}: {fact} taken for {guess}, loss {test_losses[index]:.2f}")
    with common.pictures(args) as save:
        title = common.title(args, f"Learning {dataset.name}")
        save("loss", plot.loss_and_accuracy(losses, accuracies, title))
        title = common.title(args, f"{dataset.name}: what is taken for what")
        save("confusion", plot.confusion(dataset.test_y, guesses, dataset.labels, title))
        title = common.title(args, f"{dataset.name}: the worst mistakes, largest loss first")
        save(
            "mistakes",
            plot.mistakes(dataset.test_x, dataset.test_y, guesses, test_losses, dataset.labels, title),
        )
        title = common.title(args, "The 16 filters of the first layer")
        save("filters", plot.filters([("before training", untrained), ("after", filters_of(model))], title))
        image = dataset.test_x[0]
        title = common.title(args, f"What each layer makes of the picture {SIGNS}")
        save("features", plot.feature_maps(image, feature_maps(model, image.to(args.device)), title))

    wanted = wanted_accuracy(dataset, targets, epochs)
    target = f"test accuracy of at least {wanted:.3g} on {dataset.name}"
    return common.Result(epoch_losses[-1], accuracies[-1], seconds, target, accuracies[-1] >= wanted)


def main(argv: list[str] | None = None) -> int:
    return common.command("cnn", __doc__, run, DEFAULTS, argv)


if __name__ == "__main__":
    from minidl.cli import run_as_module

    raise SystemExit(run_as_module("cnn"))
