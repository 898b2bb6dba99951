"""The lessons on convolution and on training problems: what they claim, on inputs where the answer is known."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from idx_files import arrays, isolate, write_set

from minidl import plot
from minidl.cli import main
from minidl.lessons import cnn, common, convolution, training_problems


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *args, **options: None)
    monkeypatch.setattr(plot, "write_film", lambda path, frames: None)


# ---- convolution -------------------------------------------------------------------------------------------------


def test_the_sum_by_hand_is_the_correlation() -> None:
    image, kernel = torch.rand(7, 5), torch.randn(3, 3)
    windows = image.unfold(0, 3, 1).unfold(1, 3, 1)
    torch.testing.assert_close(convolution.by_hand(image, kernel), (windows * kernel).sum(dim=(2, 3)))
    torch.testing.assert_close(
        convolution.apply(torch.nn.functional, image, kernel), convolution.by_hand(image, kernel)
    )


def test_edges_and_flats_are_told_apart() -> None:
    image = torch.zeros(5, 8)
    image[:, 4:] = 1.0  # one edge: two of the six columns of windows see it
    answer = torch.arange(6.0).expand(3, 6)
    assert convolution.at_edges_and_flats(image, answer) == (2.5, 2.5)
    answer = torch.tensor([1.0, 1.0, 7.0, -9.0, 2.0, 2.0]).expand(3, 6)
    assert convolution.at_edges_and_flats(image, answer) == (8.0, 1.5)


@pytest.mark.parametrize("wrong", ["shifted", "flipped"])
def test_a_wrong_convolution_misses_the_target(
    wrong: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An answer that is a little off, and a kernel turned round (what mathematicians call convolution)."""
    right = convolution.apply

    def apply(F, image, kernel):
        return right(F, image, kernel) + 1e-3 if wrong == "shifted" else right(F, image, kernel.flip(0, 1))

    model = convolution.make_model(torch.nn, 8, 8)
    monkeypatch.setattr(
        convolution, "train", lambda *args: (model, 0.1, 1.0, 0.0)
    )  # that is not what is asked
    argv = ["run", "convolution", "--data", "digits", "--backend", "torch", "--out", str(tmp_path)]
    assert main(argv) == 0
    monkeypatch.setattr(convolution, "apply", apply)
    assert main(argv) == 1
    assert "target missed: conv2d is the sum by hand" in capsys.readouterr().out


@pytest.mark.parametrize(("shape", "size"), [((28, 28), 10), ((8, 8), 8), ((6, 9), 6), ((100, 40), 10)])
def test_a_picture_small_enough_for_a_film(shape: tuple[int, int], size: int) -> None:
    image = convolution.small(torch.nn.functional, torch.rand(shape))
    assert image.shape[0] == size
    assert max(image.shape) <= 10


# ---- cnn ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(28, 28), (8, 8), (4, 4), (16, 16), (17, 30), (5, 40)])
@pytest.mark.parametrize("lesson", [convolution, cnn])
def test_the_models_fit_the_pictures(lesson, shape: tuple[int, int]) -> None:
    model = lesson.make_model(torch.nn, *shape, classes=7)
    assert model(torch.rand(3, 1, *shape)).shape == (3, 7)


def test_the_cnn_has_fewer_parameters_than_the_mlp() -> None:
    from minidl.lessons import mnist

    counts = [sum(p.numel() for p in lesson.make_model(torch.nn).parameters()) for lesson in (cnn, mnist)]
    assert counts[0] < counts[1]


def test_pictures_too_small_for_two_poolings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_set(tmp_path / "root", content=arrays(side=3))
    assert main(["run", "cnn", "--backend", "torch", "--data-root", str(root), "--out", str(tmp_path)]) == 2
    assert "two poolings leave nothing of 3x3 pixels" in capsys.readouterr().err


def test_cnn_takes_the_size_and_classes_of_its_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_set(tmp_path / "root")
    argv = ["run", "cnn", "--backend", "torch", "--data-root", str(root), "--out", str(tmp_path)]
    assert main([*argv, "--epochs", "5", "--batch-size", "10", "--lr", "0.003"]) == 0
    output = capsys.readouterr().out
    assert "Linear(in_features=32, out_features=128" in output
    assert "mistakes: 0 of 60 test images" in output


def test_scores_are_taken_without_dropout() -> None:
    model = cnn.make_model(torch.nn, 8, 8)
    model[7].p = 0.9
    images = torch.rand(5, 1, 8, 8)
    one, other = (cnn.scores_of(model, images, torch.device("cpu")) for _ in range(2))
    assert torch.equal(one, other)
    assert model.training


