"""Figures of a sweep: win rate (of a judge that only rates, the rating) over beta, data fraction, iteration and KL to the start model.

Points over KL carry their beta, fraction and iteration in small letters.
"""

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

# Colours of Okabe and Ito, distinct for every kind of colour vision. Each has a marker of its own for print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
LEGEND_LINES = 16  # Lines of a legend column next to the axes.
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
    """X axis of a figure. `about` holds the settings that vary along it; they do not name its lines."""

    name: str
    label: str
    value: Value
    about: frozenset[str]
    log: bool = False


AXES = (  # A value of 0 becomes None where the axis is logarithmic.
    Axis(
        "beta", "beta", lambda g: getattr(g.cell.method, "beta", None), frozenset({"method.beta"}), log=True
    ),
    Axis(
        "fraction",
        "share of labels used, %",
        lambda g: 100 * g.cell.data.fraction or None,
        frozenset({"data.fraction"}),
        log=True,
    ),
    Axis(
        "iteration",
        "iteration",
        lambda g: getattr(g.cell.method, "iteration", None),
        frozenset({"method.iteration"}),
    ),
)
KL = Axis(
    "kl",
    "KL to the start model, nats",
    lambda g: pooled.mean if (pooled := g.pooled("kl")) else None,
    frozenset({"method.beta", "data.fraction", "method.iteration"}),
)


def draw(pooled: Grid, title: str) -> dict[str, bytes]:
    """File name -> PNG or SVG of each figure with something to show.

    Each judge and each evaluation has its own figures. The part of the title before its first bracket is
    drawn.
    """
    title = title.partition(" (")[0]
    drawn: dict[str, bytes] = {}
    for label, part in pooled.parts.items():
        by_judge = grouped((group.cell.judge, group) for group in part.groups)
        for number, (judge, groups) in enumerate(by_judge.items(), 1):
            several = len(by_judge) > 1
            names = [*([label] if label else []), *([judge.name] if several else [])]
            headed = f"{title} ({', '.join(names)})" if names else title
            ending = (f"_{label}" if label else "") + (f"_judge{number}" if several else "")
            drawn |= _of_judge(groups, pooled.varied, headed, ending)
    return drawn


def _of_judge(groups: Sequence[Group], varied: Sequence[str], title: str, ending: str) -> dict[str, bytes]:
    judged = [group for group in groups if group.pooled(_number(group))]
    number = _number(judged[0]) if judged else ""
    trained = [group for group in judged if group.is_trained]
    drawn: dict[str, bytes] = {}
    for axis in AXES:
        lines = _lines(judged, varied, axis)
        if any(len({axis.value(group) for group in members}) > 1 for members in lines.values()):
            drawn |= _pictures(
                f"{number}_by_{axis.name}{ending}", partial(_curves, lines=lines, axis=axis), title
            )
    if trained:
        lines = _lines(judged, varied, KL)
        drawn |= _pictures(f"{number}_by_kl{ending}", partial(_curves, lines=lines, axis=KL), title)
    return drawn


def _number(group: Group) -> str:
    """The metric that is drawn."""
    return "rating" if group.only_rates else "win_rate"


def _scale(group: Group) -> float:
    return 1.0 if group.only_rates else 100.0


def _interval(group: Group) -> tuple[float, float] | None:
    ends = group.interval(_number(group))
    return ends and (_scale(group) * ends[0], _scale(group) * ends[1])


def _lines(groups: Sequence[Group], varied: Sequence[str], axis: Axis) -> dict[str, list[Group]]:
    """Groups by line: the method, and the settings that differ within it but not along the axis."""
    names = line_names({group.key: group.cell for group in groups}, varied, axis.about)
    return grouped((names[group.key], group) for group in groups)


def _pictures(name: str, plot: Callable[[Any], None], title: str) -> dict[str, bytes]:
    drawn = {}
    with drawing(figsize=(6.4, 4.0)) as (figure, ax):
        plot(ax)
        ax.set_title(title, fontsize=10, loc="left", wrap=True)
        for ending, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            content = io.BytesIO()
            # The picture grows with its legend. A layout that made room for the legend would squeeze the
            # axes.
            figure.savefig(content, format=ending, metadata=metadata, bbox_inches="tight")
            drawn[f"{name}.{ending}"] = content.getvalue()
    return drawn


