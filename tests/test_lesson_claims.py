"""What the lessons claim: each judgement says yes where it should, and no where something is off."""

import pytest
import torch

from minidl.lessons import common, losses


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
