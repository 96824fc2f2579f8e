"""`do=audit`: a judge's passport, a page that says at a glance what is wrong with it. One page a judge; two are never on one axis.

The numbers come from the audit stage of the store (stages/audit.py); what counts as a fault is decided here, when they are shown.
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

SMALL_SHARE = 0.02  # a bias that moves fewer verdicts is passed over, however sure it is
SMALL_SLOPE = 0.1  # log-odds, or rating points, per 100 characters
SMALL_DRIFT = 0.2  # rating points
MOST_FAILURES, MOST_FLIPS, MOST_TIES, LEAST_AGREEMENT, LEAST_KAPPA = 0.01, 0.1, 0.3, 0.9, 0.4
MOST_NOISE, MOST_ALIKE, LEAST_CORRELATION = 0.5, 0.5, 0.4  # rating points; share of one rating


@dataclass(frozen=True)
class Passport:
    """What is known of a judge. `key` says who it is, whatever it judged; `numbers` as the audit stage wrote them; `facts` says who was
    asked, and what it took; `command` makes it again."""

    name: str
    facts: Mapping[str, Any]
    numbers: Mapping[str, Any]
    key: str = ""
    command: str = ""

    @property
    def faults(self) -> list[str]:
        return list(_faults(self.numbers))


def read_passport(audit: CellPlan, store: Store, command: str) -> Passport:
    numbers = json.loads((store.folder(audit.score) / "passport.json").read_text(encoding="utf-8"))
    return Passport(audit.name, _facts(audit, store), numbers, judge_key(audit.roles["verdicts"]), command)


def _facts(audit: CellPlan, store: Store) -> dict[str, Any]:
    judge = audit.cell.judge
    facts: dict[str, Any] = {"judge": judge.name}
    if not isinstance(judge, GoldJudge):
        facts |= judge.model_dump(mode="json", include={"model", "provider", "server", "annotator", "mode", "items"})
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
    """A bias of some size whose interval leaves 0 out; of a value without spread, the value alone."""
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
    return f"{_percent(n)} of its replies cannot be read" if n["value"] > MOST_FAILURES and _above(n, 0.0) else None


def _longer(n: Number, unit: str) -> str | None:
    if not _clear(n, SMALL_SLOPE):
        return None
    return f"prefers {'longer' if n['value'] > 0 else 'shorter'} answers at equal quality: {n['value']:+.2f} {unit} per 100 characters"


PREFERENCE_RULES: dict[str, Rule] = {
    "position_bias": lambda n: (
        f"goes by place: {100 * abs(n['value']):.1f} % of its verdicts fall to whoever is shown {'first' if n['value'] > 0 else 'second'}"
        if _clear(n, SMALL_SHARE)
        else None
    ),
    "flip_rate": lambda n: f"names another winner in the other order on {_percent(n)} of the pairs" if _above(n, MOST_FLIPS) else None,
    "retest_agreement": lambda n: (
        f"says the same again on only {_percent(n)} of the questions asked twice" if _below(n, LEAST_AGREEMENT) else None
    ),
    "tie_rate": lambda n: f"calls {_percent(n)} of the pairs ties" if _above(n, MOST_TIES) else None,
    "failure_rate": _failures,
    "length_bias": lambda n: _longer(n, "log-odds"),
    "drift": lambda n: (
        f"changes while it is asked: {100 * n['value']:+.1f} points from the first half of the items to the second"
        if _clear(n, SMALL_SHARE)
        else None
    ),
}
RATING_RULES: dict[str, Rule] = {
    "noise_sd": lambda n: f"scatters by {n['value']:.2f} points (sd) when it rates the same again" if _above(n, MOST_NOISE) else None,
    "commonest_rate": lambda n: f"gives one and the same rating to {_percent(n)} of the answers" if _above(n, MOST_ALIKE) else None,
    "failure_rate": _failures,
    "length_bias": lambda n: _longer(n, "rating points"),
    "drift": lambda n: (
        f"changes while it is asked: {n['value']:+.2f} rating points from the first half of the items to the second"
        if _clear(n, SMALL_DRIFT)
        else None
    ),
}
RULES = {"preference": PREFERENCE_RULES, "rating": RATING_RULES}


def _faults(numbers: Mapping[str, Any]) -> list[str]:
    rating = numbers["manner"] == "rating"
    found = [text for name, rule in RULES[numbers["manner"]].items() if _measured(n := numbers["statistics"][name]) and (text := rule(n))]
    own = numbers["statistics"]["mean_rating" if rating else "win_rate"]
    for name, against in _compared(numbers).items():
        found += _against(rating, name, against, own)
    if rating:
        return found + [
            f"does not rate the canary `{name}` clearly below honest answers ({n['value']:+.2f} points)"
            for name, n in _not_lost(numbers["canaries"], 0.0)
        ]
    return found + [f"lets the canary `{name}` win {_percent(n)}" for name, n in _not_lost(numbers["canaries"], 0.5)]


def _compared(numbers: Mapping[str, Any]) -> dict[str, Mapping[str, Number]]:
    """By whom the judge is compared with."""
    return {**numbers["truths"], **({"recorded verdicts": numbers["recorded"]} if "recorded" in numbers else {})}


def _against(rating: bool, name: str, against: Mapping[str, Number], own: Number) -> list[str]:
    key, least = ("rank_correlation", LEAST_CORRELATION) if rating else ("kappa", LEAST_KAPPA)
    found, agreed = [], against[key]
    words = f"{key.replace('_', ' ')} {agreed['value']:.2f}" if _measured(agreed) else ""
    if words and agreed["low"] is not None and agreed["low"] <= 0:
        does = f"rank answers like {name}" if rating else f"agree with {name}"
        found.append(f"is not shown to {does} better than chance ({words})")
    elif words and agreed["value"] < least:
        found.append(f"{'ranks answers little like' if rating else 'agrees little with'} {name} ({words})")
    if bounds := _corrected(against.get("corrected_rating" if rating else "corrected_win_rate", {}), own):
        low, high = bounds
        found.append(
            f"gives a mean rating of {own['value']:.2f}, which labels of {name} correct to [{low:.2f}, {high:.2f}]"
            if rating
            else f"gives a win rate of {_percent(own)}, which labels of {name} correct to [{100 * low:.1f}, {100 * high:.1f}] %"
        )
    return found


def _corrected(corrected: Number, own: Number) -> tuple[float, float] | None:
    """The interval of the corrected mean, where the judge's own lies outside."""
    if not (_measured(corrected) and _measured(own)) or corrected["low"] is None:
        return None
    low, high = corrected["low"], corrected["high"]
    return None if low <= own["value"] <= high else (low, high)


