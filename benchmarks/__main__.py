"""`minidl bench`: choose cases, check and time them, write CSVs, table and plots, and hold them to their bars."""

from __future__ import annotations

import argparse
import gc
import os
import platform
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import import_module
from pathlib import Path

import torch

from . import report
from .ceiling import Ceilings
from .harness import TIERS, Case, Effort, Environment, Row, bench, minidl_library

# Seconds of timing in all, so that a tier ends in its time (a minute, five, twelve) with set-up, checks, ceilings
# and, but for the quick tier, twice as much where the machine is noisy.
TOTAL = {"quick": 20.0, "default": 90.0, "full": 180.0}
LONGEST = 1.0  # of them for one case
AGAIN = 3  # times the effort for a row that misses a bar, before it is said to
MEAN_BAR = 1.5  # of the geometric mean over the whole grid

Job = tuple[Case, int]  # a case, at a thread count
LADDER = "ladder"  # goes alone: its rungs are no kernels of minidl's, and have no bar
ABOUT_LADDER = (
    f"{LADDER}: one matrix product in six C++ files, from three loops to threads; into DIR/{LADDER}"
)


def stems() -> list[str]:
    """A stem is a file `bench_<stem>.py` beside this one: adding one needs no list."""
    return sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))


def select(chosen: Sequence[str], tier: str) -> list[Case]:
    wanted = TIERS[: TIERS.index(tier) + 1]
    modules = (import_module(f".bench_{stem}", __package__) for stem in chosen)
    return [case for module in modules for case in module.cases() if case.tier in wanted]


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def environment(isa: str) -> Environment:
    return Environment(cpu_name(), isa, torch.__version__, datetime.now(timezone.utc).strftime("%Y-%m-%d"))


def thread_counts(text: str) -> list[int]:
    counts = sorted({int(part) for part in text.split(",")})
    if counts[0] < 1:
        raise ValueError(text)
    return counts


def slack_factor(text: str) -> float:
    if not 0 < (slack := float(text)) <= 1:
        raise ValueError(text)
    return slack


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="minidl bench", description=__doc__, epilog=ABOUT_LADDER)
    names = f"of {', '.join(stems())}; default: all. Or {LADDER}, alone"
    parser.add_argument("stem", nargs="*", metavar="STEM", help=names)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="tier", action="store_const", const="quick", help="a minute")
    size.add_argument("--full", dest="tier", action="store_const", const="full", help="the huge shapes too")
    default = ",".join(str(n) for n in (1, 2) if n <= (os.cpu_count() or 1))
    parser.add_argument("--threads", type=thread_counts, default=default, help="default: %(default)s")
    parser.add_argument(
        "--check", action="store_true", help="measure again what misses a bar; exit 1 where it still does"
    )
    parser.add_argument(
        "--slack", type=slack_factor, metavar="FACTOR", help="with --check: multiply all bars, up to 1"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", default=Path("out/bench"), help="default: %(default)s"
    )
    parser.add_argument("--readme", type=Path, help="also rewrite this file's benchmark section")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.set_defaults(tier="default")
    args = parser.parse_args(argv)
    if LADDER in args.stem and (len(args.stem) > 1 or args.check):
        parser.error(f"{LADDER} goes alone, and without --check")
    if unknown := set(args.stem) - {LADDER, *stems()}:
        parser.error(f"no such stem: {', '.join(sorted(unknown))} (there are {', '.join(stems())})")
    if args.slack and not args.check:
        parser.error("--slack goes with --check")
    return args


def run(jobs: Sequence[Job], effort: Effort) -> list[list[Row]]:
    """The rows of each job, printed as they come."""
    from minidl import _C

    torch.set_float32_matmul_precision("highest")
    ours, ceilings, where = minidl_library(), Ceilings(_C.fma_loop), environment(_C.isa())
    groups = []
    before = torch.get_num_threads()
    gc.freeze()  # torch's own objects live on: the collection before each timing need not look at them
    try:
        for case, threads in jobs:
            groups.append(bench(case, ours, ceilings, threads, effort, where))
            print(*map(report.line, groups[-1]), sep="\n", flush=True)
    finally:
        gc.unfreeze()
        torch.set_num_threads(before)
    return groups


def measure_again(jobs: Sequence[Job], groups: list[list[Row]], effort: Effort, slack: float) -> None:
    """Replace the rows of each job that misses a bar: a first look may have met a busy machine."""
    doubtful = [i for i, rows in enumerate(groups) if any(row.misses(slack) for row in rows)]
    if doubtful:
        print(f"\nagain, for longer: {len(doubtful)} of {len(jobs)}, which miss a bar", flush=True)
        longer = effort._replace(budget=AGAIN * effort.budget)
        for i, rows in zip(doubtful, run([jobs[i] for i in doubtful], longer), strict=True):
            groups[i] = rows


def complaints(rows: Sequence[Row], slack: float, whole: bool) -> list[str]:
    """What misses a bar, a line each; the geometric mean too where the rows are those of the whole grid."""
    found = [f"{row}: {'; '.join(misses)}" for row in rows if (misses := row.misses(slack))]
    mean = report.mean_ratio(rows)
    if whole and not mean >= slack * MEAN_BAR:
        found.append(f"the whole grid: geometric mean {mean:.3g}, bar {slack * MEAN_BAR:.3g}")
    return found


def climb_ladder(args: argparse.Namespace) -> int:
    from minidl import _C

    from .ladder import climb

    return climb.main(args.tier, max(args.threads), environment(_C.isa()), args.out / LADDER, args.readme)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    if args.stem == [LADDER] and not args.list:
        return climb_ladder(args)
    cases = select([stem for stem in args.stem if stem != LADDER] or stems(), args.tier)
    if args.list:
        print(*(f"{case}  [{case.tier}]" for case in cases), ABOUT_LADDER, sep="\n")
        return 0
    jobs = [(case, threads) for threads in args.threads for case in cases]
    budget = min(LONGEST, TOTAL[args.tier] / max(1, len(jobs)))
    effort = Effort(budget, patience=1 if args.tier == "quick" else 2)
    slack = args.slack or 1.0
    print(report.HEADER)
    groups = run(jobs, effort)
    if args.check:
        measure_again(jobs, groups, effort, slack)
    rows = [row for group in groups for row in group]
    report.write_csvs(rows, args.out)
    report.publish(args.out, args.readme)

    refused = [f"{row}: {row.refused}" for row in rows if row.refused]
    missed = complaints(rows, slack, whole=not args.stem) if args.check else []
    for title, bad in (("refused", refused), ("below a bar", missed)):
        if bad:
            print(f"\n{len(bad)} {title}:", *bad, sep="\n", file=sys.stderr)
    return 1 if refused or missed else 0


if __name__ == "__main__":
    sys.exit(main())
