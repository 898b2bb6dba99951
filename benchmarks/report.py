"""CSVs to table, plots and README section; `python -m benchmarks.report` does it without measuring."""

from __future__ import annotations

import argparse
import csv
import math
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from statistics import geometric_mean

from .harness import Row

# The README's sections, between <!-- NAME:begin --> and <!-- NAME:end -->.
BENCH, STEPS = "bench", "train-step"
TABLE = "table.md"
CONVERT = {"int": int, "float": float, "str": str}

# ------------------------------------------------------------------------------------------------- CSV


def write_csvs(rows: Iterable[Row], out: Path) -> None:
    """One file a stem; stems that were not measured keep theirs."""
    by_stem = defaultdict(list)
    for row in rows:
        by_stem[row.stem].append(row)
    out.mkdir(parents=True, exist_ok=True)
    for stem, group in by_stem.items():
        with (out / f"{stem}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
            writer.writeheader()
            for row in group:
                values = asdict(row).items()
                writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in values})


def read_csvs(out: Path) -> list[Row]:
    types = {f.name: CONVERT[str(f.type)] for f in fields(Row)}
    rows = []
    for path in sorted(out.glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            rows += [Row(**{k: types[k](v) for k, v in line.items()}) for line in csv.DictReader(file)]
    return rows


# ------------------------------------------------------------------------------------------------ text


def is_loss(row: Row) -> bool:
    """Below 1.00 as printed, or without a time of its own."""
    return bool(row.refused) or not row.ratio >= 0.995


def mean_ratio(rows: Iterable[Row]) -> float:
    """The geometric mean against plain torch; NaN where nothing was timed."""
    ratios = [r.ratio for r in rows if r.rival == "torch" and not r.refused]
    return geometric_mean(ratios) if ratios else float("nan")


def digits(value: float) -> str:
    """Three digits that matter, never in scientific notation."""
    places = 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:.{max(0, places)}f}"


def share(row: Row) -> str:
    return f"{digits(row.rate)} {row.unit}, {row.share:.0%} of {row.limit}" if row.limit else ""


HEADER = (
    f"{'stem':<10} {'op':<32} {'shape':<15} {'mode':<8} thr {'rival':<8}"
    f"{'ours us':>10}{'rival us':>10}{'ratio':>7}  {'p20-p80':<12} rate, share of the ceiling"
)


def line(row: Row) -> str:
    """A row for the terminal; a loss is marked, and red where there are colours."""
    text = f"{row.stem:<10} {row.op:<32} {row.shape:<15} {row.mode:<8} {row.threads:<3} {row.rival:<8}"
    if row.refused:
        text += f"  REFUSED {row.refused}"
    else:
        spread = f"{row.ratio_p20:.2f}-{row.ratio_p80:.2f}"
        text += f"{digits(row.ours_us):>10}{digits(row.rival_us):>10}{row.ratio:>7.2f}"
        text += f"{'<' if is_loss(row) else ' '} {spread:<12} {share(row)}"
    red = is_loss(row) and sys.stdout.isatty() and "NO_COLOR" not in os.environ
    return f"\033[31m{text}\033[0m" if red else text.rstrip()


def bars(row: Row) -> str:
    return f"{row.bar:.2f}" + (f", {row.share_bar:.0%}" if row.share_bar else "")


def note(row: Row) -> str:
    """Whether a bar is missed, and of a loss why, where the case knows."""
    return "; ".join(["bar missed"] * bool(row.misses()) + [row.why] * bool(row.why and is_loss(row)))


def markdown_table(rows: Iterable[Row]) -> str:
    lines = [
        "| op | shape | mode | threads | rival | rival µs | minidl µs | ratio | p20–p80 | bar "
        "| rate and share of ceiling | error ours / rival | note |",
        "|---|---|---|--:|---|--:|--:|--:|--:|--:|---|--:|---|",
    ]
    for r in rows:
        start = f"| {r.op} | {r.shape.replace('->', '→')} | {r.mode} | {r.threads} | {r.rival} |"
        if r.refused:
            lines.append(f"{start} | | 🔴 | | | | | refused: {r.refused} |")
            continue
        ratio = f"🔴 {r.ratio:.2f}" if is_loss(r) else f"**{r.ratio:.2f}**"
        lines.append(
            f"{start} {digits(r.rival_us)} | {digits(r.ours_us)} | {ratio} "
            f"| {r.ratio_p20:.2f}–{r.ratio_p80:.2f} | {bars(r)} | {share(r)} "
            f"| {r.ours_error:.0e} / {r.rival_error:.0e} | {note(r)} |"
        )
    return "\n".join(lines)


def summary_table(rows: Sequence[Row]) -> str:
    """A line a stem against plain torch, and one for all: nobody has to count the red rows."""
    lines = [
        "| stem | rows | geometric mean of ratios | losses | worst row |",
        "|---|--:|--:|--:|---|",
    ]
    plain = [r for r in rows if r.rival == "torch"]
    groups = [(stem, [r for r in plain if r.stem == stem]) for stem in sorted({r.stem for r in plain})]
    for name, group in [*groups, ("**all**", plain)]:
        timed = [r for r in group if not r.refused]
        mean, worst = "", ""
        if timed:
            w = min(timed, key=lambda r: r.ratio)
            mean = f"{mean_ratio(timed):.2f}"
            worst = f"{w.ratio:.2f}: {w.op} {w.shape.replace('->', '→')} {w.mode}, {w.threads} thread(s)"
        lines.append(f"| {name} | {len(group)} | {mean} | {sum(map(is_loss, group))} | {worst} |")
    return "\n".join(lines)


