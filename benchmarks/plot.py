"""Pictures of the rows: the ratios at a glance, a stem's times against size, the roofline, training steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from .harness import Row
from .report import is_loss

WIN, LOSS, GRID = "#1a7f5a", "#d1242f", "#d8dee4"
MARKERS = "o^sDv"
OURS, REST, CEILING = "#1a7f5a", ("#d1590b", "#8250df", "#0969da"), "#57606a"
STYLES = ("-", "--", ":")  # by thread count
FEWEST_SIZES = 3  # that make a curve
CALL_FLOPS = 1e4  # of less work a call shows no rate


# ---------------------------------------------------------------------------------------------- ratios


def label(row: Row) -> str:
    op = row.op.replace("binary_cross_entropy", "bce").replace("_", " ")
    mode = "" if row.mode == "step" else f" {row.mode}"
    return f"{op}{mode}" if row.rival == "torch" else f"{op} vs {row.rival}"


def dot(row: Row) -> float:
    """Marker size: the longer torch takes, the bigger, from a microsecond to a tenth of a second."""
    return 3.0 + min(5.0, max(0.0, math.log10(row.rival_us)))


def panel(axes: Axes, stem: str, rows: Sequence[Row], markers: dict[int, str]) -> None:
    labels = list(dict.fromkeys(label(r) for r in rows))
    for r in rows:
        # Threads sit a little above one another, so that equal ratios stay two dots.
        offset = 0.18 * (list(markers).index(r.threads) - (len(markers) - 1) / 2)
        y = labels.index(label(r)) + offset
        colour = LOSS if is_loss(r) else WIN
        axes.plot([r.ratio_p20, r.ratio_p80], [y, y], color=colour, alpha=0.3, lw=1.2, solid_capstyle="round")
        axes.plot(r.ratio, y, markers[r.threads], color=colour, ms=dot(r), alpha=0.8, mec="white", mew=0.4)
    worst = min(rows, key=lambda r: r.ratio)
    if is_loss(worst):
        axes.annotate(
            f"{worst.ratio:.2f}  {worst.shape}",
            (worst.ratio, labels.index(label(worst))),
            xytext=(-6, 9),
            textcoords="offset points",
            ha="center",
            fontsize=7,
            color=LOSS,
        )
    style(axes, stem, labels, len(rows), sum(map(is_loss, rows)))


def style(axes: Axes, stem: str, labels: Sequence[str], count: int, losses: int) -> None:
    axes.set_xscale("log")
    axes.axvline(1, color="#57606a", lw=1)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_ylim(len(labels) - 0.4, -0.8)
    axes.set_title(
        f"{stem}: {count} rows, {losses} loss{'es' * (losses != 1)}",
        fontsize=11,
        loc="left",
        fontweight="bold",
    )
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.9), max(high, 1.5))
    axes.axvspan(axes.get_xlim()[0], 1, color=LOSS, alpha=0.05, lw=0)
    fine = high / low < 12
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 1.5, 2, 3, 5, 7) if fine else (1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="both", which="both", length=0)
    axes.grid(color=GRID, lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def columns(heights: Sequence[int]) -> tuple[list[int], list[int]]:
    """Panels into two columns of about the same height, the tall ones first."""
    left: list[int] = []
    right: list[int] = []
    for i in sorted(range(len(heights)), key=lambda i: -heights[i]):
        min((left, right), key=lambda column: sum(heights[j] for j in column)).append(i)
    return left, right


def legend(figure: Figure, markers: dict[int, str]) -> None:
    keys = [
        Line2D([], [], color="#57606a", ls="", marker=m, label=f"{n} thread{'s' * (n > 1)}")
        for n, m in markers.items()
    ]
    for colour, text in ((WIN, "minidl faster or level"), (LOSS, "minidl slower")):
        keys.append(Line2D([], [], color=colour, ls="", marker="s", label=text))
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), frameon=False, fontsize=9)


def ratios(timed: Sequence[Row]) -> Figure:
    """A panel a stem, a line an op, a dot a row; losses in red, left of 1."""
    groups = [[r for r in timed if r.stem == stem] for stem in sorted({r.stem for r in timed})]
    heights = [len({label(r) for r in group}) + 4 for group in groups]  # 4: title and ticks
    threads = sorted({r.threads for r in timed})
    markers = {n: MARKERS[i % len(MARKERS)] for i, n in enumerate(threads)}

    sides = [side for side in columns(heights) if side]
    tall = max(sum(heights[i] for i in side) for side in sides)
    figure = canvas(
        13,
        1.2 + 0.21 * tall,
        "Time of torch / time of minidl: a dot a row (bigger: longer calls), a line from p20 to p80",
    )
    legend(figure, markers)
    for part, side in zip(figure.subfigures(1, len(sides), squeeze=False).flat, sides, strict=True):
        grid = part.subplots(len(side), 1, height_ratios=[heights[i] for i in side], squeeze=False)
        for axes, i in zip(grid.flat, side, strict=True):
            panel(axes, groups[i][0].stem, groups[i], markers)
    return figure


# ------------------------------------------------------------------------------------------------ times


def size(row: Row) -> float:
    """What a case's time goes with: operations where they are counted, else bytes."""
    return row.flops or row.bytes


