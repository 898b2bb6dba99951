"""The minidl command: what it prints, its exit codes, and no traceback for a user's mistake."""

import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from idx_files import isolate

from minidl import cli, lessons


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


def fails(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command line that must exit with 2, and return what it says on stderr."""
    try:
        code = cli.main(argv)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(lessons.LESSONS)
    assert all(lessons.LESSONS[line.split()[0]] in line for line in lines)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    output = capsys.readouterr().out
    assert output.startswith("minidl ")
    assert f"torch {torch.__version__}" in output


def test_version_of_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise cli.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(cli.metadata, "version", absent)
    assert cli._version().startswith("minidl (not installed)")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("xorr", "did you mean xor?"),
        ("linear_regression", "did you mean linear-regression?"),
        ("minst", "did you mean mnist?"),
        ("zzz", f"choose from {', '.join(lessons.LESSONS)}"),
    ],
)
def test_unknown_lesson(name: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    error = fails(["run", name], capsys)
    assert f"no lesson is called {name}" in error
    assert hint in error


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--epochs", "0"], "--epochs: 0 is not a positive number"),
        (["--epochs", "two"], "--epochs: invalid"),
        (["--lr", "-1"], "--lr: -1 is not a positive number"),
        (["--lr", "nan"], "--lr: nan is not a positive number"),
        (["--batch-size", "0"], "--batch-size: 0 is not"),
        (["--backend", "jax"], "--backend: invalid choice: 'jax'"),
        (["--data", "cifar"], "--data: invalid choice: 'cifar'"),
        (["--device", "quantum"], "--device: unknown device 'quantum'"),
        (["--device", "meta"], "--device: the lessons run on cpu or cuda, not on meta"),
        (["--device", "cuda:99"], "--device: cuda:99: this torch"),
        (["--flag"], "unrecognized arguments: --flag"),
        (["--out", "file"], "--out: file: File exists"),
    ],
)
def test_bad_flags(flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("in the way")
    error = fails(["run", "xor", *flags], capsys)
    assert words in error
    assert "minidl run xor" in error


def test_no_cuda(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert "finds no such GPU" in fails(["run", "xor", "--device", "cuda"], capsys)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data-root", "nowhere"], "--data-root nowhere: looked for train-images-idx3-ubyte"),
        (["--data", "mnist"], "MNIST is not on this machine"),
        (["--data", "fashion"], "Fashion-MNIST is not on this machine"),
        (["--data", "digits", "--data-root", "."], "take no --data-root"),
    ],
)
def test_data_that_cannot_be_had(flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    error = fails(["run", "mnist", "--backend", "torch", *flags], capsys)
    assert error.startswith("minidl run mnist: error: ")
    assert words in error


def test_help_of_a_lesson(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", "xor", "--help"])
    assert stop.value.code == 0
    output = capsys.readouterr().out
    assert "true where exactly one of two inputs is true" in output
    flags = "backend device epochs seed batch-size lr data data-root out quick"
    assert all(f"--{flag}" in output for flag in flags.split())
    assert "default: 2000, quick: 500" in output


def test_without_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert "COMMAND" in fails([], capsys)


def module(name: str, main: object) -> types.ModuleType:
    result = types.ModuleType(name)
    result.__dict__["main"] = main
    return result


def test_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    for answer, code in ((None, 0), (0, 0), (1, 1)):
        monkeypatch.setitem(sys.modules, "minidl.doctor", module("doctor", lambda answer=answer: answer))
        assert cli.main(["doctor"]) == code


def test_bench_passes_its_flags_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(cli.util, "find_spec", lambda name: name)
    for name in ("minidl.benchmarks", "minidl.benchmarks.__main__"):
        monkeypatch.setitem(sys.modules, name, module(name, lambda argv: seen.append(argv) or 3))
    assert cli.main(["bench", "--quick", "softmax", "--version"]) == 3
    assert seen == [["--quick", "softmax", "--version"]]


def test_bench_beside_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "minidl").mkdir()
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").touch()
    (tmp_path / "benchmarks" / "__main__.py").write_text("def main(argv):\n    return len(argv)\n")
    monkeypatch.setattr(cli.util, "find_spec", lambda name: None)
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "minidl" / "cli.py"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("benchmarks", "benchmarks.__main__"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert cli.main(["bench", "a", "b"]) == 2
    for name in ("benchmarks", "benchmarks.__main__"):
        monkeypatch.delitem(sys.modules, name)


def test_no_bench(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli.util, "find_spec", lambda name: None)
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "minidl" / "cli.py"))
    assert "this installation has no benchmarks" in fails(["bench"], capsys)


def start(*argv: str, python: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
    root = str(Path(cli.__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    environment.pop("PYTHONUNBUFFERED", None)  # a child buffers as it does for most people
    command = [sys.executable, *python, "-m", "minidl", *argv]
    # Where the tests run in the background, the shell has had SIGINT ignored, and a child would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
    finally:
        signal.signal(signal.SIGINT, before)


def test_interrupt(tmp_path: Path) -> None:
    with start(
        "run", "xor", "--backend", "torch", "--epochs", "1000000", "--out", str(tmp_path), python=("-u",)
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline().startswith("xor: backend torch")
        # The first steps import more of torch, and Python dies of a SIGINT that meets an import.
        time.sleep(3)
        child.send_signal(signal.SIGINT)
        try:
            _, error = child.communicate(timeout=20)
        finally:
            child.kill()
    assert (child.returncode, error) == (130, "\ninterrupted\n")


def test_broken_pipe(tmp_path: Path) -> None:
    with start("run", "xor", "--backend", "torch", "--quick", "--out", str(tmp_path)) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.readline()
        child.stdout.close()
        assert child.stderr.read() == ""
    assert child.returncode == 141
