"""Figures of a sweep: win rate against what it varies, and against the KL to the start model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.report.rows import Group, method_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours that are told apart with any kind of colour vision (Okabe and Ito); a marker each for print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "bench",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "figure.dpi": 150,
}

KL_LABEL = "KL to the start model, nats (small numbers: beta)"
Value = Callable[[Group], float | None]


def draw(groups: Sequence[Group], title: str, folder: Path) -> list[Path]:
    """PNG and SVG of each figure that has something to show, two judges in figures of their own; the paths of the PNGs."""
    by_judge: dict[Any, list[Group]] = {}
    for group in groups:
        by_judge.setdefault(group.cell.judge, []).append(group)
    several = len(by_judge) > 1
    paths = []
    for number, (judge, found) in enumerate(by_judge.items(), 1):
        paths += _of_judge(found, f"{title} ({judge.name})" if several else title, folder, f"_judge{number}" if several else "")
    return paths


def _of_judge(groups: Sequence[Group], title: str, folder: Path, ending: str) -> list[Path]:
    judged = [group for group in groups if group.pooled("win_rate")]
    trained = [group for group in judged if group.is_trained]
    paths = []
    for name, label, value, log in (
        ("beta", "beta", lambda g: getattr(g.cell.method, "beta", None), True),
        ("fraction", "share of labels used, %", lambda g: 100 * g.cell.data.fraction or None, True),  # 0 has no place on a log scale
    ):
        if len({value(group) for group in trained}) > 1:
            plot = partial(_curves, groups=judged, value=value, label=label, log=log)
            paths += _save(folder / f"win_rate_by_{name}{ending}", plot, title)
    if trained:
        paths += _save(folder / f"win_rate_by_kl{ending}", partial(_curves, groups=judged, value=_kl, label=KL_LABEL, log=False), title)
    return paths


def _kl(group: Group) -> float | None:
    pooled = group.pooled("kl")
    return pooled.mean if pooled else None


def _save(path: Path, plot: Callable[[Any], None], title: str) -> list[Path]:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    with mpl.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(7.2, 4.0), layout="constrained")
        plot(ax)
        ax.set_title(title, fontsize=10, loc="left", wrap=True)
        figure.savefig(path.with_suffix(".png"), metadata={"Software": None})
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
        plt.close(figure)
    return [path.with_suffix(".png")]


def _curves(ax: Axes, *, groups: Sequence[Group], value: Value, label: str, log: bool) -> None:
    """A line per method (and model or data where several), intervals as bars; start models and files as dashed lines with their band."""
    lines: dict[str, list[Group]] = {}
    several = {name: len({getattr(g.cell, name).name for g in groups if g.is_trained}) > 1 for name in ("model", "data")}
    for group in groups:
        parts = [method_name(group.cell)]
        parts += [getattr(group.cell, name).name for name, many in several.items() if many]
        lines.setdefault(" ".join(parts), []).append(group)
    drawn = 0
    for name, members in lines.items():
        if not members[0].is_trained:
            _start(ax, members[0], name)
            continue
        members = sorted((g for g in members if value(g) is not None), key=lambda g: value(g) or 0.0)
        x = [v for group in members if (v := value(group)) is not None]
        y = [100 * pooled.mean for group in members if (pooled := group.pooled("win_rate"))]
        ends = [group.interval("win_rate") for group in members]
        bars = [
            [max(0.0, m - 100 * e[0]) if e else 0.0 for m, e in zip(y, ends, strict=True)],
            [max(0.0, 100 * e[1] - m) if e else 0.0 for m, e in zip(y, ends, strict=True)],
        ]
        colour, marker = COLOURS[drawn % len(COLOURS)], MARKERS[drawn % len(MARKERS)]
        line = "-" if log else "none"
        ax.errorbar(x, y, yerr=bars, label=name, color=colour, marker=marker, markersize=5, capsize=3, linewidth=1.4, linestyle=line)
        if not log:
            for group, across, up in zip(members, x, y, strict=True):
                if (beta := getattr(group.cell.method, "beta", None)) is not None:
                    ax.annotate(f"{beta:g}", (across, up), textcoords="offset points", xytext=(5, 3), fontsize=7, color=colour)
        drawn += 1
    if log:
        ax.set_xscale("log")
        ticks = sorted({v for group in groups if group.is_trained and (v := value(group)) is not None})
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
    elif any(group.is_start for group in groups):
        ax.set_xlim(left=0)
    ax.set_xlabel(label)
    ax.set_ylabel("win rate, % (95 % interval)")
    ax.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _start(ax: Axes, group: Group, name: str) -> None:
    pooled, ends = group.pooled("win_rate"), group.interval("win_rate")
    if pooled is None:
        return
    ax.axhline(100 * pooled.mean, color="0.4", linestyle="--", linewidth=1, label=name)
    if ends:
        ax.axhspan(100 * ends[0], 100 * ends[1], color="0.4", alpha=0.12, linewidth=0)