def curves(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Rows of one op and mode over several sizes, by name."""
    found: dict[str, list[Row]] = {}
    for r in rows:
        if size(r):
            found.setdefault(f"{r.op.replace('_', ' ')} {r.mode}", []).append(r)
    return [(name, group) for name, group in found.items() if len({size(r) for r in group}) >= FEWEST_SIZES]


def curve_panel(axes: Axes, name: str, rows: Sequence[Row], threads: Sequence[int]) -> None:
    rivals = list(dict.fromkeys(r.rival for r in rows))
    for count, ls in zip(threads, STYLES, strict=False):
        of_count = sorted((r for r in rows if r.threads == count), key=size)
        for rival, colour in zip(rivals, REST, strict=False):
            points = [(size(r), r.rival_us) for r in of_count if r.rival == rival]
            axes.plot(*zip(*points, strict=True), ls=ls, marker=".", ms=5, lw=1.2, color=colour)
        ours = [r for r in of_count if r.rival == rivals[0]]
        axes.plot(
            [size(r) for r in ours], [r.ours_us for r in ours], ls=ls, marker=".", ms=5, lw=1.6, color=OURS
        )
        limits = [(size(r), r.ours_us * r.share) for r in ours if r.limit]
        axes.plot(*zip(*limits, strict=True), ls=ls, lw=0.8, color=CEILING)
    sizes = [size(r) for r in rows]
    gap = (max(sizes) / min(sizes)) ** 0.07  # what a label needs
    ticks: dict[float, str] = {}
    for r in sorted(rows, key=size):
        if not ticks or size(r) > gap * max(ticks):
            ticks[size(r)] = r.shape
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(bottom=min(min(r.ours_us, r.rival_us) for r in rows) / 3)  # the limit may lie far below
    axes.set_xticks(list(ticks), list(ticks.values()), rotation=35, ha="right", rotation_mode="anchor")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(duration))
    axes.tick_params(labelsize=8, length=0, which="both")
    axes.set_title(name, fontsize=10, loc="left", fontweight="bold")
    axes.grid(color=GRID, lw=0.6)
    axes.spines[:].set_visible(False)


def duration(microseconds: float, _: object = None) -> str:
    for unit, scale in (("s", 1e6), ("ms", 1e3)):
        if microseconds >= scale:
            return f"{microseconds / scale:g} {unit}"
    return f"{microseconds:g} µs"


def times(stem: str, timed: Sequence[Row]) -> Figure | None:
    """Time against size, both logarithmic: a panel an op and mode, with the least time that the machine allows."""
    panels = curves(timed)
    if not panels:
        return None
    threads = sorted({r.threads for r in timed})
    rivals = dict.fromkeys(r.rival for _, group in panels for r in group)
    wide = min(4, len(panels))
    tall = math.ceil(len(panels) / wide)
    figure = canvas(1 + 3.2 * wide, 1.1 + 2.7 * tall, f"{stem}: time against size")
    for axes, (name, group) in zip(figure.subplots(tall, wide, squeeze=False).flat, panels, strict=False):
        curve_panel(axes, name, group, threads)
    for axes in figure.axes[len(panels) :]:
        axes.set_visible(False)
    keys = [Line2D([], [], color=OURS, lw=2, label="minidl")]
    keys += [Line2D([], [], color=c, lw=2, label=name) for name, c in zip(rivals, REST, strict=False)]
    keys.append(Line2D([], [], color=CEILING, lw=1, label="the machine's limit"))
    for count, ls in zip(threads, STYLES, strict=False):
        keys.append(Line2D([], [], color="black", ls=ls, label=f"{count} thread{'s' * (count > 1)}"))
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), frameon=False, fontsize=9)
    return figure


# --------------------------------------------------------------------------------------------- roofline


def ceilings(rows: Sequence[Row]) -> dict[str, float]:
    """What was measured, by the name of the limit: operations or bytes a second, in 1e9."""
    return {r.limit: r.rate / r.share for r in rows if r.limit}


def has_place(row: Row) -> bool:
    """Whether the roofline shows it: a whole training step counts no bytes."""
    return row.flops > CALL_FLOPS and row.bytes > 0


def roofline_panel(axes: Axes, rows: Sequence[Row], markers: dict[str, str]) -> None:
    measured = ceilings(rows)
    peak = measured.pop("FMA")
    points = [(r.flops / r.bytes, r) for r in rows if has_place(r) and r.rival == "torch"]
    low, high = min(0.25, *(x for x, _ in points)), 2 * max(x for x, _ in points)  # slopes are at the left
    streams = sorted(measured.items(), key=lambda item: item[1])
    for limit, bandwidth in dict((*streams[:1], *streams[-1:])).items():  # memory, and the nearest cache
        ridge = peak / bandwidth
        axes.plot([low, ridge], [low * bandwidth, peak], color=CEILING, lw=0.8)
        axes.annotate(
            f"{limit}: {bandwidth:.0f} GB/s",
            (low, low * bandwidth),
            xytext=(14, -2),  # to the right of the line, which is steep
            textcoords="offset points",
            fontsize=8,
        )
    axes.axhline(peak, color=CEILING, lw=1.2)
    axes.text(high, peak, f"FMA: {peak:.0f} GFLOP/s", fontsize=8, ha="right", va="bottom")
    for x, r in points:
        ours, theirs = r.flops / r.ours_us / 1e3, r.flops / r.rival_us / 1e3
        axes.plot([x, x], [ours, theirs], color=OURS if ours >= theirs else LOSS, lw=0.8, alpha=0.5)
        axes.plot(x, theirs, markers[r.stem], color=REST[0], ms=4, mfc="white")
        axes.plot(x, ours, markers[r.stem], color=OURS, ms=5, mec="white", mew=0.4)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_title(f"{rows[0].threads} thread{'s' * (rows[0].threads > 1)}", fontsize=11, loc="left")
    axes.set_xlabel("operations a byte (each operand once)", fontsize=9)
    axes.set_ylabel("GFLOP/s", fontsize=9)
    axes.grid(color=GRID, lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def roofline(timed: Sequence[Row]) -> Figure | None:
    """Rate over arithmetic intensity under the measured ceilings: a panel a thread count."""
    threads = sorted({r.threads for r in timed if r.limit == "FMA" and has_place(r)})
    if not threads:
        return None
    markers = dict(zip(dict.fromkeys(r.stem for r in timed if r.flops), MARKERS, strict=False))
    figure = canvas(
        1 + 6 * len(threads), 5.5, "Roofline: rate over arithmetic intensity, under the measured ceilings"
    )
    for axes, count in zip(figure.subplots(1, len(threads), squeeze=False).flat, threads, strict=True):
        roofline_panel(axes, [r for r in timed if r.threads == count], markers)
    keys = [Line2D([], [], color=OURS, ls="", marker="s", label="minidl")]
    keys.append(Line2D([], [], color=REST[0], ls="", marker="s", mfc="white", label="torch"))
    keys += [Line2D([], [], color=CEILING, ls="", marker=m, label=stem) for stem, m in markers.items()]
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), frameon=False, fontsize=9)
    return figure


# ---------------------------------------------------------------------------------------- training steps

STEP_SIDES = {  # a rival in the rows of train_step, or ours by its mode -> name, marker, colour
    "fused": ("torch, fused=True", "s", REST[0]),
    "compiled": ("torch.compile, fused=True", "D", REST[1]),
    "eager": ("minidl, eager", "o", REST[2]),
    "step": ("TrainStep, one call a step", "o", OURS),
    "fit": ("TrainStep.fit", "v", OURS),
}


def step_times(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Microseconds a step of each side, for each model and batch."""
    found: dict[str, dict[str, float]] = {}
    for r in rows:
        shape, _, steps = r.shape.partition(", ")  # of `fit`: "4x2, 1000 steps"
        times = found.setdefault(f"{r.op}, {shape}", {})
        times[r.mode] = r.ours_us / int(steps.split()[0]) if steps else r.ours_us
        if not steps and r.rival in STEP_SIDES:
            times[r.rival] = r.rival_us
    return found


def train_steps(timed: Sequence[Row]) -> Figure | None:
    """The time of a training step: a panel a thread count, a line a model, a dot for each way to train it."""
    rows = [r for r in timed if r.stem == "train_step"]
    if not rows:
        return None
    threads = sorted({r.threads for r in rows})
    figure = canvas(1 + 5.5 * len(threads), 4.6, "Time of one training step (log scale)")
    panels = figure.subplots(1, len(threads), sharex=True, sharey=True, squeeze=False).flat
    for axes, count in zip(panels, threads, strict=True):
        found = step_times([r for r in rows if r.threads == count])
        for y, times in enumerate(found.values()):
            axes.plot([min(times.values()), max(times.values())], [y, y], color=GRID, lw=2, zorder=1)
            for side, microseconds in times.items():
                _, marker, colour = STEP_SIDES[side]
                axes.plot(microseconds, y, marker, color=colour, ms=7, mec="white", mew=0.6)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(duration))
        axes.set_yticks(range(len(found)), list(found), fontsize=9)
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.set_title(f"{count} thread{'s' * (count > 1)}", fontsize=11, loc="left")
        axes.tick_params(axis="both", which="both", length=0)
        axes.grid(axis="x", color=GRID, lw=0.6)
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
    keys = [Line2D([], [], color=c, ls="", marker=m, label=name) for name, m, c in STEP_SIDES.values()]
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), frameon=False, fontsize=9)
    return figure


# -------------------------------------------------------------------------------------------------- all


def canvas(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(h_pad=0.1), facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13)
    return figure


def draw(rows: Sequence[Row], out: Path) -> list[str]:
    """Draw what the rows allow into the folder `out`; returns the names of the files, the ratios first."""
    timed = [r for r in rows if not r.refused]
    if not timed:
        return []
    figures: dict[str, Figure | None] = {"ratios.png": ratios(timed)}
    for stem in sorted({r.stem for r in timed}):
        figures[f"times-{stem}.png"] = times(stem, [r for r in timed if r.stem == stem])
    figures["roofline.png"] = roofline(timed)
    figures["train-step.png"] = train_steps(timed)
    drawn = {name: figure for name, figure in figures.items() if figure}
    for name, figure in drawn.items():
        figure.savefig(out / name, dpi=110)
    return list(drawn)
