"""Figures of a sweep: win rate against what it varies, and against the KL to the start model (beta, iteration in small letters)."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from bench.records import grouped
from bench.report.groups import Grid, Group, line_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours that are told apart with any kind of colour vision (Okabe and Ito); a marker each for print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
LEGEND_LINES = 16  # as many as stand beside the axes
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "bench",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "figure.dpi": 150,
}

Value = Callable[[Group], float | None]


@dataclass(frozen=True)
class Axis:
    """What a figure is over; `about`: the settings that its lines run over, and so do not tell lines apart."""

    name: str
    label: str
    value: Value
    about: frozenset[str]
    log: bool = False


AXES = (  # 0 has no place on a log scale
    Axis("beta", "beta", lambda g: getattr(g.cell.method, "beta", None), frozenset({"method.beta"}), log=True),
    Axis("fraction", "share of labels used, %", lambda g: 100 * g.cell.data.fraction or None, frozenset({"data.fraction"}), log=True),
    Axis("iteration", "iteration", lambda g: getattr(g.cell.method, "iteration", None), frozenset({"method.iteration"})),
)
KL = Axis(
    "kl",
    "KL to the start model, nats",
    lambda g: found.mean if (found := g.pooled("kl")) else None,
    frozenset({"method.beta", "data.fraction", "method.iteration"}),
)


def draw(pooled: Grid, title: str) -> dict[str, bytes]:
    """PNG and SVG of each figure that has something to show by file name, two judges in figures of their own. Of a title what stands
    before its brackets is drawn."""
    title = title.partition(" (")[0]
    by_judge = grouped((group.cell.judge, group) for group in pooled.groups)
    several = len(by_judge) > 1
    drawn: dict[str, bytes] = {}
    for number, (judge, found) in enumerate(by_judge.items(), 1):
        headed, ending = (f"{title} ({judge.name})", f"_judge{number}") if several else (title, "")
        drawn |= _of_judge(found, pooled.varied, headed, ending)
    return drawn


def _of_judge(groups: Sequence[Group], varied: Sequence[str], title: str, ending: str) -> dict[str, bytes]:
    judged = [group for group in groups if group.pooled("win_rate")]
    trained = [group for group in judged if group.is_trained]
    drawn: dict[str, bytes] = {}
    for axis in AXES:
        lines = _lines(judged, varied, axis)
        if any(len({axis.value(group) for group in members}) > 1 for members in lines.values()):
            drawn |= _pictures(f"win_rate_by_{axis.name}{ending}", partial(_curves, lines=lines, axis=axis), title)
    if trained:
        lines = _lines(judged, varied, KL)
        drawn |= _pictures(f"win_rate_by_kl{ending}", partial(_curves, lines=lines, axis=KL), title)
    return drawn


def _lines(groups: Sequence[Group], varied: Sequence[str], axis: Axis) -> dict[str, list[Group]]:
    """Groups by what they have in common but for what the axis is about: the method, and what else tells cells of it apart."""
    names = line_names({group.key: group.cell for group in groups}, varied, axis.about)
    return grouped((names[group.key], group) for group in groups)


def _pictures(name: str, plot: Callable[[Any], None], title: str) -> dict[str, bytes]:
    drawn = {}
    with drawing(figsize=(6.4, 4.0)) as (figure, ax):
        plot(ax)
        ax.set_title(title, fontsize=10, loc="left", wrap=True)
        for ending, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            content = io.BytesIO()
            # The picture grows with its legend; a layout that made room for it would squeeze the axes.
            figure.savefig(content, format=ending, metadata=metadata, bbox_inches="tight")
            drawn[f"{name}.{ending}"] = content.getvalue()
    return drawn


@contextlib.contextmanager
def drawing(**options: Any) -> Iterator[tuple[Any, Axes]]:
    """A figure in our style, and its axes."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    with mpl.rc_context(STYLE):
        figure, ax = plt.subplots(**options)
        yield figure, ax
        plt.close(figure)


