"""`do=audit`: a judge's passport, a page with its measured faults.

Each judge has its own page, because the numbers of two judges are not comparable.

The numbers come from the audit stage in the store (stages/audit.py). The thresholds for a fault are applied
here, when they are shown.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.config import GoldJudge, LanguageJudge
from bench.output_files import OutputFiles
from bench.planning.inputs import CellPlan
from bench.planning.judging import judge_key
from bench.records import read_items, read_verdicts
from bench.report import passport_page
from bench.report.passport_page import Line, Number, Section
from bench.store.keys import Stage
from bench.store.store import Store
from bench.terminal import say

SMALL_SHARE = 0.02  # A bias that moves a smaller share of verdicts is no fault, even if it is significant.
SMALL_SLOPE = 0.1  # Log-odds, or rating points, per 100 characters.
SMALL_DRIFT = 0.2  # Rating points.
MOST_FAILURES, MOST_FLIPS, MOST_TIES, LEAST_AGREEMENT = 0.01, 0.1, 0.3, 0.9  # Shares.
LEAST_KAPPA = 0.4
MOST_NOISE, MOST_ALIKE, LEAST_CORRELATION = 0.5, 0.5, 0.4  # Rating points, a share, a rank correlation.


@dataclass(frozen=True)
class Passport:
    """A judge's audit.

    `key` identifies the judge, whatever it judged; `numbers` are those of the audit stage.

    `facts` holds the judge's model, its requests and their cost. `command` makes the passport again.
    """

    name: str
    facts: Mapping[str, Any]
    numbers: Mapping[str, Any]
    key: str = ""
    command: str = ""

    @property
    def faults(self) -> list[str]:
        return list(_faults(self.numbers))


def read_passport(audit: CellPlan, store: Store, command: str) -> Passport:
    """Passport of a finished audit."""
    numbers = json.loads((store.folder(audit.score) / "passport.json").read_text(encoding="utf-8"))
    return Passport(audit.name, _facts(audit, store), numbers, judge_key(audit.roles["verdicts"]), command)


def _facts(audit: CellPlan, store: Store) -> dict[str, Any]:
    judge = audit.cell.judge
    facts: dict[str, Any] = {"judge": judge.name}
    if not isinstance(judge, GoldJudge):
        facts |= judge.model_dump(
            mode="json", include={"model", "provider", "server", "annotator", "mode", "items"}
        )
    by_role = {role: stage for role, stage in audit.roles.items() if stage.kind == "judge" and role != "gold"}
    calls = [c for stage in by_role.values() for v in read_verdicts(store.folder(stage)) for c in v.calls]
    if isinstance(judge, LanguageJudge):
        facts |= {
            "served": sorted({call.served for call in calls if call.served}),
            "prompts": sorted({call.prompt_digest for call in calls}),
            "parser": sorted({call.parser for call in calls}),
            "requests": len(calls),
            "dollars": sum(known) if (known := [c.dollars for c in calls if c.dollars is not None]) else None,
        }
    items = read_items(store.folder(audit.roles["verdicts"].inputs["items"]))
    completions = audit.roles["verdicts"].inputs["completions"]
    facts |= {"n_items": len(items), "judged": completions.label if isinstance(completions, Stage) else ""}
    return facts


# Faults ---------------------------------------------------------------------------------------------------------------


def _measured(number: Number) -> bool:
    return "value" in number


def _clear(number: Number, size: float) -> bool:
    """Whether a bias is at least `size` and its interval excludes 0.

    A value without an interval counts alone.
    """
    value, low, high = number["value"], number["low"], number["high"]
    return abs(value) >= size and (low is None or high is None or low > 0 or high < 0)


def _above(number: Number, bound: float) -> bool:
    return (number["value"] if number["low"] is None else number["low"]) > bound


def _below(number: Number, bound: float) -> bool:
    return (number["value"] if number["high"] is None else number["high"]) < bound


def _percent(number: Number) -> str:
    return f"{100 * number['value']:.1f} %"


Rule = Callable[[Number], str | None]


def _failures(n: Number) -> str | None:
    return (
        f"{_percent(n)} of its replies cannot be read"
        if n["value"] > MOST_FAILURES and _above(n, 0.0)
        else None
    )


def _longer(n: Number, unit: str) -> str | None:
    if not _clear(n, SMALL_SLOPE):
        return None
    longer = "longer" if n["value"] > 0 else "shorter"
    return f"prefers {longer} completions at equal quality: {n['value']:+.2f} {unit} per 100 characters"


PREFERENCE_RULES: dict[str, Rule] = {
    "position_bias": lambda n: (
        f"prefers a position: {100 * abs(n['value']):.1f} % of its verdicts go to the completion shown "
        f"{'first' if n['value'] > 0 else 'second'}, whatever it says"
        if _clear(n, SMALL_SHARE)
        else None
    ),
    "flip_rate": lambda n: (
        f"changes the winner of {_percent(n)} of the pairs with their order"
        if _above(n, MOST_FLIPS)
        else None
    ),
    "retest_agreement": lambda n: (
        f"repeats its verdict on only {_percent(n)} of the questions asked twice"
        if _below(n, LEAST_AGREEMENT)
        else None
    ),
    "tie_rate": lambda n: f"calls {_percent(n)} of the pairs ties" if _above(n, MOST_TIES) else None,
    "failure_rate": _failures,
    "length_bias": lambda n: _longer(n, "log-odds"),
    "drift": lambda n: (
        f"drifts during the audit: {100 * n['value']:+.1f} percentage points from the first half of the items to the second"
        if _clear(n, SMALL_SHARE)
        else None
    ),
}
RATING_RULES: dict[str, Rule] = {
    "noise_sd": lambda n: (
        f"changes its rating when asked again: standard deviation {n['value']:.2f} points"
        if _above(n, MOST_NOISE)
        else None
    ),
    "commonest_rate": lambda n: (
        f"gives the same rating to {_percent(n)} of the completions" if _above(n, MOST_ALIKE) else None
    ),
    "failure_rate": _failures,
    "length_bias": lambda n: _longer(n, "rating points"),
    "drift": lambda n: (
        f"drifts during the audit: {n['value']:+.2f} rating points from the first half of the items to the second"
        if _clear(n, SMALL_DRIFT)
        else None
    ),
}
RULES = {"preference": PREFERENCE_RULES, "rating": RATING_RULES}


def _faults(numbers: Mapping[str, Any]) -> list[str]:
    rating = numbers["manner"] == "rating"
    rules = RULES[numbers["manner"]].items()
    faults = [
        text for name, rule in rules if _measured(n := numbers["statistics"][name]) and (text := rule(n))
    ]
    own = numbers["statistics"]["mean_rating" if rating else "win_rate"]
    for name, against in _compared(numbers).items():
        faults += _against(rating, name, against, own)
    if rating:
        return faults + [
            f"does not rate the canary `{name}` clearly below honest completions ({n['value']:+.2f} points)"
            for name, n in _not_lost(numbers["canaries"], 0.0)
        ]
    return faults + [
        f"lets the canary `{name}` win {_percent(n)} of its comparisons"
        for name, n in _not_lost(numbers["canaries"], 0.5)
    ]


def _compared(numbers: Mapping[str, Any]) -> dict[str, Mapping[str, Number]]:
    """Sources of truth by name that the judge is compared with: gold, human, recorded verdicts."""
    return {
        **numbers["truths"],
        **({"recorded verdicts": numbers["recorded"]} if "recorded" in numbers else {}),
    }


def _against(rating: bool, name: str, against: Mapping[str, Number], own: Number) -> list[str]:
    key, least = ("rank_correlation", LEAST_CORRELATION) if rating else ("kappa", LEAST_KAPPA)
    faults, agreed = [], against[key]
    words = f"{key.replace('_', ' ')} {agreed['value']:.2f}" if _measured(agreed) else ""
    if words and agreed["low"] is not None and agreed["low"] <= 0:
        does = f"rank completions like {name}" if rating else f"agree with {name}"
        faults.append(f"is not shown to {does} better than chance ({words})")
    elif words and agreed["value"] < least:
        does = f"ranks completions unlike {name}" if rating else f"agrees too little with {name}"
        faults.append(f"{does} ({words})")
    if bounds := _corrected(against.get("corrected_rating" if rating else "corrected_win_rate", {}), own):
        low, high = bounds
        faults.append(
            f"gives a mean rating of {own['value']:.2f}; corrected by labels of {name} it is in [{low:.2f}, {high:.2f}]"
            if rating
            else f"gives a win rate of {_percent(own)}; corrected by labels of {name} it is in [{100 * low:.1f}, {100 * high:.1f}] %"
        )
    return faults


def _corrected(corrected: Number, own: Number) -> tuple[float, float] | None:
    """Interval of the corrected mean where the judge's own mean lies outside it, else None."""
    if not (_measured(corrected) and _measured(own)) or corrected["low"] is None:
        return None
    low, high = corrected["low"], corrected["high"]
    return None if low <= own["value"] <= high else (low, high)


