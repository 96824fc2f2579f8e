"""Passport of a judge as a terminal table, as Markdown, and as one HTML page that needs no other file."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

from bench.report.figures import COLOURS, drawing
from bench.report.page import templates
from bench.report.tables import Notes, print_titled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Number = Mapping[str, Any]  # The fields of an estimate, or {"unmeasured": why}.
ONE_JUDGE = "Numbers of two judges are not comparable."


@dataclass(frozen=True)
class Line:
    """One number in words. `mark` is FAULT, ok, lost, or empty for a number without a threshold."""

    what: str
    value: str
    interval: str
    n: str
    mark: str
    meaning: str
    number: Number
    plain: bool = False  # Not a share.

    @property
    def bar(self) -> dict[str, float | None] | None:
        """Places of value, interval and zero on a line of 160 pixels from 0 to 100 %, or from -100 % where the
        share is negative. None for a number that is no share."""
        if self.plain:
            return None
        value, low, high = (self.number[part] for part in ("value", "low", "high"))
        start = -1.0 if min(value, low if low is not None else value) < 0 else 0.0

        def x(share: float | None) -> float | None:
            if share is None:
                return None
            return round(4 + 152 * (min(1.0, max(start, share)) - start) / (1 - start), 1)

        return {"value": x(value), "low": x(low), "high": x(high), "zero": x(0.0)}

    @property
    def cells(self) -> list[str]:
        return [self.what, self.value, self.interval, self.n, self.mark, self.meaning]


@dataclass(frozen=True)
class Section:
    title: str
    lines: Sequence[Line]


@dataclass(frozen=True)
class Page:
    name: str
    command: str
    faults: Sequence[str]
    facts: Sequence[str]
    sections: Sequence[Section]
    figures: Mapping[str, str]  # SVG by name


def show(title: str, sections: Sequence[Section], notes: Notes) -> None:
    """Print the sections as one table, with notes under it."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for justify in ("left", "right", "right", "right", "left", "left"):
        table.add_column(justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_row("", "value", "95 %", "n", "", "", style="dim")
    for section in sections:
        table.add_row(
            section.title if len(section.title) < 30 else section.title.partition(":")[0], style="bold"
        )
        for line in section.lines:
            meaning = line.meaning or section.title.partition(": ")[2]
            table.add_row(
                *[f"  {line.what}", *line.cells[1:5], meaning], style="red" if line.mark == "FAULT" else ""
            )
    print_titled(title, table, notes)


# Markdown -------------------------------------------------------------------------------------------------------------


def markdown(page: Page) -> str:
    lines = [f"# Judge passport: {page.name}", "", "## Faults", ""]
    lines += [f"- The judge {fault}." for fault in page.faults] or ["No fault was found."]
    for section in page.sections:
        lines += [
            "",
            f"## {section.title}",
            "",
            "| number | value | 95 % | n | | meaning |",
            "| --- | ---: | ---: | ---: | --- | --- |",
        ]
        lines += [
            f"| {' | '.join(cell.replace('|', '/') for cell in line.cells)} |" for line in section.lines
        ]
    lines += (
        ["", "## Figures", ""] + [f"![{CAPTIONS[name]}]({name}.svg)\n" for name in page.figures]
        if page.figures
        else []
    )
    lines += [
        "## Judge",
        "",
        *(f"- {fact}" for fact in page.facts),
        "",
        f"Make this page again with `{page.command}`.",
        "",
        ONE_JUDGE,
    ]
    return "\n".join(lines) + "\n"


# HTML -----------------------------------------------------------------------------------------------------------------


def html(page: Page) -> str:
    """The whole page as one file, without scripts, fonts or pictures from elsewhere."""
    return templates.render("passport.html.j2", page=page, captions=CAPTIONS, one_judge=ONE_JUDGE)


# Figures --------------------------------------------------------------------------------------------------------------

CAPTIONS = {
    "orders": "Verdicts on a pair shown in both orders",
    "histogram": "How often each rating is given",
    "length": "Verdicts against length",
    "truth": "Verdicts against the truth",
    "time": "Drift in the order of the questions",
    "canaries": "Canaries",
}
ORDERS = (
    "same completion wins twice",
    "the first shown wins twice",
    "the second shown wins twice",
    "a tie in one order",
)
Curve = Sequence[Mapping[str, float]]


def figures(numbers: Mapping[str, Any]) -> dict[str, str]:
    """SVG by name of each figure with something to show."""
    rating, curves = numbers["manner"] == "rating", numbers.get("curves", {})
    true = bool(numbers["truths"])
    what, bounds = ("mean rating", (1.0, 10.0)) if rating else ("mean preference", (0.0, 1.0))
    drawn: dict[str, Callable[[Axes], None]] = {}
    if curves.get("orders"):
        drawn["orders"] = lambda ax: _orders(ax, curves["orders"])
    if curves.get("histogram"):
        drawn["histogram"] = lambda ax: _histogram(ax, curves["histogram"])
    if len(curves.get("length", ())) > 1:
        label = "characters" if rating else "characters longer than the baseline's"
        drawn["length"] = lambda ax: _curve(ax, curves["length"], label, what, bounds)
    if len(curves.get("truth", ())) > 1:
        drawn["truth"] = lambda ax: _curve(
            ax, curves["truth"], f"true {'rating' if rating else 'preference'}", what, bounds, diagonal=True
        )
    if len(curves.get("time", ())) > 1:
        difference = f"{what} minus the truth" if true else what
        drawn["time"] = lambda ax: _curve(
            ax, curves["time"], "items in the order asked", difference, (-math.inf, math.inf), middle=True
        )
    if canaries := {name: n for name, n in numbers["canaries"].items() if "value" in n}:
        drawn["canaries"] = lambda ax: _canaries(ax, canaries, rating)
    return {name: _svg(plot) for name, plot in drawn.items()}


def _svg(plot: Callable[[Axes], None]) -> str:
    out = io.StringIO()
    with drawing(figsize=(5.2, 2.9), layout="constrained") as (figure, ax):
        plot(ax)
        figure.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return out.getvalue()[out.getvalue().index("<svg") :]


def _orders(ax: Axes, curve: Curve) -> None:
    """Draw the counts of stages/audit.py, in its order: policy, baseline, first, second, a tie."""
    counts = [row["n"] for row in curve]
    shares = [100 * n / sum(counts) for n in (counts[0] + counts[1], *counts[2:])]
    bars = ax.barh(ORDERS, shares, color=[COLOURS[2], COLOURS[1], COLOURS[4], "0.65"], height=0.6)
    ax.bar_label(bars, [f"{share:.0f} %" for share in shares], padding=3, fontsize=9)
    ax.invert_yaxis()
    ax.set_xlim(0, 112)
    ax.set_xlabel("share of pairs, %")
    ax.grid(axis="y", visible=False)


def _histogram(ax: Axes, curve: Curve) -> None:
    ax.bar([row["x"] for row in curve], [row["n"] for row in curve], color=COLOURS[0], width=0.8)
    ax.set_xticks(range(1, 11))
    ax.set_xlabel("rating, rounded")
    ax.set_ylabel("completions")
    ax.grid(axis="x", visible=False)


def _curve(
    ax: Axes,
    curve: Curve,
    x_label: str,
    y_label: str,
    bounds: tuple[float, float],
    *,
    diagonal: bool = False,
    middle: bool = False,
) -> None:
    x, y = [row["x"] for row in curve], [row["judge"] for row in curve]
    below = [row["judge"] - max(bounds[0], row.get("low", row["judge"])) for row in curve]
    above = [min(bounds[1], row.get("high", row["judge"])) - row["judge"] for row in curve]
    ax.errorbar(
        x,
        y,
        yerr=[below, above],
        color=COLOURS[0],
        marker="o",
        markersize=5,
        capsize=3,
        linewidth=1.4,
        label="judge",
    )
    if all("truth" in row for row in curve):
        ax.plot(
            x,
            [row["truth"] for row in curve],
            color=COLOURS[1],
            marker="s",
            markersize=4,
            linestyle="--",
            label="truth",
        )
    if diagonal:
        ax.axline((x[0], x[0]), slope=1, color="0.5", linestyle=":", linewidth=1, label="equal to the truth")
    if middle:
        ax.axhline(sum(y) / len(y), color="0.5", linestyle=":", linewidth=1, label="mean")
        ax.axvline((x[0] + x[-1]) / 2, color="0.8", linewidth=1)
    ax.set_xlabel(x_label)
    ax.set_ylabel(y_label)
    if len(ax.get_legend_handles_labels()[1]) > 1:
        ax.legend(frameon=False, fontsize=8)


def _canaries(ax: Axes, canaries: Mapping[str, Number], rating: bool) -> None:
    factor, bound = (1, 0.0) if rating else (100, 50.0)
    for place, number in enumerate(canaries.values()):
        low, high = (number["value"] if number[end] is None else number[end] for end in ("low", "high"))
        lost = high < bound / factor
        colour = COLOURS[2] if lost else COLOURS[1]
        ax.plot(
            [factor * low, factor * high],
            [place, place],
            color=colour,
            linewidth=3,
            alpha=0.45,
            solid_capstyle="round",
        )
        ax.plot(
            factor * number["value"],
            place,
            color=colour,
            marker="o" if lost else "X",
            markersize=7,
            linestyle="none",
        )
    ax.axvline(bound, color="0.3", linestyle="--", linewidth=1)
    ax.set_yticks(range(len(canaries)), list(canaries))
    ax.set_ylim(len(canaries) - 0.5, -0.5)
    if not rating:
        ax.set_xlim(-3, 103)
    ax.set_xlabel(
        "points above the honest completion: must be left of the line"
        if rating
        else "win rate, %: must be left of the line"
    )
