"""The lessons with --compiled: the same lines, numbers and pictures as without it."""

import re
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from idx_files import isolate, write_set

from minidl import plot
from minidl.cli import main
from minidl.lessons import common, xor

# Short runs, and batches that leave a rest. Whether a target is reached plays no part.
FLAGS = {
    "linear-regression": ["--lr", "0.1"],
    "gradient-descent": [],
    "losses": ["--epochs", "60"],
    "optimizers": ["--epochs", "2", "--batch-size", "70"],
    "xor": ["--epochs", "120"],
    "simple-classifier": ["--epochs", "4", "--batch-size", "30"],
    "mnist": ["--epochs", "2", "--batch-size", "70"],
    "convolution": ["--epochs", "2", "--batch-size", "70"],
    "cnn": ["--epochs", "2", "--batch-size", "70"],
    "training-problems": ["--epochs", "20"],
}
NUMBER = re.compile(r"[-+]?\d+(?:\.\d*)?(?:e[-+]?\d+)?")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[np.ndarray]:
    """The lines and images of the figures that would have been saved."""
    isolate(monkeypatch, tmp_path)
    shown: list[np.ndarray] = []

    def keep(figure, *args, **options) -> None:
        for axes in figure.axes:
            shown.extend(np.asarray(line.get_xydata(), float) for line in axes.lines)
            shown.extend(np.asarray(image.get_array(), float) for image in axes.images)

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", keep)
    monkeypatch.setattr(plot, "write_film", lambda path, frames: None)
    return shown


@pytest.mark.parametrize("name", FLAGS)
def test_compiled_lesson_is_the_eager_one(
    name: str, tmp_path: Path, drawn: list[np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["run", name, "--quick", "--out", str(tmp_path), *FLAGS[name]]
    if name in ("optimizers", "mnist", "convolution", "cnn"):
        argv += ["--data-root", str(write_set(tmp_path / "root"))]
    runs = []
    for flags in ([], ["--compiled"]):
        drawn.clear()
        code = main([*argv, *flags])
        first, rest = capsys.readouterr().out.split("\n", 1)
        assert first == f"{name}: backend minidl{', compiled' if flags else ''}, device cpu, seed 0"
        rest = re.sub(r"seconds=\S+|\d+\.\d s\b", "", rest)
        runs.append((code, NUMBER.sub("#", rest), [float(n) for n in NUMBER.findall(rest)], [*drawn]))
    eager, compiled = runs
    assert compiled[:2] == eager[:2]
    assert compiled[2] == pytest.approx(eager[2], rel=1e-3, abs=2e-3, nan_ok=True)
    assert len(compiled[3]) == len(eager[3]) > 0
    for ours, theirs in zip(compiled[3], eager[3], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_one_by_one_as_many_seeds_learn_xor_as_all_at_once() -> None:
    backend, args = common.backend("minidl"), Namespace(device="cpu", lr=0.05, epochs=300, compiled=True)
    assert xor.share_one_by_one(backend, args, 20) == xor.share_of_seeds(backend, args, 20)


@pytest.mark.parametrize(("flag", "value"), [("--backend", "torch"), ("--device", "cuda")])
def test_compiled_is_minidl_s_and_the_cpu_s(
    flag: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SystemExit) as stop:
        main(["run", "xor", "--compiled", flag, value])
    assert stop.value.code == 2
    backend, device = (value, "cpu") if flag == "--backend" else ("minidl", value)
    message = f"--compiled trains with minidl on the cpu, not with {backend} on {device}"
    assert message in capsys.readouterr().err


def test_the_loop_written_by_hand_has_no_compiled_form(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "tensors-and-autograd", "--compiled"])
    assert "unrecognized arguments: --compiled" in capsys.readouterr().err
