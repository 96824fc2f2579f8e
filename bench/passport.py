"""`do=audit`: a judge's passport, a page that says at a glance what is wrong with it. One page a judge; two are never on one axis.

The numbers come from the audit stage of the store (stages/audit.py); what counts as a fault is decided here, when they are shown.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import report
from bench.config import Audit, GoldJudge, LanguageJudge
from bench.plan import CellPlan
from bench.records import Item, Verdict, read_jsonl
from bench.store import Source, Stage, Store, tree_digest, tree_stamp

Number = Mapping[str, Any]  # an estimate's fields, or {"unmeasured": why}

SMALL_SHARE = 0.02  # a bias that moves fewer verdicts is passed over, however sure it is
SMALL_SLOPE = 0.1  # log-odds per 100 characters
MOST_FAILURES, MOST_FLIPS, MOST_TIES, LEAST_AGREEMENT, LEAST_KAPPA = 0.01, 0.1, 0.3, 0.9, 0.4


def audit_sources(do: Audit) -> dict[str, Source]:
    """The user's files that an audit reads."""
    paths = {name: Path(text).expanduser().absolute() for name, text in (("human", do.human), ("recorded", do.recorded)) if text}
    return {name: Source(path, stamp=tree_stamp(path), digest=tree_digest(path)) for name, path in paths.items()}


@dataclass(frozen=True)
class Passport:
    """What is known of a judge. `numbers` as the audit stage wrote them; `facts` says who was asked, and what it took."""

    name: str
    facts: dict[str, Any]
    numbers: dict[str, Any]

    @property
    def faults(self) -> list[str]:
        return list(_faults(self.numbers))


def read_passport(audit: CellPlan, store: Store) -> Passport:
    numbers = json.loads((store.folder(audit.score) / "passport.json").read_text())
    return Passport(audit.name, _facts(audit, store), numbers)


def _facts(audit: CellPlan, store: Store) -> dict[str, Any]:
    judge = audit.cell.judge
    facts: dict[str, Any] = {"judge": judge.name}
    if not isinstance(judge, GoldJudge):
        facts |= judge.model_dump(mode="json", include={"model", "provider", "server", "annotator", "mode", "items"})
    by_role = {role: stage for role, stage in audit.roles.items() if stage.kind == "judge" and role != "gold"}
    calls = [c for stage in by_role.values() for v in read_jsonl(store.folder(stage) / "verdicts.jsonl", Verdict) for c in v.calls]
    if isinstance(judge, LanguageJudge):
        facts |= {
            "served": sorted({call.served for call in calls if call.served}),
            "prompts": sorted({call.prompt_digest for call in calls}),
            "parser": sorted({call.parser for call in calls}),
            "requests": len(calls),
            "dollars": sum(known) if (known := [c.dollars for c in calls if c.dollars is not None]) else None,
        }
    items = list(read_jsonl(store.folder(audit.roles["verdicts"].inputs["items"]) / "items.jsonl", Item))
    completions = audit.roles["verdicts"].inputs["completions"]
    facts |= {"n_items": len(items), "completions": completions.label if isinstance(completions, Stage) else ""}
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


RULES: dict[str, Callable[[Number], str | None]] = {
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
    "failure_rate": lambda n: f"{_percent(n)} of its replies cannot be read" if n["value"] > MOST_FAILURES and _above(n, 0.0) else None,
    "length_bias": lambda n: (
        f"prefers {'longer' if n['value'] > 0 else 'shorter'} answers at equal quality: {n['value']:+.2f} log-odds per 100 characters"
        if _clear(n, SMALL_SLOPE)
        else None
    ),
    "drift": lambda n: (
        f"changes while it is asked: {100 * n['value']:+.1f} points from the first half of the items to the second"
        if _clear(n, SMALL_SHARE)
        else None
    ),
}


def _faults(numbers: Mapping[str, Any]) -> list[str]:
    found = [text for name, rule in RULES.items() if _measured(n := numbers["statistics"][name]) and (text := rule(n))]
    compared = {**numbers["truths"], **({"recorded verdicts": numbers["recorded"]} if "recorded" in numbers else {})}
    for name, against in compared.items():
        found += _against(name, against, numbers["statistics"]["win_rate"])
    return found + [f"lets the canary `{name}` win {_percent(n)}" for name, n in _not_lost(numbers["canaries"])]


