"""The benchmark's own tests: it must catch what is slow, refuse what is wrong, and report what it saw."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter, sleep
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from minidl.benchmarks import __main__ as cli
from minidl.benchmarks import ceiling, harness, report
from minidl.benchmarks.harness import Case, Environment, Library, Row, Source, Work
from torch import Tensor

HERE = Environment("a processor", "SCALAR", "2.0", "2001-02-03")


def setup(lib: Library, dtype: torch.dtype, mode: harness.Mode = "forward") -> Work:
    source = Source(dtype)
    return harness.differentiable(mode, lib.F.relu, [source.normal(5000, grad=True)], source)


RELU = Case("fake", "relu", "5000", "forward", setup, bar=0.9)


def library(relu: Callable[[Tensor], Tensor]) -> Library:
    return harness.torch_library()._replace(F=SimpleNamespace(relu=relu))


def no_fma(dtype: torch.dtype, iterations: int) -> float:
    raise AssertionError("a case without flops needs no FMA rate")


def bench(ours: Library, case: Case = RELU) -> list[Row]:
    return harness.bench(case, ours, ceiling.Ceilings(no_fma), 1, harness.Effort(0.05), HERE)


def slow(x: Tensor) -> Tensor:
    for _ in range(9):
        torch.relu(x)
    return torch.relu(x)


def row(**values: Any) -> Row:
    timed = {"ours_us": 10.0, "ours_p20": 9.0, "ours_p80": 12.0}
    timed |= {"rival_us": 15.0, "rival_p20": 14.0, "rival_p80": 17.0}
    timed |= {
        "rate": 12.5,
        "share": 0.75,
        "ratio": 1.5,
        "ratio_p20": 1.4,
        "ratio_p80": 1.6,
        "ours_error": 1e-7,
        "rival_error": 2e-7,
    }
    start = Row("fake", "relu", "4x2->4", "forward", 1, "torch", **HERE._asdict())
    return replace(start, **(timed | values))


@pytest.fixture(autouse=True)
def _in_haste(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(harness, "BLOCK_NS", 50_000)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# ------------------------------------------------------------------------------------------ measuring


def test_a_slow_op_loses() -> None:
    (found,) = bench(library(slow))
    assert found.ratio < 0.5
    assert found.ours_us > found.rival_us > 0
    assert found.ours_p20 <= found.ours_us <= found.ours_p80
    assert found.rounds >= harness.MIN_ROUNDS
    assert found.ours_error == found.rival_error == 0


def test_the_same_op_is_level() -> None:
    (found,) = bench(library(torch.relu))
    assert 0.6 < found.ratio < 1.6


def test_a_rival_gets_its_own_row() -> None:
    found = bench(library(torch.relu), replace(RELU, rivals={"twin": setup}))
    assert [r.rival for r in found] == ["torch", "twin"]
    assert found[0].ours_us == found[1].ours_us  # one measurement of ours, in turn with both


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: torch.relu(x) + 1e-3,
        lambda x: torch.relu(x).index_fill(0, torch.tensor([77]), math.nan),
        lambda x: torch.relu(x)[:-1],
        lambda x: torch.relu(x).half(),
        lambda x: torch.relu(x).nope(),
    ],
    ids=["value", "nan", "shape", "dtype", "raises"],
)
@pytest.mark.filterwarnings("ignore")
def test_a_wrong_op_is_refused(wrong: Callable[[Tensor], Tensor]) -> None:
    (found,) = bench(library(wrong))
    assert found.refused
    assert math.isnan(found.ratio)
    assert "REFUSED" in report.line(found)


def test_a_wrong_gradient_is_refused() -> None:
    case = replace(RELU, mode="backward", setup=partial(setup, mode="backward"))
    assert not bench(library(torch.relu), case)[0].refused
    assert bench(library(lambda x: torch.relu(x) + (x - x.detach()) * 0.01), case)[0].refused


def test_a_wrong_optimizer_is_refused() -> None:
    case = next(c for c in cli.select(["optimizer"], "default") if (c.op, c.shape) == ("Adam", "xor"))
    wrong = SimpleNamespace(Adam=partial(torch.optim.Adam, betas=(0.9, 0.99)))
    assert not bench(harness.torch_library(), replace(case, bytes=0))[0].refused
    assert "error" in bench(harness.torch_library()._replace(optim=wrong), replace(case, bytes=0))[0].refused


def test_sides_take_turns_in_random_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "calibrate", lambda run: 1)
    monkeypatch.setattr(harness, "MIN_ROUNDS", 40)
    calls: list[str] = []
    runs = {"ours": lambda: calls.append("o"), "torch": lambda: calls.append("t")}
    times = harness.measure(runs, budget=0, patience=0)
    rounds = ["".join(calls[i : i + 4]) for i in range(0, len(calls), 4)]  # a block: a warm call, a timed one
    assert set(rounds) == {"oott", "ttoo"}
    assert len(rounds) == len(times["ours"]) == len(times["torch"]) == 40


@pytest.mark.parametrize(("ratios", "enough"), [([1.0, 1.01] * 50, True), ([0.2, 5.0] * 50, False)])
def test_noise_is_what_keeps_the_rounds_going(ratios: list[float], enough: bool) -> None:
    for scale in (0.1, 1.0, 10.0):  # and not who wins
        times = {"ours": [1.0] * len(ratios), "torch": [scale * r for r in ratios]}
        assert harness.settled(times) is enough


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "calibrate", lambda run: 1)
    monkeypatch.setattr(harness, "settled", lambda times: False)
    start = perf_counter()
    harness.measure({"ours": lambda: sleep(1e-4), "torch": lambda: sleep(1e-4)}, budget=0.02, patience=4)
    assert 0.08 < perf_counter() - start < 2


def test_a_stall_does_not_fool_the_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "BLOCK_NS", 500_000)
    elapsed = iter([8_000_000, *[1000] * 2, *[8_000_000] * 2, 10_000, *[harness.BLOCK_NS] * 3])
    tried: list[int] = []

    def block_ns(run: Callable[[], Any], loops: int) -> int:
        tried.append(loops)
        return next(elapsed)

    monkeypatch.setattr(harness, "block_ns", block_ns)
    assert harness.calibrate(lambda: None) == 100
    assert tried == [1] * 3 + [10] * 3 + [100] * 3


def test_the_roofline_takes_the_limit_that_binds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceiling, "fma_rate", lambda loop: 1e9)
    monkeypatch.setattr(ceiling, "stream_rate", lambda size: 1e8 if size > ceiling.MB else 1e10)
    ceilings = ceiling.Ceilings(no_fma)
    assert ceilings.floor(1e6, 1e6) == (1e-3, "FMA")
    assert ceilings.floor(1e6, 4e6) == (4e-2, "4 MB stream")
    assert ceilings.floor(0, 1e12) == (1e4, "256 MB stream")
    assert ceilings.floor(0, 0) == (0, "")


# --------------------------------------------------------------------------------------------- cases


def test_cases_have_names_of_their_own() -> None:
    names = list(map(str, cli.select(cli.stems(), "full")))
    assert len(names) == len(set(names))
    assert set(cli.stems()) >= {"matmul", "activation", "loss", "softmax", "optimizer", "step"}


def test_quick_is_part_of_default_is_part_of_full() -> None:
    quick, default, full = (set(map(str, cli.select(cli.stems(), tier))) for tier in harness.TIERS)
    assert quick < default < full


@pytest.mark.parametrize("case", cli.select(cli.stems(), "quick"), ids=str)
def test_every_side_of_a_case_does_the_same_work(case: Case) -> None:
    theirs = harness.torch_library()
    sides = {
        "ours": case.setup(harness.minidl_library(), torch.float32),
        "torch": case.setup(theirs, torch.float32),
    }
    sides |= {name: rival(theirs, torch.float32) for name, rival in case.rivals.items()}
    errors = harness.verify(sides, case.setup(theirs, torch.float64))
    assert max(errors.values()) < 1e-5
    assert max(errors.values()) > 0 or case.op == "relu"  # the oracle really is another precision


# --------------------------------------------------------------------------------------- command line


def run_main(monkeypatch: pytest.MonkeyPatch, out: Path, relu: Callable[[Tensor], Tensor], *argv: str) -> int:
    monkeypatch.setattr(cli, "select", lambda stems, tier: [RELU])
    monkeypatch.setattr(cli, "minidl_library", lambda: library(relu))
    monkeypatch.setattr(cli, "EFFORT", dict.fromkeys(harness.TIERS, harness.Effort(0.02)))
    return cli.main(["--threads", "1", "--out", str(out), *argv])


def test_a_slow_op_passes_without_a_gate_and_fails_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "publish", lambda out, readme: None)
    assert run_main(monkeypatch, tmp_path, slow) == 0
    assert run_main(monkeypatch, tmp_path, slow, "--gate", "0.001") == 0
    assert "below" not in capsys.readouterr().err
    assert run_main(monkeypatch, tmp_path, slow, "--gate", "0.9") == 1
    assert "1 below the gate (0.9)" in capsys.readouterr().err
    assert run_main(monkeypatch, tmp_path, slow, "--gate", "bars") == 1


def test_a_wrong_op_ends_in_a_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, tmp_path, lambda x: x, "--quick") == 1
    assert "1 refused" in capsys.readouterr().err
    assert report.read_csvs(tmp_path)[0].refused


def test_the_gate_looks_at_barred_rows_against_plain_torch() -> None:
    rows = [
        row(op="no bar", ratio=0.1),
        row(op="fused", ratio=0.1, bar=2.0, rival="fused"),
        row(op="level", ratio=1.0, bar=0.9),
        row(op="behind", ratio=1.5, bar=2.0),
        row(op="nan", ratio=math.nan, bar=0.9),
    ]
    assert [r.op for r in cli.gate_failures(rows, 0.9)] == ["nan"]
    assert [r.op for r in cli.gate_failures(rows, 1.2)] == ["level", "nan"]
    assert [r.op for r in cli.gate_failures(rows, "bars")] == ["behind", "nan"]


def test_list_runs_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli, "run", None)
    assert cli.main(["step", "--list"]) == 0
    assert "step xor Adam step  [quick]" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    "argv", [["nope"], ["--threads", "0"], ["--gate", "high"], ["--quick", "--full"]], ids=str
)
def test_bad_arguments_are_usage_errors(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(argv)
    assert "usage: minidl bench" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------- report


def test_csv_round_trip(tmp_path: Path) -> None:
    rows = [row(), row(threads=2, rival="fused", bar=0.9), row(stem="other")]
    report.write_csvs(rows, tmp_path)
    assert report.read_csvs(tmp_path) == rows
    refused = Row("fake", "relu", "3", "full", 1, "torch", refused='ValueError: a, "b"\n')
    report.write_csvs([refused], tmp_path)  # the other stem's file stays
    back, other = report.read_csvs(tmp_path)
    assert other == rows[2]
    assert (back.refused, back.threads) == (refused.refused, 1)
    assert math.isnan(back.ratio)


def test_losses_are_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, win = row(ratio=0.99), row(ratio=1.01)
    assert "0.99<" in report.line(loss)
    assert "<" not in report.line(win)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert report.line(loss).startswith("\033[31m")
    assert not report.line(win).startswith("\033")
    assert "🔴 0.99" in report.markdown_table([loss])
    assert "🔴" not in report.markdown_table([win])


def test_the_summary_counts_losses_against_plain_torch() -> None:
    rows = [row(ratio=0.5), row(ratio=2.0), row(rival="fused", ratio=0.1)]
    assert "| fake | 2 | 1.00 | 1 | 0.50: relu 4x2→4 forward, 1 thread(s) |" in report.summary_table(rows)


def test_readme_section_is_replaced_and_replacing_again_changes_nothing(tmp_path: Path) -> None:
    readme, out = tmp_path / "README.md", tmp_path / "bench"
    readme.write_text(f"# before\n{report.BEGIN}\nold\n{report.END}\nafter \\1\n", encoding="utf-8")
    report.write_csvs([row(op=r"re\1lu", ratio=0.5, bar=0.9)], out)
    report.main(["--out", str(out), "--readme", str(readme)])
    once = readme.read_text(encoding="utf-8")
    report.main(["--out", str(out), "--readme", str(readme)])
    assert readme.read_text(encoding="utf-8") == once
    assert once.startswith(f"# before\n{report.BEGIN}\n")
    assert once.endswith(f"{report.END}\nafter \\1\n")
    assert "old" not in once
    assert "a processor, SCALAR, 1 thread(s), torch 2.0, 2001-02-03" in once
    assert r"re\1lu" in once
    assert "(bench/table.md)" in once
    assert str(tmp_path) not in once + (out / report.TABLE).read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["", report.BEGIN, report.END + report.BEGIN, report.BEGIN * 2 + report.END])
def test_a_readme_without_its_markers_is_left_alone(text: str) -> None:
    with pytest.raises(ValueError, match="needed"):
        report.replace_section(text, "new")


def test_the_report_needs_a_csv(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        report.main(["--out", str(tmp_path)])


def test_the_plot_is_drawn_with_and_without_times(tmp_path: Path) -> None:
    plot = pytest.importorskip("minidl.benchmarks.plot")
    plot.draw([row(refused="why")], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    plot.draw([row(), row(ratio=0.5, threads=2), row(stem="other", rival="fused")], tmp_path / "some.png")
    assert (tmp_path / "some.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("value", "text"), [(0.1234, "0.123"), (1.234, "1.23"), (12.34, "12.3"), (1234.6, "1235"), (0, "0")]
)
def test_three_digits_and_no_exponent(value: float, text: str) -> None:
    assert report.digits(value) == text