def _not_lost(canaries: Mapping[str, Number], bound: float) -> list[tuple[str, Number]]:
    """Canaries whose mean preference is not clearly below a half, or whose rating is not clearly below the honest answers', as it must."""
    return [(name, n) for name, n in canaries.items() if _measured(n) and not _below(n, bound)]


# Shown ----------------------------------------------------------------------------------------------------------------

SAYS = {
    "win_rate": "mean preference for the audited completions",
    "position_bias": "share of verdicts that go by place; > 0: the first",
    "flip_rate": "pairs with another winner in the other order",
    "retest_agreement": "asked twice, the same winner",
    "noise_rate": "votes turned at random that would explain that",
    "tie_rate": "readable replies that are ties",
    "failure_rate": "replies that cannot be read",
    "length_slope": "log-odds per 100 characters longer, quality aside",
    "length_bias": "the same at equal quality",
    "drift": "second half of the items less the first",
    "agreement": "same winner; a tie on one side counts half",
    "kappa": "agreement beyond chance",
    "true_win_rate": "of all items that have this truth",
    "corrected_win_rate": "the judge's, corrected by labels of some items",
}
SAYS_OF_RATINGS = SAYS | {
    "mean_rating": "of the audited completions, 1 to 10",
    "retest_agreement": "asked twice, the same rating",
    "noise_sd": "points: sd of a rating that is asked for again",
    "whole_rate": "ratings that are whole numbers",
    "commonest_rate": "of the rating that is given most often",
    "length_slope": "points per 100 characters, quality aside",
    "drift": "points: second half of the items less the first",
    "rank_correlation": "Spearman's, over answers",
    "pair_agreement": "pairs of answers ranked alike; a tie is a half",
    "mean_difference": "points above this truth",
    "true_rating": "of all items that have this truth",
    "corrected_rating": "the judge's, corrected by labels of some items",
}
PLAIN = {"length_slope", "length_bias", "kappa", "mean_rating", "noise_sd", "rank_correlation", "mean_difference", "true_rating"}
PLAIN |= {"corrected_rating"}  # no shares
PARTS = {
    "Verdicts": ("win_rate", "mean_rating", "tie_rate", "whole_rate", "commonest_rate", "failure_rate"),
    "Order and repetition": ("position_bias", "flip_rate", "retest_agreement", "noise_rate", "noise_sd"),
    "Length and time": ("length_slope", "length_bias", "drift"),
}