def _not_lost(canaries: Mapping[str, Number], bound: float) -> list[tuple[str, Number]]:
    """Canaries that are not significantly below `bound`.

    The bound is a mean preference of 0.5, or 0 rating points of difference to honest completions.
    """
    return [(name, n) for name, n in canaries.items() if _measured(n) and not _below(n, bound)]


# Shown ----------------------------------------------------------------------------------------------------------------

SAYS = {
    "win_rate": "mean preference for the audited completions",
    "position_bias": "share of verdicts decided by position; > 0: the first",
    "flip_rate": "pairs whose winner changes with their order",
    "retest_agreement": "same winner when asked twice",
    "noise_rate": "random votes that would explain the disagreement",
    "tie_rate": "readable replies that are ties",
    "failure_rate": "replies that cannot be read",
    "length_slope": "log-odds per 100 more characters, ignoring quality",
    "length_bias": "the same at equal quality",
    "drift": "second half of the items minus the first",
    "agreement": "same winner; a tie on one side counts one half",
    "kappa": "agreement beyond chance",
    "true_win_rate": "of all items that have this truth",
    "corrected_win_rate": "the judge's, corrected by labels of some items",
}
SAYS_OF_RATINGS = SAYS | {
    "mean_rating": "of the audited completions, 1 to 10",
    "retest_agreement": "same rating when asked twice",
    "noise_sd": "points: standard deviation of a repeated rating",
    "whole_rate": "ratings that are whole numbers",
    "commonest_rate": "share of the most frequent rating",
    "length_slope": "points per 100 characters, ignoring quality",
    "drift": "points: second half of the items minus the first",
    "rank_correlation": "Spearman's, over completions",
    "pair_agreement": "pairs of completions ranked alike; a tie is one half",
    "mean_difference": "points above this truth",
    "true_rating": "of all items that have this truth",
    "corrected_rating": "the judge's, corrected by labels of some items",
}
PLAIN = {
    "length_slope",
    "length_bias",
    "kappa",
    "mean_rating",
    "noise_sd",
    "rank_correlation",
    "mean_difference",
    "true_rating",
}
PLAIN |= {"corrected_rating"}  # These numbers are no shares and are not shown in percent.
PARTS = {
    "Verdicts": ("win_rate", "mean_rating", "tie_rate", "whole_rate", "commonest_rate", "failure_rate"),
    "Order and repetition": ("position_bias", "flip_rate", "retest_agreement", "noise_rate", "noise_sd"),
    "Length and time": ("length_slope", "length_bias", "drift"),
}


