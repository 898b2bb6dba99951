"""The ladder's rungs against torch, and its runner: it must refuse what is wrong and write what it saw."""

import math

import numpy as np
import pytest
import torch
from check import assert_close_to_float64
from minidl.benchmarks import __main__ as cli
from minidl.benchmarks.ladder import _ladder, climb

from minidl import _C

# Around the tiles (6 rows, up to 64 or 256 columns) and the blocks (96, 128, 256, 512 and 1024).
SIZES = [
    (1, 1, 1), (2, 3, 5), (5, 63, 7), (6, 64, 1), (7, 65, 31), (13, 17, 19), (97, 101, 103), (96, 512, 256),
    (98, 1027, 259), (1, 700, 300), (300, 1, 700), (300, 700, 1),
]  # fmt: skip


def rung_product(rung: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(_ladder.matmul(rung, _C.isa(), a.numpy(), b.numpy()))


@pytest.mark.parametrize("rung", climb.RUNGS)
@pytest.mark.parametrize("m_n_k", SIZES, ids=str)
def test_a_rung_agrees_with_float64(isa, two_threads, rung, m_n_k):
    m, n, k = m_n_k
    a, b = torch.randn(m, k), torch.randn(k, n)
    scale = a.double().abs() @ b.double().abs()
    assert_close_to_float64(rung_product(rung, a, b), a @ b, a.double() @ b.double(), scale=scale)


@pytest.mark.parametrize("rung", climb.RUNGS)
@pytest.mark.parametrize("m_n_k", [(0, 3, 2), (3, 0, 2), (3, 70, 0), (0, 0, 0)], ids=str)
def test_empty_products(isa, rung, m_n_k):
    m, n, k = m_n_k
    product = rung_product(rung, torch.ones(m, k), torch.ones(k, n))
    assert torch.equal(product, torch.zeros(m, n))


@pytest.mark.parametrize("rung", climb.RUNGS)
def test_nan_and_infinity_stay_in_their_row_and_column(isa, rung):
    a, b = torch.rand(8, 20), torch.rand(20, 70)
    a[6, 3], b[19, 69] = math.inf, math.nan
    torch.testing.assert_close(rung_product(rung, a, b), a @ b, equal_nan=True)


def test_threads_change_no_bit(isa, two_threads):
    a, b = torch.randn(205, 300), torch.randn(300, 77)
    two = rung_product("threaded", a, b)
    assert torch.equal(two, rung_product("simd", a, b))


@pytest.mark.parametrize("rung", climb.RUNGS)
@pytest.mark.parametrize(
    ("a", "b"), [((2, 3), (4, 5)), ((3,), (3, 4)), ((2, 3), (3,)), ((1, 2, 3), (3, 4))], ids=str
)
def test_wrong_shapes_are_value_errors(rung, a, b):
    with pytest.raises(
        ValueError, match=r"expected matrices \(m, k\) and \(k, n\), but got \(.*\) and \(.*\)"
    ):
        _ladder.matmul(rung, _C.isa(), np.ones(a, np.float32), np.ones(b, np.float32))


@pytest.mark.parametrize(
    "bad", [np.ones((3, 3)), np.ones((3, 6), np.float32)[:, ::2], np.ones((3, 3), np.float32).T]
)
def test_another_dtype_or_layout_is_a_type_error(bad):
    with pytest.raises(TypeError, match="incompatible function arguments"):
        _ladder.matmul("naive", _C.isa(), bad, np.ones((3, 3), np.float32))


@pytest.mark.parametrize(("rung", "isa_name"), [("seventh", "scalar"), ("naive", "sse9")])
def test_unknown_names_are_value_errors(rung, isa_name):
    one = np.ones((1, 1), np.float32)
    with pytest.raises(ValueError, match=f"no rung '{rung}' for ISA '{isa_name}'"):
        _ladder.matmul(rung, isa_name, one, one)


# -------------------------------------------------------------------------------------------- runner


@pytest.fixture
def _tiny(monkeypatch):
    monkeypatch.setitem(climb.EFFORT, "quick", climb.Effort((5, 16), 0.0, 1.0))
    monkeypatch.setattr(climb, "fma_rate", lambda loop: 1e11)
    monkeypatch.setattr("minidl.benchmarks.harness.BLOCK_NS", 1000)


@pytest.mark.usefixtures("_tiny")
def test_the_quick_ladder_writes_all_that_it_saw(tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- bench:begin -->\nold\n<!-- bench:end -->\n")
    argv = ["ladder", "--quick", "--threads", "1,2", "--out", str(tmp_path), "--readme", str(readme)]
    assert cli.main(argv) == 0
    header, *rows = (tmp_path / "ladder" / "ladder.csv").read_text().splitlines()
    assert header.startswith("rung,threads,size,us,")
    seen = {tuple(row.split(",")[:3]) for row in rows}
    assert seen == {(name, str(count), size) for name, count in climb.lines(2) for size in ("5", "16")}
    assert len(rows) == len(seen) == 20
    table = (tmp_path / "ladder" / "table.md").read_text()
    order = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| ")][1:]
    assert [(name.strip(), int(count)) for name, count in order] == climb.lines(2)
    assert climb.lines(2)[-1] == ("minidl", 2)
    assert "| minidl | 2 |" in capsys.readouterr().out
    assert "(ladder/ladder.png)" in readme.read_text()
    assert "old" not in readme.read_text()
    pytest.importorskip("matplotlib")
    assert (tmp_path / "ladder" / "ladder.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("_tiny", "two_threads")
def test_a_wrong_rung_is_refused(tmp_path, monkeypatch, capsys):
    right = climb.product

    def product(name, a, b):
        return right(name, a, b + 1e-3 if name == "blocked" else b)

    monkeypatch.setattr(climb, "product", product)
    assert cli.main(["ladder", "--quick", "--threads", "1", "--out", str(tmp_path)]) == 1
    assert torch.get_num_threads() == 2
    assert "REFUSED error" in capsys.readouterr().out
    table = (tmp_path / "ladder" / "table.md").read_text()
    assert "| blocked | 1 | refused | refused |  |  |" in table
    assert table.count("refused") == 2


@pytest.mark.usefixtures("_tiny")
def test_a_slow_rung_sits_out_the_larger_size():
    steps = list(climb.climb(climb.Effort((5, 16), 0.0, 1e-12), 1, cli.environment("scalar")))
    assert {step.size for step in steps} == {5}
    assert len(steps) == len(climb.lines(1))


def test_the_gain_is_taken_at_the_largest_size_that_both_have():
    def steps(**rates):
        return {int(size[1:]): climb.Step("", 1, int(size[1:]), gflops=rate) for size, rate in rates.items()}

    assert climb.gain(steps(n5=1.0, n16=2.0), steps(n5=4.0, n16=5.0, n64=9.0)) == "2.5x at 16"
    assert climb.gain({}, steps(n5=4.0)) == ""


@pytest.mark.parametrize("argv", [["ladder", "matmul"], ["ladder", "--check"]], ids=str)
def test_the_ladder_goes_alone(argv, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(argv)
    assert "ladder goes alone, and without --check" in capsys.readouterr().err


def test_the_ladder_is_announced(capsys):
    assert cli.main(["ladder", "--list"]) == 0
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    assert " ".join(capsys.readouterr().out.split()).count("one matrix product in six C++ files") == 2
