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
from bench_rows import HERE, row
from minidl.benchmarks import __main__ as cli
from minidl.benchmarks import ceiling, harness, report
from minidl.benchmarks.harness import Case, Library, Row, Source, Work
from torch import Tensor


def setup(lib: Library, dtype: torch.dtype, mode: harness.Mode = "forward") -> Work:
    source = Source(dtype)
    return harness.differentiable(mode, lib.F.relu, [source.normal(5000, grad=True)], source)


RELU = Case("fake", "relu", "5000", "forward", setup, bars={"torch": 0.9})


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
    found = bench(library(torch.relu), replace(RELU, rivals={"twin": {}}))
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


@pytest.mark.parametrize(("long_ns", "loops", "calls"), [(0, 1, 1), (10**15, 1, 2), (0, 2, 3)])
def test_a_long_call_needs_no_second_one(
    monkeypatch: pytest.MonkeyPatch, long_ns: int, loops: int, calls: int
) -> None:
    monkeypatch.setattr(harness, "LONG_NS", long_ns)
    seen: list[int] = []
    assert harness.block_ns(lambda: seen.append(1), loops) > 0
    assert len(seen) == calls


def test_few_rounds_do_where_rounds_are_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "calibrate", lambda run: 1)
    runs = {"ours": lambda: sleep(1e-3), "torch": lambda: sleep(1e-3)}
    assert len(harness.measure(runs, budget=0, patience=0)["ours"]) == harness.MIN_ROUNDS
    monkeypatch.setattr(harness, "LONG_SECONDS", 0.0)
    assert len(harness.measure(runs, budget=0, patience=0)["ours"]) == harness.LONG_ROUNDS


def test_the_fma_rate_is_the_best_over_calls_of_all_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    def stalled(run: partial[float], spend: float) -> float:
        return 4e-3 + 1e-6 * run.args[1]  # which only long calls outlast

    monkeypatch.setattr(ceiling, "best_seconds", stalled)
    assert ceiling.fma_rate(lambda dtype, iterations: 1e3 * iterations) == pytest.approx(0.8e9)


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


def test_a_bar_is_of_one_rival_or_of_the_best_or_the_general_one() -> None:
    case = replace(RELU, bars={"torch": 5, "fused": 3})
    assert [case.bar(rival) for rival in ("torch", "fused", "foreach")] == [5, 3, harness.GENERAL_BAR]
    assert replace(RELU, bars={"best": 1.1}).bar("fused") == 1.1
    tiny = replace(RELU, bars={}, mode="full", bytes=100)
    assert tiny.bar("torch") == harness.TINY_BAR
    assert replace(tiny, mode="forward").bar("torch") == harness.GENERAL_BAR
    assert replace(tiny, bytes=1e6).bar("torch") == harness.GENERAL_BAR


def test_bars_name_rivals_that_the_case_has() -> None:
    for case in cli.select(cli.stems(), "full"):
        assert set(case.bars) <= {"best", "torch", *case.rivals}, case
        assert case.flops or case.bytes or not case.share_bars, case  # no share without a ceiling


def test_rows_carry_the_bars_of_their_rival_and_thread_count() -> None:
    case = replace(RELU, rivals={"twin": {}}, bars={"twin": 3}, share_bars={2: 0.8}, why="because")
    found = bench(library(torch.relu), case)
    assert [(r.rival, r.bar, r.share_bar, r.why) for r in found] == [
        ("torch", harness.GENERAL_BAR, 0, "because"),
        ("twin", 3, 0, "because"),
    ]
    two = replace(case, share_bars={1: 0.8})
    assert bench(library(torch.relu), two)[0].share_bar == 0.8


def test_big_work_is_checked_by_its_smaller_kind_and_timed_itself() -> None:
    built: list[tuple[str, torch.dtype]] = []

    def named(name: str, lib: Library, dtype: torch.dtype, **options: bool) -> Work:
        built.append((name, dtype))
        return setup(lib, dtype)

    case = replace(
        RELU, setup=partial(named, "big"), check=partial(named, "small"), rivals={"twin": {"x": True}}
    )
    assert not bench(library(torch.relu), case)[0].refused
    assert built == [("small", torch.float32)] * 3 + [("small", torch.float64)] + [("big", torch.float32)] * 3
    assert bench(library(lambda x: x), case)[0].refused


def test_an_optimizer_that_was_not_checked_itself_updates_too() -> None:
    case = next(c for c in cli.select(["optimizer"], "default") if (c.op, c.shape) == ("Adam", "xor"))
    work = case.setup(harness.minidl_library(), torch.float32)
    params = work.run.__self__.param_groups[0]["params"]
    before = [p.detach().clone() for p in params]
    work.run()
    assert not any(torch.equal(p, b) for p, b in zip(params, before, strict=True))


@pytest.mark.parametrize(("name", "tensors", "millions"), [("11M", 62, 11.7), ("100M", 150, 100.0)])
def test_the_big_lists_are_of_the_size_in_their_name(name: str, tensors: int, millions: float) -> None:
    from minidl.benchmarks.bench_optimizer import MODELS, quartered

    shapes, _ = MODELS[name]
    assert len(shapes) == len(quartered(shapes)) == tensors
    assert sum(math.prod(s) for s in shapes) == pytest.approx(millions * 1e6, rel=0.01)


@pytest.mark.parametrize(
    ("n", "label"), [(8, "8"), (100, "100"), (1000, "1e3"), (10**7, "1e7"), (2000, "2000")]
)
def test_size_labels(n: int, label: str) -> None:
    assert harness.size_label(n) == label