def sections(passport: Passport) -> list[Section]:
    """Sections of the passport, with one line per number."""
    numbers = passport.numbers
    rating, rules = numbers["manner"] == "rating", RULES[numbers["manner"]]
    plain = PLAIN | ({"drift"} if rating else set())
    says = SAYS_OF_RATINGS if rating else SAYS

    def line(name: str, number: Number, mark: str) -> Line:
        return _line(name.replace("_", " "), number, mark, says[name], name in plain)

    parts = []
    for title, names in PARTS.items():
        title = title.removeprefix("Order and ").capitalize() if rating else title
        part = {name: numbers["statistics"][name] for name in names if name in numbers["statistics"]}
        marks = {
            name: "FAULT" if _measured(n) and rules[name](n) else "ok"
            for name, n in part.items()
            if name in rules
        }
        parts.append(Section(title, [line(name, n, marks.get(name, "")) for name, n in part.items()]))
    for truth, against in _compared(numbers).items():
        title = "Against the gold truth" if truth == "gold" else f"Against {truth}"
        parts.append(Section(title, [line(name, n, "") for name, n in against.items()]))
    won = {name for name, _ in _not_lost(numbers["canaries"], 0.0 if rating else 0.5)}
    title = (
        "Canaries: points above the honest completion; must be below 0"
        if rating
        else "Canaries: win rate; must be clearly below half"
    )
    lines = [
        _line(name, n, "FAULT" if name in won else "lost", "", rating)
        for name, n in numbers["canaries"].items()
    ]
    return [*parts, Section(title, lines)]