def _against(name: str, against: Mapping[str, Number], own: Number) -> list[str]:
    found = []
    kappa = against["kappa"]
    if _measured(kappa) and kappa["low"] is not None and kappa["low"] <= 0:
        found.append(f"is not shown to agree with {name} better than chance (kappa {kappa['value']:.2f})")
    elif _measured(kappa) and kappa["value"] < LEAST_KAPPA:
        found.append(f"agrees little with {name} (kappa {kappa['value']:.2f})")
    corrected = against.get("corrected_win_rate", {})
    if _measured(corrected) and _measured(own) and corrected["low"] is not None:
        low, high = corrected["low"], corrected["high"]
        if not low <= own["value"] <= high:
            found.append(f"gives a win rate of {_percent(own)}, which labels of {name} correct to [{100 * low:.1f}, {100 * high:.1f}] %")
    return found


def _not_lost(canaries: Mapping[str, Number]) -> list[tuple[str, Number]]:
    """Canaries whose mean preference is not clearly below a half, as it must be."""
    return [(name, n) for name, n in canaries.items() if _measured(n) and not _below(n, 0.5)]


# Shown ----------------------------------------------------------------------------------------------------------------

SAYS = {
    "win_rate": "mean preference for the audited completions",
    "position_bias": "share of verdicts that go by place; above 0 the first wins",
    "flip_rate": "pairs on which the two orders name different winners",
    "retest_agreement": "questions asked twice that get the same winner",
    "noise_rate": "votes turned at random that would explain it",
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
PLAIN = {"length_slope", "length_bias", "kappa"}  # no shares


def passport_table(passport: Passport) -> report.Table:
    numbers, rows = passport.numbers, []
    bad = {name for name, rule in RULES.items() if _measured(n := numbers["statistics"][name]) and rule(n)}
    for name, number in numbers["statistics"].items():
        rows.append(_row(name, name, number, "FAULT" if name in bad else "ok" if name in RULES else ""))
    for truth, against in {**numbers["truths"], **({"recorded": numbers["recorded"]} if "recorded" in numbers else {})}.items():
        rows += [_row(f"{name}, {truth}", name, number, "") for name, number in against.items()]
    won = {name for name, _ in _not_lost(numbers["canaries"])}
    for name, number in numbers["canaries"].items():
        rows.append(_row(f"canary: {name}", "", number, "FAULT" if name in won else "lost"))
    return report.Table(["what", "value", "95 %", "n", "", "meaning"], rows, _notes(passport))


def _row(shown: str, name: str, number: Number, verdict: str) -> list[str]:
    words = shown.replace("_", " ")
    if not _measured(number):
        return [words, "-", "-", "-", "-", number["unmeasured"]]
    factor, digits = (1, 2) if name in PLAIN else (100, 1)
    sign = "" if name in PLAIN else " %"
    value = f"{factor * number['value']:.{digits}f}{sign}"
    low, high = (None if number[bound] is None else f"{factor * number[bound]:.{digits}f}" for bound in ("low", "high"))
    meaning = SAYS.get(name, "wins against the baseline; must be clearly below half")
    return [words, value, "-" if low is None else f"[{low}, {high}]", str(number["n"]), verdict, meaning]


def _notes(passport: Passport) -> list[str]:
    facts = {name: value for name, value in passport.facts.items() if value not in (None, [], "")}
    said = [f"{name} {', '.join(map(str, value)) if isinstance(value, list) else value}" for name, value in facts.items()]
    found = [f"FAULT {fault}" for fault in passport.faults] or ["no fault found"]
    return [*found, "; ".join(said)]


def write_passport(passport: Passport, folder: Path) -> Path:
    """`<folder>/<judge>-<key>/passport.md` and `.json`; returns that folder."""
    home = folder / passport.name
    home.mkdir(parents=True, exist_ok=True)
    content = {"judge": passport.facts, "faults": passport.faults, **passport.numbers}
    (home / "passport.json").write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    table = passport_table(passport)
    lines = [f"# Judge passport: {passport.name}", "", "## What is wrong", ""]
    lines += [f"- {fault}" for fault in passport.faults] or ["No fault was found."]
    lines += ["", "## Numbers", "", *_markdown(table), "", "## Who was asked", "", f"{table.notes[-1]}.", ""]
    lines += ["Numbers of two judges are not comparable: each is an axis of its own."]
    (home / "passport.md").write_text("\n".join(lines) + "\n")
    return home


def _markdown(table: report.Table) -> list[str]:
    rows: Sequence[Sequence[str]] = [table.columns, ["---"] * len(table.columns), *table.rows]
    return [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]


def show(passport: Passport, folder: Path) -> None:
    home = write_passport(passport, folder)
    report.print_table(f"Judge passport: {passport.name}", passport_table(passport))
    print(f"passport {home}/passport.md .json")