QUICK = cli.select(cli.stems(), "quick")
SMALL_PRODUCTS = [c for c in cli.select(["matmul"], "default") if c.shape == "64x64->10"]
FIT = [c for c in cli.select(["train_step"], "default") if c.mode == "fit" and c.op == "xor"]


@pytest.mark.parametrize("case", [*QUICK, *SMALL_PRODUCTS, *FIT], ids=str)
def test_every_side_of_a_case_does_the_same_work(case: Case) -> None:
    quick = {name: options for name, options in case.rivals.items() if "compiled" not in options}
    _, errors = harness.checked(replace(case, rivals=quick), harness.minidl_library())
    assert errors["ours"] < 1e-5
    exact = case.op in ("relu", "dropout", "max_pool2d k2")  # numbers are chosen or doubled, not rounded
    assert max(errors.values()) > 0 or exact  # the oracle really is another precision


# --------------------------------------------------------------------------------------- command line


def run_main(monkeypatch: pytest.MonkeyPatch, out: Path, relu: Callable[[Tensor], Tensor], *argv: str) -> int:
    monkeypatch.setattr(cli, "select", lambda stems, tier: [RELU])
    monkeypatch.setattr(cli, "minidl_library", lambda: library(relu))
    monkeypatch.setattr(cli, "LONGEST", 0.02)
    return cli.main(["--threads", "1", "--out", str(out), *argv])


def test_a_slow_op_passes_without_a_check_and_fails_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "publish", lambda out, readme: None)
    assert run_main(monkeypatch, tmp_path, slow) == 0
    assert run_main(monkeypatch, tmp_path, slow, "step", "--check", "--slack", "0.001") == 0
    assert "below" not in capsys.readouterr().err
    assert run_main(monkeypatch, tmp_path, slow, "step", "--check") == 1
    told = capsys.readouterr()
    assert "again, for longer: 1 of 1" in told.out
    assert "1 below a bar:\nfake relu 5000 forward, 1 thread, against torch: ratio 0." in told.err


def test_what_misses_a_bar_is_measured_again_and_only_that(monkeypatch: pytest.MonkeyPatch) -> None:
    first = [[row(op="good", bar=0.9)], [row(op="bad", bar=0.9, ratio=0.5), row(rival="fused", bar=0.9)]]
    jobs: list[cli.Job] = [(RELU, 1), (replace(RELU, op="bad"), 2)]
    seen: list[tuple[Any, ...]] = []

    def run(again: Any, effort: harness.Effort) -> list[list[Row]]:
        seen.append((again, effort))
        return [[row(op="bad", bar=0.9, ratio=1.2)]]

    monkeypatch.setattr(cli, "run", run)
    groups = list(first)
    cli.measure_again(jobs, groups, harness.Effort(0.5, 2), slack=0.1)
    assert (groups, seen) == (first, [])
    cli.measure_again(jobs, groups, harness.Effort(0.5, 2), slack=1)
    assert seen == [([jobs[1]], harness.Effort(0.5 * cli.AGAIN, 2))]
    assert groups == [first[0], [row(op="bad", bar=0.9, ratio=1.2)]]


def test_a_wrong_op_ends_in_a_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, tmp_path, lambda x: x, "--quick") == 1
    assert "1 refused" in capsys.readouterr().err
    assert report.read_csvs(tmp_path)[0].refused


def test_bars_are_held_against_every_rival_and_the_ceiling() -> None:
    rows = [
        row(op="no bar", ratio=0.1),
        row(op="fused", ratio=0.1, bar=2.0, rival="fused"),
        row(op="level", ratio=1.0, bar=0.9),
        row(op="behind", ratio=1.5, bar=2.0),
        row(op="nan", ratio=math.nan, bar=0.9),
        row(op="far from the peak", share=0.7, share_bar=0.8, limit="FMA"),
        row(op="refused", bar=2.0, ratio=math.nan, refused="why"),
    ]
    assert [r.op for r in rows if r.misses()] == ["fused", "behind", "nan", "far from the peak"]
    assert [r.op for r in rows if r.misses(slack=0.75)] == ["fused", "nan"]
    assert rows[3].misses() == ["ratio 1.5, bar 2"]
    assert rows[5].misses() == ["70.0% of FMA, bar 80.0%"]


def test_the_mean_of_the_whole_grid_has_a_bar() -> None:
    rows = [row(ratio=1.0), row(ratio=2.0), row(ratio=9.0, rival="fused"), row(ratio=math.nan, refused="why")]
    assert cli.complaints(rows, slack=1.0, whole=True) == ["the whole grid: geometric mean 1.41, bar 1.5"]
    assert cli.complaints(rows, slack=0.9, whole=True) == []
    assert cli.complaints(rows, slack=1.0, whole=False) == []
    assert cli.complaints(rows[3:], slack=1.0, whole=True)  # nothing measured is no success


def test_list_runs_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli, "run", None)
    assert cli.main(["step", "--list"]) == 0
    assert "step xor Adam step  [quick]" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    "argv",
    [
        ["nope"],
        ["--threads", "0"],
        ["--check", "--slack", "0"],
        ["--check", "--slack", "2"],
        ["--slack", "0.5"],
        ["--quick", "--full"],
    ],
    ids=str,
)
def test_bad_arguments_are_usage_errors(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "run", None)
    with pytest.raises(SystemExit, match="2"):
        cli.main(argv)
    assert "usage: minidl bench" in capsys.readouterr().err
