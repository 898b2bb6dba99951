"""What the lessons claim: each judgement says yes where it should, and no where something is off."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch

from minidl.lessons import common, gradient_descent, losses, optimizers, tensors_and_autograd
from minidl.plot import Graph

ARGS = Namespace(device=torch.device("cpu"), compiled=False)


def test_all_claims_must_hold(capsys: pytest.CaptureFixture[str]) -> None:
    assert common.holds({"water is wet": True, "two is even": True})
    assert not common.holds({"water is wet": True, "three is even": False})
    assert capsys.readouterr().out.endswith("  holds: water is wet\n  FAILS: three is even\n")


@pytest.mark.parametrize("backend", ["minidl", "torch"])
def test_losses_agree_with_their_formulas(backend: str) -> None:
    p = torch.tensor([0.9, 0.5, 0.1])
    assert losses.largest_error(p, losses.losses_of(common.backend(backend), p)) <= 1e-6


@pytest.mark.parametrize("name", ["MSE", "MAE", "BCE", "CE"])
@pytest.mark.parametrize("kind", [0, 1], ids=["value", "slope"])
def test_a_wrong_loss_or_slope_is_seen(name: str, kind: int) -> None:
    p = torch.tensor([0.9, 0.5, 0.1])
    results = losses.losses_of(common.backend("torch"), p)
    results[name][kind][1] += 1e-5
    assert losses.largest_error(p, results) > 1e-6


def test_the_course_s_numbers_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    p = torch.tensor([0.9, 0.1])
    results = losses.losses_of(common.backend("torch"), p)
    monkeypatch.setattr(losses, "COURSE", {0.1: 0.82})
    assert losses.largest_error(p, results) == pytest.approx(0.01, abs=1e-6)


def test_distance_of_lines_is_the_largest_between_the_ends() -> None:
    assert losses.distance((2.0, 1.0)) == 0
    assert losses.distance((2.5, 0.0)) == 2.0  # at x = -2: -5 instead of -3
    assert losses.distance((1.5, 0.0)) == 2.0  # at x = 2: 3 instead of 5


@pytest.mark.parametrize("backend", ["minidl", "torch"])
def test_steps_by_hand_are_those_of_the_library(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    place = common.backend(backend), ARGS, (0.9, -2.0)
    for lr in (0.08, 0.19):
        rows = gradient_descent.by_hand(0.9, -2.0, lr, 3)
        walk = gradient_descent.descend(*place, lr, 3)
        assert gradient_descent.show(rows, walk) <= gradient_descent.ROUNDING
    assert (
        capsys.readouterr().out.count("0.90000") == 6
    )  # w before the first step: in the formula, twice in the table
    other = gradient_descent.descend(*place, lr * (1 + 1e-5), 3)
    assert gradient_descent.show(rows, other) > gradient_descent.ROUNDING


@pytest.mark.parametrize(
    ("lr", "name"),
    [(0.001, "crawls"), (0.1, "fits"), (0.195, "overshoots"), (0.201, "diverges"), (1e9, "diverges")],
)
def test_a_walk_is_called_by_its_end(lr: float, name: str) -> None:
    walk = gradient_descent.descend(common.backend("torch"), ARGS, (0.5, 1.5), lr, 100)
    assert gradient_descent.ending(walk) == name


def test_crossings_are_counted_down_to_a_thousandth() -> None:
    w = torch.tensor([3.0, 1.5, 2.2, 2.1, 1.9, 2.0001, 1.9999])
    assert gradient_descent.crossings(w) == 3


def test_who_arrives_stays_there() -> None:
    goal = optimizers.GOAL
    assert optimizers.arrival([1.0, goal, 0.0]) == 1
    assert optimizers.arrival([1.0, 0.0, 2 * goal, 0.0]) == 3  # it was only passing
    assert optimizers.arrival([1.0, 0.0, 2 * goal]) == 3
    assert optimizers.arrival([1.0, float("nan")]) == 2


def test_zigzags_are_counted_down_to_a_hundredth() -> None:
    assert optimizers.zigzags(torch.tensor([1.0, -0.5, -0.4, 0.02, -0.005, 0.004, -0.003])) == 2


def race_of(arrivals: dict[str, int], zigzags: int, losses: dict[str, float], size: float) -> list[bool]:
    arrivals = {"SGD": 300, "Momentum": 100, "RMSProp": 90, "Adam": 80, "AdamW": 80} | arrivals
    losses = {"SGD": 2.0, "Momentum": 1.0, "RMSProp": 0.5, "Adam": 0.5, "AdamW": 0.5} | losses
    trainings = {
        name: optimizers.Training(torch.full((20,), loss), 0.9, size if name == "AdamW" else 10.0)
        for name, loss in losses.items()
    }
    return list(optimizers.judge(arrivals, {"SGD": 100, "Momentum": zigzags}, trainings).values())


@pytest.mark.parametrize(
    ("race", "failing"),
    [
        (({}, 20, {}, 9.0), None),
        (({"SGD": optimizers.STEPS}, 20, {}, 9.0), 0),
        (({"RMSProp": 151}, 20, {}, 9.0), 1),
        (({}, 51, {}, 9.0), 2),
        (({}, 20, {"Momentum": 1.6}, 9.0), 3),
        (({}, 20, {"Adam": float("nan")}, 9.0), 3),
        (({}, 20, {}, 9.9), 4),
    ],
)
def test_a_race_that_goes_otherwise_is_seen(race, failing: int | None) -> None:
    assert race_of(*race) == [claim != failing for claim in range(5)]


def test_a_snippet_is_shown_and_run_as_at_the_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    code = "x = 2  # two\nx + 1\nfor i in range(2):\n    print(i)\nNone\n"
    names: dict[str, object] = {}
    tensors_and_autograd.show(tensors_and_autograd.Snippet("a title", code), names)
    shown = [
        "",
        "# a title",
        ">>> x = 2  # two",
        ">>> x + 1",
        "3",
        ">>> for i in range(2):",
        "...     print(i)",
        "0",
    ]
    assert capsys.readouterr().out.splitlines() == [*shown, "1", ">>> None"]
    assert names["x"] == 2


def test_a_result_that_is_not_the_expected_one_is_named() -> None:
    snippet = tensors_and_autograd.Snippet("", "", {"x": 12.0, "x + 1": 13.0})
    assert tensors_and_autograd.mistakes(snippet, {"x": 12.0}) == []
    assert tensors_and_autograd.mistakes(snippet, {"x": 36.0}) == [
        "x is 36.0, not 12.0",
        "x + 1 is 37.0, not 13.0",
    ]


def test_a_wrong_result_misses_the_target(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *args, **options: None)
    wrong = tensors_and_autograd.Snippet("sums", "x = 1 + 1", {"x": 3})
    monkeypatch.setattr(tensors_and_autograd, "SNIPPETS", (*tensors_and_autograd.SNIPPETS, wrong))
    assert tensors_and_autograd.main(["--backend", "torch", "--out", str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert "unexpected: x is 2, not 3" in output
    assert "target missed: " in output


@pytest.mark.parametrize("snippet", tensors_and_autograd.SNIPPETS, ids=lambda snippet: snippet.title)
def test_a_snippet_expects_something(snippet: tensors_and_autograd.Snippet) -> None:
    assert snippet.expected


def test_the_graph_is_walked_to_its_leaves() -> None:
    a, b = (torch.tensor(number, requires_grad=True) for number in (2.0, 3.0))
    graph = tensors_and_autograd.walk((a * b + a + 1).grad_fn, {"a": a, "b": b})
    names = ["AddBackward0", "AddBackward0", "MulBackward0", "AccumulateGrad\na", "AccumulateGrad\nb"]
    assert graph == Graph(names, [(0, 1), (1, 2), (1, 3), (2, 3), (2, 4)])
    assert graph.depths() == [0, 1, 2, 3, 3]
    assert graph.places() == [(0, 0), (0, -1), (0, -2), (-0.5, -3), (0.5, -3)]


def test_a_row_of_the_graph_is_centred_below_its_parents() -> None:
    graph = Graph(["result", "left", "right", "leaf", "leaf"], [(0, 1), (0, 2), (1, 3), (1, 4)])
    assert graph.places() == [(0, 0), (-0.5, -1), (0.5, -1), (-1, -2), (0, -2)]


def test_late_losses_are_the_last_fifty() -> None:
    assert tensors_and_autograd.late([9.0] * 150 + [1.0, 3.0] * 25) == 2


@pytest.mark.parametrize("backend", ["minidl", "torch"])
def test_without_zero_grad_nothing_is_learned(backend: str) -> None:
    args = Namespace(seed=3, device="cpu")
    kept, forgotten = (
        tensors_and_autograd.fit(common.backend(backend), args, forget) for forget in (False, True)
    )
    assert kept[:2] == pytest.approx(forgotten[:2])  # the first step has nothing to forget
    assert max(kept[-50:]) < 0.2
    assert max(forgotten[-50:]) > 5
