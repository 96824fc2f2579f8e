"""Passport of a judge as a terminal table, as Markdown, and as one HTML page that needs no other file."""

from __future__ import annotations

import html as escaping
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

from bench.report.figures import COLOURS, drawing
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

CSS = """
:root { --ink: #1f2933; --soft: #66727f; --line: #e3e7ec; --good: #00795c; --bad: #b83a00; --bar: #0072B2; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; color: var(--ink); background: #f5f7f9;
  margin: 0; }
main { max-width: 1060px; margin: 0 auto; padding: 32px 20px 48px; }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 6px 16px; margin-bottom: 18px; }
h1 { font-size: 26px; margin: 0; overflow-wrap: anywhere; }
h1 small { display: block; color: var(--soft); font-size: 14px; font-weight: 400; }
h2 { font-size: 16px; margin: 0 0 8px; }
.badge { margin-left: auto; padding: 4px 14px; border-radius: 999px; color: #fff; font-weight: 600; background: var(--good); }
.badge.bad { background: var(--bad); }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 16px 20px; margin-bottom: 16px; }
section.faults { border-left: 5px solid var(--bad); } section.clean { border-left: 5px solid var(--good); }
ul { margin: 0; padding-left: 20px; } p { margin: 0; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; table-layout: fixed; }
th.w { width: 152px; } th.v { width: 74px; } th.i { width: 116px; } th.n { width: 48px; } th.m { width: 58px; }
th { text-align: left; color: var(--soft); font-weight: 500; font-size: 13px; }
th, td { padding: 5px 10px 5px 0; border-top: 1px solid var(--line); vertical-align: middle; } tr:first-child th { border-top: 0; }
.r { text-align: right; white-space: nowrap; } td.why, td.says { color: var(--soft); font-size: 13px; } td.what { white-space: nowrap; }
th.bar { width: 185px; } td.bar { padding-left: 10px; } td.bar svg { display: block; }
.mark { font-size: 12px; font-weight: 600; color: var(--good); } .mark.FAULT { color: var(--bad); } tr.FAULT td.what { color: var(--bad);
  font-weight: 600; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(400px, 1fr)); gap: 12px 20px; }
.figures svg { width: 100%; height: auto; }
figure { margin: 0; } figcaption { color: var(--soft); font-size: 13px; }
code { background: #eef1f4; border-radius: 4px; padding: 1px 5px; font-size: 13px; overflow-wrap: anywhere; }
footer { color: var(--soft); font-size: 13px; }
@media (max-width: 700px) { td.bar, td.says, th.says, th.bar { display: none; } .figures { grid-template-columns: 1fr; } }
"""


def html(page: Page) -> str:
    """The whole page as one file, without scripts, fonts or pictures from elsewhere."""
    text = escaping.escape
    n = len(page.faults)
    badge = f'<span class="badge{" bad" if n else ""}">{f"{n} fault" + "s" * (n > 1) if n else "no fault found"}</span>'
    faults = "".join(f"<li>The judge {_quoted(fault)}.</li>" for fault in page.faults)
    wrong = f'<section class="faults"><h2>Faults</h2><ul>{faults}</ul></section>'
    if not n:
        wrong = '<section class="clean"><h2>Faults</h2><p>No fault was found.</p></section>'
    drawn = "".join(
        f"<figure><figcaption>{text(CAPTIONS[name])}</figcaption>{svg}</figure>"
        for name, svg in page.figures.items()
    )
    parts = [
        f"<section><h2>{text(section.title)}</h2>{_table(section)}</section>" for section in page.sections
    ]
    facts = "".join(f"<li>{text(fact)}</li>" for fact in page.facts)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Judge passport: {text(page.name)}</title><style>{CSS}</style></head>
<body><main>
<header><h1><small>Judge passport</small>{text(page.name)}</h1>{badge}</header>
{wrong}
{f'<section><h2>At a glance</h2><div class="figures">{drawn}</div></section>' if drawn else ""}
{"".join(parts)}
<section><h2>Judge</h2><ul>{facts}</ul></section>
<footer><p>Make this page again with <code>{text(page.command)}</code>. {ONE_JUDGE}</p></footer>
</main></body></html>
"""


def _quoted(fault: str) -> str:
    return re.sub("`(.*?)`", r"<code>\1</code>", escaping.escape(fault))


def _table(section: Section) -> str:
    text = escaping.escape
    rows = []
    for line in section.lines:
        if "value" not in line.number:
            rows.append(
                f'<tr><td class="what">{text(line.what)}</td><td class="why" colspan="6">{text(line.meaning)}</td></tr>'
            )
            continue
        mark = f'<span class="mark {line.mark}">{line.mark}</span>'
        numbers = "".join(f'<td class="r">{text(cell)}</td>' for cell in (line.value, line.interval, line.n))
        rows.append(
            f'<tr class="{line.mark}"><td class="what">{text(line.what)}</td>{numbers}<td class="bar">{_bar(line)}</td>'
            f'<td>{mark}</td><td class="says">{text(line.meaning)}</td></tr>'
        )
    head = "".join(
        f'<th class="r {width}">{word}</th>' for width, word in (("v", "value"), ("i", "95 %"), ("n", "n"))
    )
    head = f'<th class="w"></th>{head}<th class="bar"></th><th class="m"></th><th class="says"></th>'
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _bar(line: Line) -> str:
    """SVG of a share and its interval on a line from 0 to 100 %, or from -100 % where it is negative.

    Empty for a number that is no share.
    """
    if line.plain:
        return ""
    value, low, high = (line.number[part] for part in ("value", "low", "high"))
    start = -1.0 if min(value, low if low is not None else value) < 0 else 0.0

    def x(share: float) -> float:
        return 4 + 152 * (min(1.0, max(start, share)) - start) / (1 - start)

    colour = "var(--bad)" if line.mark == "FAULT" else "var(--bar)"
    zero = f'<line x1="{x(0):.1f}" x2="{x(0):.1f}" y1="3" y2="15" stroke="#b8c0c8"/>'
    ends = ""
    if low is not None:
        ends = f'<line x1="{x(low):.1f}" x2="{x(high):.1f}" y1="9" y2="9" stroke="{colour}" stroke-width="3" opacity=".45"/>'
    return (
        f'<svg width="160" height="18" role="img"><line x1="4" x2="156" y1="9" y2="9" stroke="#dfe4e9"/>{zero}{ends}'
        f'<circle cx="{x(value):.1f}" cy="9" r="4" fill="{colour}"/></svg>'
    )


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