def test_feature_maps_are_those_of_the_layers() -> None:
    model = cnn.make_model(torch.nn).eval()
    image = torch.rand(1, 28, 28)
    maps = convolution.feature_maps(model, image)
    assert [name for name, _ in maps] == ["Conv2d", "ReLU", "MaxPool2d"] * 2
    assert [tuple(values.shape) for _, values in maps[::3]] == [(16, 24, 24), (32, 8, 8)]
    assert torch.equal(maps[-1][1], model[:6](image[None])[0])


# ---- training problems -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "well"),
    [
        ((1.0, 0.5, 0.1), True),
        ((math.inf, 3.0), True),
        ((1.0, 0.51, 0.1), False),
        ((1.0, 0.1, math.nan), False),
        ((math.inf, math.inf), False),
        ((0.1, 1.0), False),
    ],
)
def test_cured(numbers: tuple[float, ...], well: bool) -> None:
    assert training_problems.cured(dict(zip("abc", numbers, strict=False))) is well


def test_gradients_vanish_in_sigmoids_and_do_not_in_the_cures() -> None:
    args = common_args(epochs=1)
    _, _, (panel, _) = training_problems.vanishing(common.backend("torch"), args)
    first = {name: norms[0] for name, norms in panel.curves.items()}
    assert all(len(norms) == training_problems.DEPTH + 2 for norms in panel.curves.values())
    assert first.pop("sigmoid") < 1e-5 < 1e-2 < min(first.values())


def test_clipping_is_what_keeps_the_gradients_from_exploding(monkeypatch: pytest.MonkeyPatch) -> None:
    args = common_args(epochs=50)
    numbers, _, _ = training_problems.exploding(common.backend("torch"), args)
    assert numbers["SGD"] == math.inf
    assert training_problems.cured(numbers)
    norm = torch.nn.utils.get_total_norm
    monkeypatch.setattr(
        torch.nn.utils, "clip_grad_norm_", lambda parameters, most: norm([p.grad for p in parameters])
    )
    numbers, _, _ = training_problems.exploding(common.backend("torch"), args)
    assert numbers["norm clipped to 1"] == math.inf


def common_args(epochs: int):
    from argparse import Namespace

    return Namespace(epochs=epochs, lr=0.01, seed=0, device=torch.device("cpu"), compiled=False)


def test_the_target_names_what_was_not_cured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ill = {"ill": 1.0, "cure": 0.9}
    monkeypatch.setattr(
        training_problems,
        "EXPERIMENTS",
        {"made-up": lambda backend, args: (ill, "loss", [plot.CurePanel("", "", "", {"ill": [1.0]})] * 2)},
    )
    assert main(["run", "training-problems", "--backend", "torch", "--out", str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert "NOT CURED" in output
    assert "(not in made-up)" in output


# ---- pictures ----------------------------------------------------------------------------------------------------


def test_the_film_leaves_the_answers_one_by_one() -> None:
    image = torch.rand(5, 4)
    answer = convolution.by_hand(image, torch.ones(3, 3))
    left = []
    for figure in plot.sliding_kernel(image, torch.ones(3, 3), answer, "title\nbelow"):
        shown = np.asarray(figure.axes[2].images[0].get_array().filled(np.nan))
        left.append(int((~np.isnan(shown)).sum()))
    assert left == [1, 2, 3, 4, 5, 6]
    assert np.array_equal(shown, answer.numpy())


def test_the_worst_mistakes_come_first_and_no_mistake_is_no_error() -> None:
    truth, guesses = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 2, 1, 4])
    losses = torch.tensor([9.0, 1.0, 3.0, 2.0])
    labels = [str(number) for number in range(5)]
    figure = plot.mistakes(torch.rand(4, 1, 5, 5), truth, guesses, losses, labels, "title\nbelow")
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["1\n(it is 2)", "4\n(it is 3)", "2\n(it is 1)"]
    figure = plot.mistakes(torch.rand(4, 1, 5, 5), truth, truth, losses, labels, "title\nbelow")
    assert not any(axes.get_title() for axes in figure.axes)


def test_a_curve_that_ends_early_ends_in_a_cross() -> None:
    panel = plot.CurePanel("", "x", "y", {"ill": [1.0, 50.0], "cure": [1.0, 0.5, 0.2]})
    figure = plot.cures([panel, panel], {"ill": math.inf, "cure": 0.2}, "loss", "title\nbelow")
    crosses = [line for line in figure.axes[0].lines if line.get_marker() == "X"]
    assert [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in crosses] == [([2], [50.0])]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ill: diverged", "cure: 0.2"]