def environments(rows: Iterable[Row]) -> str:
    """Where and when; stems measured apart may differ, and then each is named."""
    stems = defaultdict(set)
    for r in rows:
        stems[(r.cpu, r.isa, r.torch, r.date)].add(r.stem)
    threads = ", ".join(str(n) for n in sorted({r.threads for r in rows}))
    lines = []
    for (cpu, isa, version, date), names in sorted(stems.items()):
        which = f" ({', '.join(sorted(names))})" if len(stems) > 1 else ""
        lines.append(f"{cpu}, {isa}, {threads} thread(s), torch {version}, {date}{which}")
    return "  \n".join(lines)


ABOUT = (
    "Ratio = time of torch / time of minidl, the median over rounds in which both took turns in one process "
    "at equal threads; above 1, minidl is faster. 🔴 marks a loss. Every row was first checked against "
    "float64. The ceiling is the FMA rate or the bandwidth at a working set of this size, measured in the "
    "same run. The bar is the ratio, and for some rows the share of the ceiling, that the project demands of "
    "itself."
)


def table_page(rows: Sequence[Row]) -> str:
    parts = ["# minidl against torch", environments(rows), ABOUT, summary_table(rows)]
    for stem in sorted({r.stem for r in rows}):
        parts += [f"## {stem}", markdown_table(r for r in rows if r.stem == stem)]
    return "\n\n".join(parts) + "\n"


# ---------------------------------------------------------------------------------------------- README


def section(rows: Sequence[Row], pictures: Sequence[str], link: str) -> str:
    """The README's part: summary, pictures, the rows below a bar, every loss against plain torch."""
    missed = [r for r in rows if r.misses()]
    losses = [r for r in rows if is_loss(r) and r.rival == "torch"]
    images = [f"![{Path(name).stem.replace('-', ': ')}]({link}/{name})" for name in pictures]
    parts = [
        environments(rows),
        summary_table(rows),
        *images[:1],
        f"{ABOUT} All {len(rows)} rows: [{TABLE}]({link}/{TABLE}).",
    ]
    for title, body in (
        ("Time against size, and the roofline", "\n\n".join(images[1:])),
        (f"The bars missed: {len(missed)} of {len(rows)} rows", missed and markdown_table(missed)),
        (f"The losses against plain torch ({len(losses)})", losses and markdown_table(losses)),
    ):
        if body:
            parts.append(f"<details><summary>{title}</summary>\n\n{body}\n\n</details>")
    return "\n\n".join(parts)


STEP_RIVALS = {"torch": "torch", "fused": "torch, fused", "compiled": "torch.compile", "eager": "minidl"}


def step_table(rows: Iterable[Row]) -> str:
    """Microseconds of a training step on one thread, and TrainStep's ratio against the best of torch's ways."""
    times: dict[tuple[str, str, str], dict[str, float]] = defaultdict(dict)
    for r in rows:
        if r.stem != "train_step" or r.threads != 1 or r.refused:
            continue
        batch, _, loop = r.shape.partition(", ")
        steps = int(loop.split()[0]) if loop else 1
        of_row = times[r.op, batch.partition("x")[0], r.mode]
        of_row[r.rival], of_row["ours"] = r.rival_us / steps, r.ours_us / steps
        if r.rival != "eager":
            of_row["best"] = min(of_row.get("best", math.inf), r.ratio)
    lines = [
        f"| model | batch | {' | '.join(STEP_RIVALS.values())} | TrainStep | against the best of torch |",
        f"|---|--:|{'--:|' * (len(STEP_RIVALS) + 2)}",
    ]
    for (model, batch, mode), of_row in times.items():
        name = model + (", by `fit`" if mode == "fit" else "")
        cells = [digits(of_row[rival]) if rival in of_row else "" for rival in STEP_RIVALS]
        best = f"{of_row['best']:.0f}" if of_row["best"] >= 10 else f"{of_row['best']:.1f}"
        lines.append(f"| {name} | {batch} | {' | '.join(cells)} | **{digits(of_row['ours'])}** | {best}x |")
    return "\n".join(lines)


def replace_section(text: str, body: str, name: str = BENCH) -> str:
    """`text` with `body` between the markers of that name; replacing twice is replacing once."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"one {begin} and one {end} after it are needed")
    pattern = re.compile(re.escape(begin) + ".*" + re.escape(end), re.DOTALL)
    return pattern.sub(lambda _: f"{begin}\n{body}\n{end}", text)


# ------------------------------------------------------------------------------------------------ main


def publish(out: Path, readme: Path | None = None) -> None:
    """All that follows from the CSVs in `out`: table, plots, and the README's section where asked for."""
    rows = read_csvs(out)
    pictures: list[str] = []
    (out / TABLE).write_text(table_page(rows), encoding="utf-8")
    try:
        from .plot import draw
    except ImportError:
        print("no plots: they need matplotlib (pip install 'minidl[lessons]')", file=sys.stderr)
    else:
        pictures = draw(rows, out)
    if readme:
        link = Path(os.path.relpath(out, readme.parent)).as_posix()
        text = replace_section(readme.read_text(encoding="utf-8"), section(rows, pictures, link))
        if any(r.stem == "train_step" for r in rows):
            text = replace_section(text, step_table(rows), STEPS)
        readme.write_text(text, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("out/bench"), help="where the CSVs lie; default: %(default)s"
    )
    parser.add_argument("--readme", type=Path, help="also rewrite this file's benchmark section")
    args = parser.parse_args(argv)
    if not read_csvs(args.out):
        parser.error(f"no CSV with rows in {args.out}")
    publish(args.out, args.readme)
    return 0


if __name__ == "__main__":
    sys.exit(main())