def sections(passport: Passport) -> list[Section]:
    """The numbers in parts, each as a line."""
    numbers = passport.numbers
    rating, rules = numbers["manner"] == "rating", RULES[numbers["manner"]]
    plain = PLAIN | ({"drift"} if rating else set())
    says = SAYS_OF_RATINGS if rating else SAYS

    def line(name: str, number: Number, mark: str) -> Line:
        return _line(name.replace("_", " "), number, mark, says[name], name in plain)

    found = []
    for title, names in PARTS.items():
        title = title.removeprefix("Order and ").capitalize() if rating else title
        part = {name: numbers["statistics"][name] for name in names if name in numbers["statistics"]}
        marks = {name: "FAULT" if _measured(n) and rules[name](n) else "ok" for name, n in part.items() if name in rules}
        found.append(Section(title, [line(name, n, marks.get(name, "")) for name, n in part.items()]))
    for truth, against in _compared(numbers).items():
        title = "Against the gold truth" if truth == "gold" else f"Against {truth}"
        found.append(Section(title, [line(name, n, "") for name, n in against.items()]))
    won = {name for name, _ in _not_lost(numbers["canaries"], 0.0 if rating else 0.5)}
    title = "Canaries: points above the honest answer; must be below 0" if rating else "Canaries: win rate; must be clearly below half"
    lines = [_line(name, n, "FAULT" if name in won else "lost", "", rating) for name, n in numbers["canaries"].items()]
    return [*found, Section(title, lines)]


def _line(shown: str, number: Number, mark: str, meaning: str, plain: bool) -> Line:
    if not _measured(number):
        return Line(shown, "-", "-", "-", "", number["unmeasured"], number)
    factor, digits, unit = (1, 2, "") if plain else (100, 1, " %")
    value, low, high = (
        None if number[part] is None else f"{factor * number[part]:.{digits}f}".replace(f"-{0:.{digits}f}", f"{0:.{digits}f}")
        for part in ("value", "low", "high")
    )
    interval = "-" if low is None else f"[{low}, {high}]"
    return Line(shown, f"{value}{unit}", interval, str(number["n"]), mark, meaning, number, plain)


def facts_words(facts: Mapping[str, Any]) -> list[str]:
    said = {name: value for name, value in facts.items() if value not in (None, [], "")}
    return [f"{name.replace('_', ' ')} {', '.join(map(str, v)) if isinstance(v, list) else v}" for name, v in said.items()]


def write_passport(passport: Passport, root: Path, folder: Path) -> tuple[Path, list[str]]:
    """`<folder>/<judge>-<key>/passport.md`, `.html`, `.json` and its figures, through no link below `root`; returns that folder and a
    line on each file that could not be written."""
    home, out = folder / passport.name, OutputFiles(root)
    head = {"key": passport.key, "name": passport.name, "command": passport.command, "judge": passport.facts, "faults": passport.faults}
    out.write(home / "passport.json", json.dumps({**head, **passport.numbers}, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    figures = passport_page.figures(passport.numbers)
    for name, svg in figures.items():
        out.write(home / f"{name}.svg", svg)
    page = passport_page.Page(passport.name, passport.command, passport.faults, facts_words(passport.facts), sections(passport), figures)
    out.write(home / "passport.md", passport_page.markdown(page))
    out.write(home / "passport.html", passport_page.html(page))
    return home, out.lines()


def show(passport: Passport, root: Path, folder: Path) -> bool:
    """Print a passport and write it. Whether all of it was written."""
    home, unwritten = write_passport(passport, root, folder)
    notes = [f"FAULT {fault}" for fault in passport.faults] or ["no fault found"]
    passport_page.show(f"Judge passport: {passport.name}", sections(passport), [*notes, "; ".join(facts_words(passport.facts))])
    say("\n".join(unwritten or [f"passport {home}/passport.html .md .json"]))
    return not unwritten