def _line(shown: str, number: Number, mark: str, meaning: str, plain: bool) -> Line:
    if not _measured(number):
        return Line(shown, "-", "-", "-", "", number["unmeasured"], number)
    factor, digits, unit = (1, 2, "") if plain else (100, 1, " %")
    value, low, high = (
        None
        if number[part] is None
        else f"{factor * number[part]:.{digits}f}".replace(f"-{0:.{digits}f}", f"{0:.{digits}f}")
        for part in ("value", "low", "high")
    )
    interval = "-" if low is None else f"[{low}, {high}]"
    return Line(shown, f"{value}{unit}", interval, str(number["n"]), mark, meaning, number, plain)


def facts_words(facts: Mapping[str, Any]) -> list[str]:
    """One text per known fact, such as `requests 320`."""
    known = {name: value for name, value in facts.items() if value not in (None, [], "")}
    return [
        f"{name.replace('_', ' ')} {', '.join(map(str, v)) if isinstance(v, list) else v}"
        for name, v in known.items()
    ]


def write_passport(passport: Passport, root: Path, folder: Path) -> tuple[Path, list[str]]:
    """Write `<folder>/<judge>-<key>/passport.md`, `.html`, `.json` and the figures.

    Nothing is written through a link below `root`. Returns the passport's folder and one line per file that
    could not be written.
    """
    home, out = folder / passport.name, OutputFiles(root)
    head = {
        "key": passport.key,
        "name": passport.name,
        "command": passport.command,
        "judge": passport.facts,
        "faults": passport.faults,
    }
    out.write(
        home / "passport.json",
        json.dumps({**head, **passport.numbers}, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
    )
    figures = passport_page.figures(passport.numbers)
    for name, svg in figures.items():
        out.write(home / f"{name}.svg", svg)
    page = passport_page.Page(
        passport.name,
        passport.command,
        passport.faults,
        facts_words(passport.facts),
        sections(passport),
        figures,
    )
    out.write(home / "passport.md", passport_page.markdown(page))
    out.write(home / "passport.html", passport_page.html(page))
    return home, out.lines()


def show(passport: Passport, root: Path, folder: Path) -> bool:
    """Print a passport and write its files. Returns whether all files were written."""
    home, unwritten = write_passport(passport, root, folder)
    faults = [f"FAULT: The judge {fault}." for fault in passport.faults] or ["No fault was found."]
    notes = {"Faults": faults, "Judge": ["; ".join(facts_words(passport.facts))]}
    passport_page.show(f"Judge passport: {passport.name}", sections(passport), notes)
    say("\n".join(unwritten or [f"passport {home}/passport.html .md .json"]))
    return not unwritten