def _curves(ax: Axes, *, lines: Mapping[str, Sequence[Group]], axis: Axis) -> None:
    """Each line's groups with their intervals as bars; what has no place on the axis (start models, files, methods without it) as a level
    with its band."""
    drawn: dict[str, list[Group]] = {}
    for name, members in lines.items():
        placed = [group for group in members if group.is_trained and axis.value(group) is not None]
        if placed:
            drawn[name] = sorted(placed, key=lambda group: axis.value(group) or 0.0)
    ticks = sorted({v for members in drawn.values() for group in members if (v := axis.value(group)) is not None})
    beside, small = _small([group for members in drawn.values() for group in members]) if axis.name == "kl" else ([], {})
    aside = _aside(drawn, axis) if axis.name == "iteration" else {}
    for number, (name, members) in enumerate(drawn.items()):
        _curve(ax, members, name, axis, number, aside, small)
    levels = sorted((name for name in lines if name not in drawn), key=lambda name: lines[name][0].is_trained)  # start models are grey
    n_grey = sum(not lines[name][0].is_trained for name in levels)
    for number, name in enumerate(levels, len(drawn) - n_grey):
        _level(ax, lines[name][0], name, COLOURS[number % len(COLOURS)] if lines[name][0].is_trained else "0.4")
    if axis.log:
        ax.set_xscale("log")
    elif axis.name == "kl" and any(group.is_start for members in lines.values() for group in members):
        ax.set_xlim(left=0)
    if axis.name != "kl":
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
    ax.set_xlabel(axis.label + (f" (beside the points: {', '.join(beside)})" if beside else ""))
    ax.set_ylabel("win rate, % (95 % interval)")
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), ncols=1 + (len(lines) - 1) // LEGEND_LINES)


def _curve(
    ax: Axes, members: Sequence[Group], name: str, axis: Axis, number: int, aside: Mapping[str, float], small: Mapping[str, str]
) -> None:
    x = [v + aside.get(group.key, 0.0) for group in members if (v := axis.value(group)) is not None]
    y = [100 * pooled.mean for group in members if (pooled := group.pooled("win_rate"))]
    ends = [group.interval("win_rate") for group in members]
    bars = [
        [max(0.0, m - 100 * e[0]) if e else math.nan for m, e in zip(y, ends, strict=True)],  # nan: no bar; 0 would be a bar of no width
        [max(0.0, 100 * e[1] - m) if e else math.nan for m, e in zip(y, ends, strict=True)],
    ]
    again, place = divmod(number, len(COLOURS))  # a colour that comes again has another marker: a point has no line to tell it by
    colour, marker = COLOURS[place], MARKERS[(place + again) % len(MARKERS)]
    line = "none" if axis.name == "kl" else ("-", "--", ":")[again % 3]
    ax.errorbar(x, y, yerr=bars, label=name, color=colour, marker=marker, markersize=5, capsize=3, linewidth=1.4, linestyle=line)
    for group, across, up in zip(members, x, y, strict=True):
        if text := small.get(group.key):
            ax.annotate(text, (across, up), textcoords="offset points", xytext=(5, 3), fontsize=7, color=colour)


def _aside(lines: Mapping[str, Sequence[Group]], axis: Axis) -> dict[str, float]:
    """How far beside its place each group stands, around it, so that bars of lines that touch stay apart."""
    at = grouped((axis.value(group), group.key) for members in lines.values() for group in members)
    return {key: (place - (len(keys) - 1) / 2) * 0.03 for keys in at.values() for place, key in enumerate(keys)}


def _small(groups: Sequence[Group]) -> tuple[list[str], dict[str, str]]:
    """(settings that stand beside points, what stands beside each group's): beta, share of labels, iteration, where they vary."""
    beside, words = [], dict[str, list[str]]()
    for name, form in (("beta", "{:g}"), ("share of labels", "{:.3g} %"), ("iteration", "i{}")):
        values = {g.key: 100 * g.cell.data.fraction if "share" in name else getattr(g.cell.method, name, None) for g in groups}
        if len({*values.values()} - {None}) > 1:
            beside.append(name)
            for key, value in values.items():
                words.setdefault(key, []).extend([] if value is None else [form.format(value)])
    return beside, {key: " ".join(said) for key, said in words.items()}


def _level(ax: Axes, group: Group, name: str, colour: str) -> None:
    pooled, ends = group.pooled("win_rate"), group.interval("win_rate")
    if pooled is None:
        return
    ax.axhline(100 * pooled.mean, color=colour, linestyle="-." if group.is_trained else "--", linewidth=1, label=name)
    if ends:
        ax.axhspan(100 * ends[0], 100 * ends[1], color=colour, alpha=0.1, linewidth=0)
