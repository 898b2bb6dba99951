"""What the lessons share around their training loops: flags, backend, progress, pictures, the target."""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from minidl import TrainStep, data, plot
from minidl.lessons import LESSONS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")


@dataclass(frozen=True)
class Defaults:
    """A lesson's own numbers, for the flags that are not given, and which flags it has.

    epochs None means that the lesson decides when it sees its data.
    batch_size 0 means that all points make one batch, whatever the flag says.
    flags: those of training that mean something in the lesson; another one is a mistake, as any unknown flag.
    """

    epochs: int | None = None
    quick_epochs: int | None = None
    lr: float | None = None
    batch_size: int = 0
    flags: tuple[str, ...] = ("epochs", "batch-size", "lr", "data", "data-root", "compiled")


@dataclass(frozen=True)
class Result:
    """How a lesson ended.

    accuracy is a share in [0, 1], or None where a lesson has none: its result line then omits it.
    """

    loss: float
    accuracy: float | None
    seconds: float  # the training alone: no data, no pictures
    target: str  # what was asked for, in words
    reached: bool


def backend(name: str) -> SimpleNamespace:
    """`nn`, `F`, `optim` and `matmul` of "minidl" or native "torch": the only difference between two runs."""
    if name == "torch":
        functional, matmul = import_module("torch.nn.functional"), torch.matmul
    else:
        functional = import_module("minidl.functional")
        matmul = functional.matmul
    nn, optim = import_module(f"{name}.nn"), import_module(f"{name}.optim")
    return SimpleNamespace(nn=nn, F=functional, optim=optim, matmul=matmul)


def compiled(
    args: argparse.Namespace,
    model: torch.nn.Module,
    criterion: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    **options: bool,
) -> TrainStep | None:
    """With --compiled, what does the same as a lesson's loop in one native call; else None."""
    return TrainStep(model, criterion, optimizer, **options) if args.compiled else None


def command(
    name: str,
    about: str | None,
    run: Callable[[argparse.Namespace], Result],
    defaults: Defaults,
    argv: list[str] | None,
) -> int:
    """Run a lesson from the command line.

    Returns the exit code: 0, 1 where the target is missed, 2 for a user's mistake. The last line on stdout is
    `result lesson=… backend=… loss=… accuracy=… seconds=…`.
    """
    parser = _parser(name, about, defaults)
    args = parser.parse_args(argv)
    if defaults.batch_size == 0 and args.batch_size:
        print("note: all points make one batch in this lesson, so --batch-size changes nothing")
    args.batch_size = args.batch_size or defaults.batch_size
    if args.compiled and (args.backend != "minidl" or args.device.type != "cpu"):
        parser.error(f"--compiled trains with minidl on the cpu, not with {args.backend} on {args.device}")
    if args.epochs is None:
        args.epochs = defaults.quick_epochs if args.quick else defaults.epochs
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --out: {args.out}: {error.strerror}")
    args.lesson = name
    how = ", compiled" if args.compiled else ""
    print(f"{name}: backend {args.backend}{how}, device {args.device}, seed {args.seed}")
    try:
        result = run(args)
    except data.DataError as error:
        print(f"minidl run {name}: error: {error}", file=sys.stderr)
        return 2
    print(f"target {'reached' if result.reached else 'missed'}: {result.target}")
    accuracy = "" if result.accuracy is None else f" accuracy={result.accuracy:.4f}"
    seconds = f"seconds={result.seconds:.3f}"
    print(f"result lesson={name} backend={args.backend} loss={result.loss:.6g}{accuracy} {seconds}")
    return 0 if result.reached else 1


def holds(claims: Mapping[str, bool]) -> bool:
    """Print each claim with whether it came out, and return whether all did."""
    for claim, true in claims.items():
        print(f"  {'holds' if true else 'FAILS'}: {claim}")
    return all(claims.values())


def bar(steps: Iterable[T], what: str) -> Iterable[T]:
    """`steps` with a progress bar on a terminal (where tqdm is installed), and as they are in a pipe."""
    if not sys.stdout.isatty():
        return steps
    try:
        from tqdm import tqdm
    except ImportError:
        return steps
    return tqdm(steps, desc=what, leave=False, file=sys.stdout)


def say(text: str) -> None:
    """Print a line, above the progress bar if there is one."""
    if sys.stdout.isatty() and "tqdm" in sys.modules:
        sys.modules["tqdm"].tqdm.write(text)
    else:
        print(text, flush=True)


@contextmanager
def pictures(args: argparse.Namespace) -> Iterator[Callable[[str, "Figure | Iterator[Figure]"], None]]:
    """Inside, `save("loss", figure)` writes `<out>/<lesson>-loss.png`, and frames one after the other a `.gif`.

    Where matplotlib is missing, the block ends at its first picture with a line that says what to install.
    """

    def save(name: str, figure: "Figure | Iterator[Figure]") -> None:
        film = isinstance(figure, Iterator)
        path = args.out / f"{args.lesson}-{name}.{'gif' if film else 'png'}"
        if isinstance(figure, Iterator):
            plot.write_film(path, figure)
        else:
            figure.savefig(path, dpi=150)
        print(f"picture: {path}")

    try:
        yield save
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "matplotlib":
            raise
        print("no pictures: they need matplotlib (pip install 'minidl[lessons]')")


def title(args: argparse.Namespace, text: str) -> str:
    """A picture's title: a line that says what it shows, and one with lesson and backend."""
    return f"{text}\nlesson {args.lesson}, {args.backend} backend"


def _parser(name: str, about: str | None, defaults: Defaults) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"minidl run {name}",
        description=about or LESSONS[name],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    epochs = (
        f"{defaults.epochs}, quick: {defaults.quick_epochs}" if defaults.epochs else "depends on the data"
    )
    batch = defaults.batch_size or "all points"
    training: dict[str, dict[str, Any]] = {
        "epochs": {"type": _positive(int), "help": f"passes over the data (default: {epochs})"},
        "batch-size": {"type": _positive(int), "help": f"examples a step (default: {batch})"},
        "lr": {
            "type": _positive(float),
            "default": defaults.lr,
            "help": f"learning rate (default: {defaults.lr})",
        },
        "data": {
            "choices": data.CHOICES,
            "default": "auto",
            "help": "which pictures, in lessons that read any",
        },
        "data-root": {"type": Path, "help": "folder of IDX files, or a torchvision root above MNIST/raw"},
        "compiled": {
            "action": "store_true",
            "help": "the same training by minidl.TrainStep: each step planned once and run in one native call",
        },
    }
    add(
        "--backend",
        choices=("minidl", "torch"),
        default="minidl",
        help="whose kernels train (default: minidl)",
    )
    add("--device", type=_device, default="cpu", help="cpu or cuda (default: cpu)")
    add("--seed", type=int, default=0, help="equal seeds give equal starts on both backends (default: 0)")
    for flag in defaults.flags:
        add(f"--{flag}", **training[flag])
    add("--out", type=Path, default=Path("out"), help="folder for the pictures (default: out)")
    add("--quick", action="store_true", help="a shorter run with an easier target")
    parser.set_defaults(**{flag.replace("-", "_"): None for flag in training if flag not in defaults.flags})
    return parser


def _positive(kind: type) -> Callable[[str], float]:
    def positive(text: str) -> float:
        value: float = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not a positive number")
        return value

    return positive


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"unknown device {text!r}: cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"the lessons run on cpu or cuda, not on {text}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(f"{text}: this torch ({torch.__version__}) finds no such GPU")
    return device