@contextlib.contextmanager
def drawing(**options: Any) -> Iterator[tuple[Any, Axes]]:
    """(figure, axes) in the project's style; closed at the end."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    with mpl.rc_context(STYLE):
        figure, ax = plt.subplots(**options)
        yield figure, ax
        plt.close(figure)


def _curves(ax: Axes, *, lines: Mapping[str, Sequence[Group]], axis: Axis) -> None:
    """Draw each line's groups with their intervals as bars.

    Lines without a value on the axis (start models, files, methods without that setting) are drawn as a level
    with a band.
    """
    drawn: dict[str, list[Group]] = {}
    for name, members in lines.items():
        values = {
            id(group): value
            for group in members
            if group.is_trained and (value := axis.value(group)) is not None
        }
        if values:
            placed = [group for group in members if id(group) in values]
            drawn[name] = sorted(placed, key=lambda group: values[id(group)])
    ticks = sorted(
        {v for members in drawn.values() for group in members if (v := axis.value(group)) is not None}
    )
    labels, small = (
        _small([group for members in drawn.values() for group in members]) if axis.name == "kl" else ([], {})
    )
    aside = _aside(drawn, axis) if axis.name == "iteration" else {}
    for number, (name, members) in enumerate(drawn.items()):
        _curve(ax, members, name, axis, number, aside, small)
    # Start models are grey.
    levels = sorted((name for name in lines if name not in drawn), key=lambda name: lines[name][0].is_trained)
    n_grey = sum(not lines[name][0].is_trained for name in levels)
    for number, name in enumerate(levels, len(drawn) - n_grey):
        _level(
            ax, lines[name][0], name, COLOURS[number % len(COLOURS)] if lines[name][0].is_trained else "0.4"
        )
    if axis.log:
        ax.set_xscale("log")
    elif axis.name == "kl" and any(group.is_start for members in lines.values() for group in members):
        ax.set_xlim(left=0)
    if axis.name != "kl":
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
    ax.set_xlabel(axis.label + (f" (at the points: {', '.join(labels)})" if labels else ""))
    rated = any(group.only_rates for members in lines.values() for group in members)
    ax.set_ylabel("rating, 1 to 10 (95 % interval)" if rated else "win rate, % (95 % interval)")
    ax.legend(
        frameon=False,
        fontsize=8,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        ncols=1 + (len(lines) - 1) // LEGEND_LINES,
    )


def _curve(
    ax: Axes,
    members: Sequence[Group],
    name: str,
    axis: Axis,
    number: int,
    aside: Mapping[str, float],
    small: Mapping[str, str],
) -> None:
    x = [v + aside.get(group.key, 0.0) for group in members if (v := axis.value(group)) is not None]
    y = [_scale(group) * pooled.mean for group in members if (pooled := group.pooled(_number(group)))]
    ends = [_interval(group) for group in members]
    # nan draws no bar. 0 would draw a bar of length 0.
    bars = [
        [max(0.0, m - e[0]) if e else math.nan for m, e in zip(y, ends, strict=True)],
        [max(0.0, e[1] - m) if e else math.nan for m, e in zip(y, ends, strict=True)],
    ]
    # A colour that is used again has another marker, because a single point has no line style.
    again, place = divmod(number, len(COLOURS))
    colour, marker = COLOURS[place], MARKERS[(place + again) % len(MARKERS)]
    line = "none" if axis.name == "kl" else ("-", "--", ":")[again % 3]
    ax.errorbar(
        x,
        y,
        yerr=bars,
        label=name,
        color=colour,
        marker=marker,
        markersize=5,
        capsize=3,
        linewidth=1.4,
        linestyle=line,
    )
    for group, across, up in zip(members, x, y, strict=True):
        if text := small.get(group.key):
            ax.annotate(
                text, (across, up), textcoords="offset points", xytext=(5, 3), fontsize=7, color=colour
            )


def _aside(lines: Mapping[str, Sequence[Group]], axis: Axis) -> dict[str, float]:
    """Horizontal offset of each group, so that bars at the same place do not overlap."""
    at = grouped((axis.value(group), group.key) for members in lines.values() for group in members)
    return {
        key: (place - (len(keys) - 1) / 2) * 0.03 for keys in at.values() for place, key in enumerate(keys)
    }


def _small(groups: Sequence[Group]) -> tuple[list[str], dict[str, str]]:
    """(names of settings, text by group key) for points: beta, share of labels, iteration."""
    names, words = [], dict[str, list[str]]()
    for name, form in (("beta", "{:g}"), ("share of labels", "{:.3g} %"), ("iteration", "i{}")):
        values = {
            g.key: 100 * g.cell.data.fraction if "share" in name else getattr(g.cell.method, name, None)
            for g in groups
        }
        if len({*values.values()} - {None}) > 1:
            names.append(name)
            for key, value in values.items():
                words.setdefault(key, []).extend([] if value is None else [form.format(value)])
    return names, {key: " ".join(texts) for key, texts in words.items()}


def _level(ax: Axes, group: Group, name: str, colour: str) -> None:
    pooled, ends = group.pooled(_number(group)), _interval(group)
    if pooled is None:
        return
    ax.axhline(
        _scale(group) * pooled.mean,
        color=colour,
        linestyle="-." if group.is_trained else "--",
        linewidth=1,
        label=name,
    )
    if ends:
        ax.axhspan(*ends, color=colour, alpha=0.1, linewidth=0)
