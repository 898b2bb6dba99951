"""What the benchmark makes of its rows: CSVs, tables, the README's section, pictures."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from bench_rows import row
from minidl.benchmarks import report
from minidl.benchmarks.harness import Row

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def test_csv_round_trip(tmp_path: Path) -> None:
    rows = [
        row(),
        row(threads=2, rival="fused", bar=0.9, share_bar=0.8, why="x"),
        row(stem="other", flops=2e9),
    ]
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
    rows = [row(ratio=0.5), row(ratio=2.0), row(rival="fused", ratio=0.1), row(stem="other", ratio=8.0)]
    table = report.summary_table(rows)
    assert "| fake | 2 | 1.00 | 1 | 0.50: relu 4x2→4 forward, 1 thread(s) |" in table
    assert "| **all** | 3 | 2.00 | 1 | 0.50: relu 4x2→4 forward, 1 thread(s) |" in table


def test_the_table_says_which_bar_is_missed_and_why_a_row_loses() -> None:
    loss = row(ratio=0.9, bar=0.95, why="the bytes take the time")
    assert report.markdown_table([loss]).endswith("| bar missed; the bytes take the time |")
    assert report.markdown_table([replace(loss, bar=0.8)]).endswith("| the bytes take the time |")
    assert report.markdown_table([replace(loss, ratio=1.1)]).endswith("| 1e-07 / 2e-07 |  |")
    slow = row(ratio=1.4, bar=1.1, share=0.5, share_bar=0.88)
    assert "| 1.10, 88% |" in report.markdown_table([slow])
    assert report.markdown_table([slow]).endswith("| bar missed |")


def test_readme_section_is_replaced_and_replacing_again_changes_nothing(tmp_path: Path) -> None:
    readme, out = tmp_path / "README.md", tmp_path / "bench"
    readme.write_text(f"# before\n{BEGIN}\nold\n{END}\nafter \\1\n", encoding="utf-8")
    report.write_csvs([row(op=r"re\1lu", ratio=0.5, bar=0.9), row(bar=0.9)], out)
    report.main(["--out", str(out), "--readme", str(readme)])
    once = readme.read_text(encoding="utf-8")
    report.main(["--out", str(out), "--readme", str(readme)])
    assert readme.read_text(encoding="utf-8") == once
    assert once.startswith(f"# before\n{BEGIN}\n")
    assert once.endswith(f"{END}\nafter \\1\n")
    assert "old" not in once
    assert "a processor, SCALAR, 1 thread(s), torch 2.0, 2001-02-03" in once
    assert r"re\1lu" in once
    assert "(bench/table.md)" in once
    assert "The bars missed: 1 of 2 rows" in once
    assert ("![ratios](bench/ratios.png)" in once) == (out / "ratios.png").exists()
    assert str(tmp_path) not in once + (out / report.TABLE).read_text(encoding="utf-8")


def test_the_table_of_training_steps() -> None:
    """A line a model and mode, times of a single step, one thread, against the best of torch's own ways."""
    step = partial(row, stem="train_step", op="xor", shape="4x2", ours_us=2.0)
    fit = partial(row, stem="train_step", op="xor", shape="4x2, 1000 steps", mode="fit", ours_us=500.0)
    rows = [
        step(rival="eager", rival_us=150.0, ratio=75.0),
        step(rival="torch", rival_us=700.0, ratio=350.0),
        step(rival="fused", rival_us=500.0, ratio=250.4),
        step(rival="torch", rival_us=1.0, ratio=0.5, threads=2),
        fit(rival="torch", rival_us=600_000.0, ratio=9.24),
        row(),
    ]
    assert report.step_table(rows).splitlines()[2:] == [
        "| xor | 4 | 700 | 500 |  | 150 | **2.00** | 250x |",
        "| xor, by `fit` | 4 | 600 |  |  |  | **0.500** | 9.2x |",
    ]


@pytest.mark.parametrize("text", ["", BEGIN, END + BEGIN, BEGIN * 2 + END])
def test_a_readme_without_its_markers_is_left_alone(text: str) -> None:
    with pytest.raises(ValueError, match="needed"):
        report.replace_section(text, "new")


def test_the_report_needs_a_csv(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        report.main(["--out", str(tmp_path)])


def test_only_pictures_that_have_something_to_show_are_drawn(tmp_path: Path) -> None:
    plot = pytest.importorskip("minidl.benchmarks.plot")
    assert plot.draw([row(refused="why")], tmp_path) == []
    few = [row(bytes=1e3), row(bytes=1e4, ratio=0.5, threads=2), row(stem="other", rival="fused")]
    assert plot.draw(few, tmp_path) == ["ratios.png"]
    curve = [row(bytes=10.0**i, limit="1 MB stream", threads=t) for i in range(3, 6) for t in (1, 2)]
    product = row(stem="product", flops=1e6, bytes=1e4, limit="FMA", share=0.5)
    drawn = plot.draw([*curve, product], tmp_path)
    assert drawn == ["ratios.png", "times-fake.png", "roofline.png"]
    assert "roofline.png" not in plot.draw([replace(product, flops=64.0)], tmp_path)  # a call alone
    assert {p.name for p in tmp_path.iterdir()} == set(drawn)
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in drawn)


def test_training_steps_are_timed_by_the_step() -> None:
    plot = pytest.importorskip("minidl.benchmarks.plot")
    of = partial(
        row, stem="train_step", op="xor", shape="4x2", mode="step", flops=1e6, limit="FMA", share=0.5
    )
    loop = of(shape="4x2, 1000 steps", mode="fit", ours_us=700.0, rival="eager", rival_us=9e5)
    rows = [of(rival="torch"), of(rival="fused"), of(rival="eager", rival_us=20.0), loop]
    assert plot.step_times(rows) == {"xor, 4x2": {"step": 10.0, "fused": 15.0, "eager": 20.0, "fit": 0.7}}
    figure = plot.train_steps([*rows, of(threads=2), row()])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["1 thread", "2 threads"]
    assert sorted(line.get_xdata()[0] for line in figure.axes[0].lines[1:]) == [0.7, 10.0, 15.0, 20.0]
    assert plot.train_steps([row()]) is None
    assert plot.roofline(rows) is None  # they count no bytes


def test_the_curves_of_a_stem_need_several_sizes() -> None:
    plot = pytest.importorskip("minidl.benchmarks.plot")
    rows = [row(flops=f, mode=mode) for mode in ("forward", "full") for f in (1.0, 2.0, 2.0)]
    assert plot.curves(rows) == []
    (found,) = plot.curves([*rows, row(bytes=3.0)])
    assert found == ("relu forward", [*rows[:3], row(bytes=3.0)])


def test_the_ceilings_of_the_roofline_are_those_that_were_measured() -> None:
    plot = pytest.importorskip("minidl.benchmarks.plot")
    rows = [row(rate=50.0, share=0.5, limit="FMA"), row(rate=8.0, share=0.8, limit="1 MB stream"), row()]
    assert plot.ceilings(rows) == {"FMA": 100.0, "1 MB stream": 10.0}


@pytest.mark.parametrize(
    ("value", "text"), [(0.1234, "0.123"), (1.234, "1.23"), (12.34, "12.3"), (1234.6, "1235"), (0, "0")]
)
def test_three_digits_and_no_exponent(value: float, text: str) -> None:
    assert report.digits(value) == text
