"""The `minidl` command: list and run the lessons, run the benchmarks, ask the doctor."""

import argparse
import difflib
import os
import sys
from collections.abc import Callable
from importlib import import_module, metadata, util
from pathlib import Path

from minidl import lessons


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 for a missed target or a sick installation, 2 for a
    user's mistake, 130 after Ctrl-C."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; without this Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # what a shell reports for SIGPIPE


def run_as_module(lesson: str) -> int:
    """What `python -m minidl.lessons.<lesson>` does: `minidl run <lesson>` with the same flags."""
    return main(["run", lesson, *sys.argv[1:]])


def _dispatch(argv: list[str]) -> int:
    if argv[:1] == ["bench"]:  # not through argparse, which would take the benchmarks' flags for its own
        return _bench(argv[1:])
    parser = argparse.ArgumentParser(prog="minidl", description="Deep learning through hand-written kernels.")
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="the lessons, a line each")
    run = commands.add_parser("run", help="run a lesson", usage="minidl run NAME [flags of the lesson]")
    run.add_argument("name", metavar="NAME", help=f"one of {', '.join(lessons.LESSONS)}")
    run.add_argument("flags", nargs=argparse.REMAINDER, help="see `minidl run NAME --help`")
    commands.add_parser("bench", help="measure against torch: minidl bench [STEM ...] [flags]")
    commands.add_parser("doctor", help="check this installation")
    args = parser.parse_args(argv)
    if args.command == "list":
        width = max(map(len, lessons.LESSONS))
        for name, about in lessons.LESSONS.items():
            print(f"{name:{width}}  {about}")
        return 0
    if args.command == "doctor":
        return int(import_module("minidl.doctor").main() or 0)
    if args.name not in lessons.LESSONS:
        near = difflib.get_close_matches(args.name, lessons.LESSONS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(lessons.LESSONS)}"
        run.error(f"no lesson is called {args.name}: {hint}")
    return int(lessons.load(args.name).main(args.flags))


def _bench(argv: list[str]) -> int:
    """The benchmarks live in the repository's benchmarks/, and in a wheel as minidl.benchmarks."""
    name = "minidl.benchmarks"
    if util.find_spec(name) is None:
        root = Path(__file__).resolve().parents[1]
        if not (root / "benchmarks" / "__main__.py").is_file():
            print("minidl bench: error: this installation has no benchmarks", file=sys.stderr)
            return 2
        sys.path.insert(0, str(root))
        name = "benchmarks"
    bench: Callable[[list[str]], int | None] = import_module(f"{name}.__main__").main
    return int(bench(argv) or 0)


def _version() -> str:
    def of(package: str) -> str:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return "(not installed)"

    return f"minidl {of('minidl')}, torch {of('torch')}, Python {sys.version.split()[0]}"
