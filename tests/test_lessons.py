"""The lessons: each runs on both backends, reaches its target, draws and ends in a result line."""

import math
import os
import re
import subprocess
import sys
from argparse import Namespace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from idx_files import isolate, write_set

import minidl
from minidl import lessons, plot
from minidl.cli import main
from minidl.lessons import (
    cnn,
    common,
    convolution,
    linear_regression,
    losses,
    mnist,
    simple_classifier,
    training_problems,
    xor,
)

PICTURES = {
    "losses": ("curves", "outlier"),
    "gradient-descent": ("paths", "mountain", "loss"),
    "optimizers": ("ravine", "loss"),
    "linear-regression": ("loss", "line"),
    "tensors-and-autograd": ("graph", "zero-grad"),
    "xor": ("loss", "boundary"),
    "simple-classifier": ("loss", "boundary"),
    "mnist": ("loss", "digits", "confusion"),
    "convolution": ("filters", "learned", "features"),
    "cnn": ("loss", "confusion", "mistakes", "filters", "features"),
    "training-problems": tuple(training_problems.EXPERIMENTS),
}
FILMS = {"convolution": ("sliding",)}


MODULES = [losses, linear_regression, xor, simple_classifier, mnist, convolution, cnn, training_problems]

WITH_ACCURACY = ("optimizers", "xor", "simple-classifier", "mnist", "convolution", "cnn")


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that are not about pictures: drawing one takes half a second."""
    monkeypatch.setattr(plot, "write_film", lambda path, frames: None)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *args, **options: None)


def result(output: str) -> dict[str, str]:
    """The fields of the last line."""
    words = output.rstrip("\n").split("\n")[-1].split()
    assert words[0] == "result"
    return dict(word.split("=") for word in words[1:])


@pytest.mark.parametrize("backend", ["minidl", "torch"])
@pytest.mark.parametrize("name", lessons.LESSONS)
def test_lesson(name: str, backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", name, "--quick", "--backend", backend, "--out", str(tmp_path / "pictures")]) == 0
    output = capsys.readouterr().out
    fields = result(output)
    assert (fields["lesson"], fields["backend"]) == (name, backend)
    assert math.isfinite(float(fields["loss"]))
    assert float(fields["seconds"]) > 0
    expected = ["lesson", "backend", "loss", "accuracy", "seconds"]
    if name in WITH_ACCURACY:
        assert 0.9 < float(fields["accuracy"]) <= 1
    else:
        expected.remove("accuracy")
    assert list(fields) == expected
    assert "target reached: " in output
    for picture in PICTURES[name]:
        path = tmp_path / "pictures" / f"{name}-{picture}.png"
        assert f"picture: {path}" in output
        assert is_drawn(path)
    films = FILMS.get(name, ())
    for film in films:
        path = tmp_path / "pictures" / f"{name}-{film}.gif"
        assert f"picture: {path}" in output
        assert moves(path)
    assert len(list((tmp_path / "pictures").iterdir())) == len(PICTURES[name]) + len(films)


# A linear regression that is done after 200 steps, for tests of what is around it.
SHORT = ["run", "linear-regression", "--quick", "--lr", "0.1", "--backend", "torch", "--out", "out"]


def is_drawn(path: Path) -> bool:
    """A PNG of a sensible size that is neither empty nor of one colour."""
    from matplotlib.image import imread

    pixels = imread(path)
    return pixels.shape[0] > 400 and pixels.shape[1] > 400 and pixels.std() > 0.05


def moves(path: Path) -> bool:
    """A GIF of many frames, each unlike the one before."""
    from PIL import Image, ImageSequence

    with Image.open(path) as film:
        frames = [frame.convert("RGB").tobytes() for frame in ImageSequence.Iterator(film)]
    return len(frames) > 20 and all(one != other for one, other in pairwise(frames))


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("losses", ["--epochs", "3"]),
        ("gradient-descent", ["--epochs", "3"]),
        ("optimizers", ["--epochs", "1"]),
        ("linear-regression", ["--lr", "10"]),  # diverges
        ("xor", ["--epochs", "3"]),
        ("simple-classifier", ["--epochs", "1", "--lr", "1e-6"]),
        ("mnist", ["--epochs", "1", "--lr", "1e-9"]),
        ("convolution", ["--epochs", "1", "--lr", "1e-9"]),
        ("cnn", ["--epochs", "1", "--lr", "1e-9"]),
        ("training-problems", ["--epochs", "3"]),
    ],
)
def test_a_missed_target_is_said_and_exits_1(
    name: str, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["run", name, "--quick", "--backend", "torch", "--out", str(tmp_path), *flags]
    assert main(argv) == 1
    output = capsys.readouterr().out
    assert "target missed: " in output
    assert "target reached" not in output
    assert result(output)["lesson"] == name


@pytest.mark.usefixtures("undrawn")
def test_linear_regression_goes_on_until_three_decimals_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "linear-regression", "--backend", "torch", "--out", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    values = r"  weight +(\S+) +2.000\n  bias +(\S+) +1.000\n  prediction .* (\S+) +11.000\n"
    reports = re.findall(rf"after (\d+) epochs.*\n{values}", output)
    assert reports[0][0] == "1000"
    assert reports[0][1:] != ("2.000", "1.000", "11.000")
    assert int(reports[1][0]) > 1000
    assert reports[1][1:] == ("2.000", "1.000", "11.000")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("seed", "words"),
    [(17, "off for all four inputs: 4 of 4\nseed 17 died: no hidden ReLU is on"), (2, "seed 2 is stuck")],
)
def test_xor_says_what_went_wrong(
    seed: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["run", "xor", "--quick", "--backend", "torch", "--seed", str(seed), "--out", str(tmp_path)])
        == 1
    )
    output = capsys.readouterr().out
    assert words in output
    assert "another start may learn" in output


def test_xor_share_of_seeds_is_that_of_single_runs() -> None:
    """Many models at once learn what each learns alone."""
    backend, args = common.backend("torch"), Namespace(device="cpu", lr=0.05, epochs=300)
    x, y = torch.tensor(xor.INPUTS), torch.tensor(xor.ANSWERS)
    learned = 0
    for seed in range(6):
        torch.manual_seed(seed)
        model = xor.make_model(torch.nn)
        optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
        for _ in range(args.epochs):
            optimizer.zero_grad()
            prediction = model(x)
            torch.nn.functional.binary_cross_entropy(prediction, y).backward()
            optimizer.step()
        learned += bool((prediction.round() == y).all())
    assert 0 < learned < 6
    assert xor.share_of_seeds(backend, args, 6)[0] == learned


@pytest.mark.parametrize("module", MODULES)
def test_equal_seeds_give_equal_starts(module) -> None:
    starts = []
    for name in ("minidl", "torch"):
        torch.manual_seed(3)
        starts.append(module.make_model(common.backend(name).nn).state_dict())
    ours, theirs = starts
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.usefixtures("undrawn")
def test_same_seed_same_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    losses = []
    for seed in ("1", "1", "2"):
        argv = ["run", "simple-classifier", "--backend", "torch", "--epochs", "2", "--out", str(tmp_path)]
        main([*argv, "--seed", seed])
        losses.append(result(capsys.readouterr().out)["loss"])
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.usefixtures("undrawn")
def test_simple_classifier_shows_model_and_parameters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["run", "simple-classifier", "--epochs", "1", "--out", str(tmp_path)])
    output = capsys.readouterr().out
    assert "SimpleNN(\n  (fc1): Linear(in_features=2, out_features=4, bias=True)" in output
    for name in ("fc1.weight (4, 2)", "fc1.bias (4,)", "fc2.weight (1, 4)", "fc2.bias (1,)"):
        assert name in output


@pytest.mark.usefixtures("undrawn")
def test_mnist_takes_the_size_and_classes_of_its_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_set(tmp_path / "root")
    argv = ["run", "mnist", "--backend", "torch", "--data-root", str(root), "--out", str(tmp_path)]
    assert main([*argv, "--epochs", "5", "--batch-size", "10"]) == 0
    output = capsys.readouterr().out
    assert "data: IDX images from" in output
    assert "Linear(in_features=36, out_features=128" in output
    assert "Linear(in_features=64, out_features=3" in output
    assert len(re.findall(r"^epoch \d/5  loss \S+  test accuracy \S+", output, re.MULTILINE)) == 5
    # Without a known target, too, giving the commonest of three classes each time is a miss.
    assert main([*argv, "--epochs", "1", "--lr", "1e-9"]) == 1


@pytest.mark.parametrize("module", [mnist, cnn])
def test_targets_grow_with_the_epochs(module) -> None:
    for targets in (*module.TARGETS.values(), *module.QUICK_TARGETS.values()):
        assert list(targets) == sorted(targets)
        assert list(targets.values()) == sorted(targets.values())


def test_shuffled_batches_visit_each_example_once() -> None:
    batches = mnist.ShuffledBatches(10, 4)
    first, second = list(batches), list(batches)
    assert [len(batch) for batch in first] == [4, 4, 2]
    assert len(batches) == 3
    assert sorted(torch.cat(first).tolist()) == list(range(10))
    assert not torch.equal(torch.cat(first), torch.cat(second))


@pytest.mark.parametrize("lesson", ["linear-regression", "gradient-descent", "tensors-and-autograd"])
def test_without_matplotlib_it_trains_and_says_what_to_install(
    lesson: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)

    class Absent:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name.split(".")[0] == "matplotlib":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    assert main(SHORT if lesson == "linear-regression" else ["run", lesson]) == 0
    output = capsys.readouterr().out
    assert "no pictures: they need matplotlib (pip install 'minidl[lessons]')" in output
    assert result(output)["lesson"] == lesson


def test_other_missing_modules_are_not_hidden(tmp_path: Path) -> None:
    args = Namespace(out=tmp_path, lesson="xor")
    with pytest.raises(ModuleNotFoundError), common.pictures(args):
        raise ModuleNotFoundError("No module named 'numpy'", name="numpy")


@pytest.mark.parametrize("flag", ["--batch-size", "--data", "--data-root"])
def test_a_flag_that_a_lesson_has_no_use_for_is_unknown(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["run", "losses", flag, "2"])
    assert stop.value.code == 2
    assert f"unrecognized arguments: {flag} 2" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_full_batch_lessons_say_that_batch_size_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SHORT, "--batch-size", "2"]) == 0
    assert "--batch-size changes nothing" in capsys.readouterr().out


def test_terminal_gets_a_bar_and_a_pipe_does_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(common.bar(range(3), "epochs")) == [0, 1, 2]
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    for step in common.bar(range(3), "epochs"):
        common.say(f"step {step}")
    output = capsys.readouterr().out
    assert "epochs:" in output
    assert "step 2\n" in output
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert list(common.bar(range(3), "epochs")) == [0, 1, 2]


def test_many_snapshots_and_few_mistakes_can_be_drawn(tmp_path: Path) -> None:
    """The pictures' corner cases: all right, one epoch only, a loss that is not a number, many classes."""
    truth = torch.arange(30)
    labels = [str(number) for number in range(30)]
    for number, figure in enumerate(
        (
            plot.predictions(torch.rand(30, 1, 5, 5), truth, truth, labels, "title\nbelow"),
            plot.confusion(truth, truth, labels, "title\nbelow"),
            plot.loss_and_accuracy([0.5], [1.0], "title\nbelow"),
            plot.loss_curve([1.0, math.inf, math.nan], "title\nbelow", "loss"),
            plot.loss_and_accuracy([math.nan] * 3, [0.1, 0.1], "title\nbelow"),
        )
    ):
        figure.savefig(tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").stat().st_size > 0


def test_as_a_module() -> None:
    command = [sys.executable, "-W", "error", "-m", "minidl.lessons.linear_regression", *SHORT[2:]]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert (done.returncode, done.stderr) == (0, "")
    assert result(done.stdout)["lesson"] == "linear-regression"
    assert "\r" not in done.stdout


def environment() -> dict[str, str]:
    """For a child that must import the same minidl, whatever folder the test works in."""
    root = str(Path(minidl.__file__).resolve().parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
