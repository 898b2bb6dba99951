"""`minidl bench`: choose cases, check and time them, write CSVs, table and plot, and gate on the ratios."""

from __future__ import annotations

import argparse
import gc
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from importlib import import_module
from pathlib import Path

import torch

from . import report
from .ceiling import Ceilings
from .harness import TIERS, Case, Effort, Environment, Row, bench, minidl_library

EFFORT = {"quick": Effort(0.2), "default": Effort(0.6, patience=4), "full": Effort(1.0, patience=4)}
QUICK_TOTAL = 20.0  # seconds of timing in all, so that set-up, checks and ceilings fit into the same minute
LADDER = "ladder"  # goes alone: its rungs are no kernels of minidl's, and have no rival to be gated against
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


def gate_failures(rows: Iterable[Row], gate: float | str) -> list[Row]:
    """Rows with a bar that miss it: the one given, or with "bars" each row's own. Only plain torch counts."""
    barred = (row for row in rows if row.bar and row.rival == "torch" and not row.refused)
    return [row for row in barred if not row.ratio >= (row.bar if gate == "bars" else float(gate))]


def thread_counts(text: str) -> list[int]:
    counts = sorted({int(part) for part in text.split(",")})
    if counts[0] < 1:
        raise ValueError(text)
    return counts


def gate_value(text: str) -> float | str:
    return text if text == "bars" else float(text)


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
        "--gate", type=gate_value, metavar="RATIO", help='exit 1 below; "bars": each row\'s own'
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", default=Path("out/bench"), help="default: %(default)s"
    )
    parser.add_argument("--readme", type=Path, help="also rewrite this file's benchmark section")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.set_defaults(tier="default")
    args = parser.parse_args(argv)
    if LADDER in args.stem and (len(args.stem) > 1 or args.gate is not None):
        parser.error(f"{LADDER} goes alone, and without --gate")
    if unknown := set(args.stem) - {LADDER, *stems()}:
        parser.error(f"no such stem: {', '.join(sorted(unknown))} (there are {', '.join(stems())})")
    return args


def run(cases: Sequence[Case], threads: Sequence[int], tier: str) -> list[Row]:
    from minidl import _C

    torch.set_float32_matmul_precision("highest")
    ours, ceilings, where = minidl_library(), Ceilings(_C.fma_loop), environment(_C.isa())
    effort = EFFORT[tier]
    if tier == "quick":
        effort = Effort(min(effort.budget, QUICK_TOTAL / max(1, len(cases) * len(threads))))
    rows = []
    before = torch.get_num_threads()
    gc.freeze()  # torch's own objects live on: the collection before each timing need not look at them
    try:
        for count in threads:
            for case in cases:
                for row in bench(case, ours, ceilings, count, effort, where):
                    print(report.line(row), flush=True)
                    rows.append(row)
    finally:
        gc.unfreeze()
        torch.set_num_threads(before)
    return rows


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
    print(report.HEADER)
    rows = run(cases, args.threads, args.tier)
    report.write_csvs(rows, args.out)
    report.publish(args.out, args.readme)

    refused = [row for row in rows if row.refused]
    failures = gate_failures(rows, args.gate) if args.gate is not None else []
    for title, bad in (("refused", refused), (f"below the gate ({args.gate})", failures)):
        if bad:
            print(f"\n{len(bad)} {title}:", *map(report.line, bad), sep="\n", file=sys.stderr)
    return 1 if refused or failures else 0


if __name__ == "__main__":
    sys.exit(main())
